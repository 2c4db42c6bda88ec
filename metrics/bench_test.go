package metrics

import (
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkPage is what a page of metrics costs a server with so many connections.
func BenchmarkPage(b *testing.B) {
	for _, connections := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("%d connections", connections), func(b *testing.B) {
			openSockets(b, connections)
			m := New(2, testLabels, testSources())
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				m.Write(io.Discard)
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "CPU-µs/op")
		})
	}
}

// cpuTime is what the process has spent so far. Unlike the time of a clock, it does not
// depend on what else the machine does.
func cpuTime() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// openSockets opens n sockets, and closes them when the test ends.
func openSockets(t testing.TB, n int) {
	t.Helper()
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
}
