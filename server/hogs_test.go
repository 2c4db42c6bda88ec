package main

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

// BenchmarkHogs measures how long honest clients wait while hogs send messages of one byte as
// fast as they can, and no -message-rate ends that: one hog has a worker of two, eight have
// both.
func BenchmarkHogs(b *testing.B) {
	for _, hogs := range []int{0, 1, 8} {
		b.Run(fmt.Sprintf("hogs=%d", hogs), func(b *testing.B) { benchmarkHogs(b, hogs) })
	}
}

func benchmarkHogs(b *testing.B, hogs int) {
	p := startServer(b, "-workers", "2")
	h := startHonest(p)
	if hogs > 0 {
		b.Setenv(abuseOnly, "one-byte")
		b.Setenv(abuseSides, strconv.Itoa(hogs))
		defer p.startAttackers()()
	}
	time.Sleep(time.Second) // in which all begin
	h.figures()
	for b.Loop() {
		time.Sleep(time.Second) // in which honest clients measure
	}
	waits := h.figures()
	b.ReportMetric(float64(waits.p50)/float64(time.Millisecond), "p50-ms")
	b.ReportMetric(float64(waits.p99)/float64(time.Millisecond), "p99-ms")
	b.ReportMetric(0, "ns/op")
}
