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

// BenchmarkCompression is what a message of JSON and its echo cost with compression and
// without: the server's CPU, and bytes on the wire in both directions.
func BenchmarkCompression(b *testing.B) {
	for _, size := range []int{100, 1 << 10, 63 << 10} {
		message := someJSON(size)
		plain, compressed := text(message), deflated(proto.OpText, true, compress(message))
		for _, flag := range []string{"-compress=false", "-compress=1"} {
			b.Run(fmt.Sprintf("json=%d/%s", size, flag[1:]), func(b *testing.B) {
				frame := plain
				if flag == "-compress=1" {
					frame = compressed
				}
				benchmarkEcho(b, frame, message, flag)
			})
		}
	}
}

// someJSON is a list of records that are as long.
func someJSON(length int) string {
	list := "["
	for i := 0; len(list) < length; i++ {
		list += fmt.Sprintf(`{"id":%d,"name":"user-%d","active":%t,"balance":%.2f},`, i*7919%10007, i*31%997, i%3 == 0, float64(i*i%5003)/7)
	}
	return list[:length-1] + "]"
}

// BenchmarkLongest is for how long at most one client's compressed message holds a loop: the
// server's CPU for a message of -max-message, and for its echo, which is compressed too.
func BenchmarkLongest(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("json=%d", size), func(b *testing.B) {
			message := someJSON(size)
			benchmarkEcho(b, deflated(proto.OpText, true, compress(message)), message, "-compress", fmt.Sprintf("-max-message=%d", size))
		})
	}
}

func benchmarkEcho(b *testing.B, frame []byte, message string, flags ...string) {
	p := startServer(b, append(flags, "-echo")...)
	p.waitReady()
	w := p.open("/ws/echo/", deflateHeader)
	bytesNow := func() float64 { return p.metric("websocket_bytes_in_total") + p.metric("websocket_bytes_out_total") }
	before := bytesNow()
	user0, system0 := cpuTime(b, p.cmd.Process.Pid)
	n := 0
	for b.Loop() {
		w.write(frame)
		if m := w.next(); string(m.Payload) != message {
			b.Fatalf("got %.100q", m.Payload)
		}
		n++
	}
	user, system := cpuTime(b, p.cmd.Process.Pid)
	b.ReportMetric(float64((user-user0+system-system0).Nanoseconds())/1e3/float64(n), "cpu-µs/msg")
	b.ReportMetric((bytesNow()-before)/float64(n), "wire-bytes/msg")
}
