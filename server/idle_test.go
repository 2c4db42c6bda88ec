package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkIdle is what an idle connection with a session and a heartbeat
// timer costs: resident memory of the server, and CPU of its upgrade.
func BenchmarkIdle(b *testing.B) {
	const conns = 10_000
	for b.Loop() {
		p := startServer(b, "-workers", "4")
		p.get("/metrics/") // what only the first request brings
		pid := p.cmd.Process.Pid
		empty := residentBytes(b, pid)
		user0, system0 := cpuTime(b, pid)
		s := newSwarm(b, 2)
		s.connectAll(p, conns, nil)
		user, system := cpuTime(b, pid)
		b.ReportMetric(float64(residentBytes(b, pid)-empty)/conns, "B/conn")
		b.ReportMetric(float64((user-user0+system-system0).Microseconds())/conns, "cpu-µs/upgrade")
		b.ReportMetric(float64(empty)/1e6, "MB-empty")
		s.close()
		p.end()
	}
}

// residentBytes is the anonymous memory of a process that is resident, of
// /proc/PID/status: see proc(5).
func residentBytes(t testing.TB, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}
