package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/proto"
)

// statFields is /proc/PID/stat behind the command's name: field 3 is first.
func statFields(t testing.TB, pid int) []string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// BenchmarkMessages is the counter under a closed loop: each connection keeps
// some messages in flight. It reports what a message costs the server.
func BenchmarkMessages(b *testing.B) {
	for _, load := range []struct{ conns, inFlight int }{{100, 1}, {100, 16}, {10_000, 1}} {
		for _, workers := range []int{2, 4} {
			b.Run(fmt.Sprintf("conns=%d/inflight=%d/workers=%d", load.conns, load.inFlight, workers), func(b *testing.B) {
				benchmarkMessages(b, load.conns, load.inFlight, "-workers", fmt.Sprint(workers))
			})
		}
	}
}

func benchmarkMessages(b *testing.B, conns, inFlight int, flags ...string) {
	p := startServer(b, flags...)
	p.waitReady()
	s := newSwarm(b, 2)
	frame := proto.AppendMaskedFrame(nil, proto.OpText, true, clientMask, []byte("a message of thirty-two bytes...."))
	burst := bytes.Repeat(frame, inFlight)

	var replied atomic.Int64
	goal := int64(max(b.N, conns*inFlight))
	done := make(chan struct{})
	var once sync.Once
	next := onCount(func(c *swarmClient) {
		n := replied.Add(1)
		if n == goal {
			once.Do(func() { close(done) })
		}
		if c.count%uint64(inFlight) == 0 && n < goal {
			c.write(burst)
		}
	})
	s.connectAll(p, conns, next)

	user0, system0 := cpuTime(b, p.cmd.Process.Pid)
	began := time.Now()
	b.ResetTimer()
	for _, c := range s.clients {
		c.loop.Post(func() { c.write(burst) })
	}
	<-done
	b.StopTimer()
	took := time.Since(began)
	user, system := cpuTime(b, p.cmd.Process.Pid)
	n := float64(replied.Load())
	s.check()
	b.ReportMetric(float64((user-user0).Microseconds())/n, "user-µs/msg")
	b.ReportMetric(float64((system-system0).Microseconds())/n, "sys-µs/msg")
	b.ReportMetric(float64((user-user0+system-system0).Microseconds())/n, "cpu-µs/msg")
	b.ReportMetric(n/took.Seconds(), "msg/s")
}
