package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestPeakHasHalved(t *testing.T) {
	f := func(name string, want string, counts ...int) {
		t.Helper()
		var p peak
		var got strings.Builder
		for _, n := range counts {
			if p.hasHalved(n) {
				fmt.Fprint(&got, n, " ")
			}
		}
		if strings.TrimSpace(got.String()) != want {
			t.Errorf("%s: of %v, it has halved at %s; want %s", name, counts, &got, want)
		}
	}
	f("nothing goes", "", 0, 500, 20_000, 20_000)
	f("too few go", "", 999, 0)
	f("just enough go", "0", 1000, 0)
	f("less than half go", "", 10_000, 5_001)
	f("half go", "5000", 10_000, 5_000, 4_999)
	f("all go at once", "0", 10_000, 0, 0)
	f("all go slowly", "5000 2500 1200 0", 10_000, 7_000, 5_000, 2_500, 1_200, 600, 0)
	f("they come again", "0 0", 10_000, 0, 10_000, 0)
}

func TestWaveIsOver(t *testing.T) {
	f := func(name string, want string, counts ...int) {
		t.Helper()
		var w wave
		var got strings.Builder
		for second, n := range counts {
			if w.isOver(n) {
				fmt.Fprint(&got, second, " ")
			}
		}
		if strings.TrimSpace(got.String()) != want {
			t.Errorf("%s: of %v, a wave is over at %s; want %s", name, counts, &got, want)
		}
	}
	f("nobody comes", "", 0, 0, 0)
	f("too few come", "", 0, 999, 999, 999)
	f("just enough come", "2", 0, 1000, 1000, 1000)
	f("they come for long", "5", 0, 3000, 6000, 9000, 12_000, 12_000, 12_000)
	f("hardly any more come", "2", 0, 10_000, 10_100, 10_200, 10_300)
	f("some more come", "2", 0, 10_000, 10_000, 14_999, 14_999)
	f("half as many again come", "2 4", 0, 10_000, 10_000, 15_000, 15_000)
	f("they come slowly", "2 8", 0, 10_000, 10_000, 11_000, 12_000, 13_000, 14_000, 15_000, 15_000)
	f("they go and come again", "2 5", 0, 10_000, 10_000, 0, 10_000, 10_000, 10_000)
	f("they come and go", "", 0, 10_000, 200, 10_000, 200)
}

// resident is all memory of a process that is resident, in bytes: see proc(5).
func resident(t testing.TB, pid int) (bytes int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err == nil {
		var total, pages int
		_, err = fmt.Sscan(string(data), &total, &pages)
		bytes = pages * os.Getpagesize()
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// TestMemoryComesBack: when 15,000 clients and their sessions have gone, the server is
// nearly as small as before. Of its 16 MB, 8 to 10 % more stay: 0.3 MB of code that has run,
// 0.3 MB of the collector's tables and of its list of spans, and 0.7 MB of the heap, which
// is pages that few objects share and buffers that have been used. Without shrinking it
// stays at 80 %.
func TestMemoryComesBack(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector keeps memory of its own")
	}
	const clients = 15_000
	p := startServer(t, "-workers", "2", "-debug-listen", testHost+":0", "-session-ttl", "1s") // sessions live for that much longer
	p.open("/ws/chat/").conn.Close()
	profiles, err := net.Dial("tcp", p.waitLog("profiles_listening")["address"].(string))
	if err != nil {
		t.Fatal(err)
	}
	// A collection needs tables of its own, which the Go runtime keeps.
	if status, _, _ := p.getOver(profiles, "/debug/pprof/heap?gc=1"); status != http.StatusOK {
		t.Fatalf("no collection: %d", status)
	}
	pid := p.cmd.Process.Pid
	before := resident(t, pid)
	for range 2 {
		s := newSwarm(t, 2)
		s.connectAll(p, clients, nil)
		full := resident(t, pid)
		s.close()
		eventually(t, "memory comes back", func() bool { return resident(t, pid) < before*120/100 })
		t.Logf("%d MB before, %d with %d clients, %d after", before>>20, full>>20, clients, resident(t, pid)>>20)
	}
}
