package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
)

// What the budget says is needed is enough, and one less is an error that says so.
func TestFileBudget(t *testing.T) {
	for workers := 1; workers <= 256; workers++ {
		for _, flags := range [][]string{nil, {"-control", "/c", "-debug-listen", ":1", "-redis", "redis://h", "-listen", ":1,:2"}} {
			wantFileBudgets(t, append([]string{"-workers", fmt.Sprint(workers)}, flags...))
		}
	}
}

func wantFileBudgets(t *testing.T, flags []string) {
	t.Helper()
	parse := func(limit int) (fileBudget, error) {
		c, err := parseConfig(flags, noEnvironment, 1, limit, io.Discard)
		if err != nil {
			return fileBudget{}, err
		}
		return c.files, nil
	}
	_, err := parse(20)
	if err == nil {
		t.Fatalf("%q: a server with 20 files", flags)
	}
	needed := regexp.MustCompile(`at least (\d+) are needed`).FindStringSubmatch(err.Error())
	if needed == nil {
		t.Fatalf("%q: %v", flags, err)
	}
	least, _ := strconv.Atoi(needed[1])
	if _, err := parse(least - 1); err == nil {
		t.Errorf("%q: starts with %d files, says %v", flags, least-1, needed)
	}
	for limit := least; limit <= 1<<20; limit += 1 + limit/4 {
		b, err := parse(limit)
		if err != nil {
			t.Errorf("%q with %d files: %v", flags, limit, err)
			continue
		}
		sum := b.fixed() + b.beyondLimit + b.plainHTTP + b.connections
		if sum != limit || b.beyondLimit < leastShare || b.plainHTTP < leastShare || b.connections < 1 {
			t.Errorf("%q with %d files: %+v", flags, limit, b)
		}
	}
}

func TestMaxConnectionsWithinTheBudget(t *testing.T) {
	f := func(want int, args ...string) {
		t.Helper()
		if c, err := parseConfig(args, noEnvironment, 2, 20_000, io.Discard); err != nil || c.files.connections != want {
			t.Errorf("%q: %v, %d connections, want %d", args, err, c.files.connections, want)
		}
	}
	f(19_587)
	f(19_587, "-max-connections", "19587")
	f(5, "-max-connections", "5")
	f(0, "-tell", "status", "-control", "/c", "-workers", "1000") // it serves nobody
}

// openFiles is how many files a process has open.
func (p *process) openFiles() int {
	p.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(entries)
}

// The budget's users have what it says: of a loop's five, one is for a moment.
func TestFilesOfLoops(t *testing.T) {
	one, nine := startServer(t, "-workers", "1"), startServer(t, "-workers", "9")
	eventually(t, fmt.Sprintf("8 loops have %d files", 8*(filesOfLoop-1)), func() bool {
		return nine.openFiles()-one.openFiles() == 8*(filesOfLoop-1) // others are open for a moment
	})
}

// startLimited starts a server that may open so many files.
func startLimited(t *testing.T, files int, flags ...string) *process {
	t.Helper()
	args := []string{fmt.Sprintf("--nofile=%d:%d", files, files), os.Args[0], "-listen", testHost + ":0", "-log-format", "json"}
	cmd := exec.Command("prlimit", append(args, flags...)...)
	cmd.Env = append(os.Environ(), asServer+"=1")
	return launch(t, cmd)
}

// Filled to the brim, a server still answers: 503 to an upgrade, 200 to a probe.
func TestServerFullOfFiles(t *testing.T) {
	limits := []struct{ files, workers int }{{64, 1}, {64, 5}, {256, 16}, {256, 1}, {1400, 256}, {4096, 2}}
	if raceEnabled {
		limits = limits[:3] // the plain run has all
	}
	for _, f := range limits {
		t.Run(fmt.Sprintf("%d files, %d workers", f.files, f.workers), func(t *testing.T) {
			p := startLimited(t, f.files, "-workers", fmt.Sprint(f.workers), "-handshake-timeout", "1m", "-heartbeat", "1h")
			p.waitListening()
			check := bystander(p)
			connections := int(p.metric("websocket_max_connections"))
			slow := p.takePlainPlaces()
			for n := 1; n < connections; {
				if p.opens() {
					n++
				}
			}
			for range mostBeyondLimit + 10 {
				newWire(t, p.dial())
			}
			wantAnswers(p, http.StatusServiceUnavailable)
			wantAnswers(p, http.StatusServiceUnavailable)
			check()
			if n := len(p.logged("accept_paused")); n > 0 {
				t.Errorf("files have run out %d times", n)
			}
			t.Logf("%d connections, %d slow readers, %d of %d files are open", connections, slow, p.openFiles(), f.files)
		})
	}
}

// opens reports whether one more client is served. One that is not goes at once: it may
// be too early, since the place of another one that has gone is still taken.
func (p *process) opens() bool {
	p.t.Helper()
	w := newWire(p.t, p.dial())
	if w.request(upgradeRequest("/ws/chat/")).StatusCode == http.StatusSwitchingProtocols {
		return true
	}
	w.conn.Close()
	return false
}

// With too few files a server says what it needs, and does not start.
func TestTooFewFiles(t *testing.T) {
	p := startLimited(t, 64, "-workers", "8")
	code := p.wait()
	want := "server: this process's limit of 64 open files is too low, at least 68 are needed (3 for standard input, output and error, " +
		"2 for Go's runtime, 45 for -workers 8 and the acceptor, 1 for -listen, 8 for files that are open for a moment, 9 for clients): " +
		"raise the limit (ulimit -n, LimitNOFILE) or lower -workers\n"
	if got := p.stderr.String(); code != exitUsage || got != want {
		t.Errorf("exit code %d, %s\nwant %s", code, got, want)
	}
}
