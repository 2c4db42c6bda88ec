package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	write := func(name string, value float64) string {
		r := &report{Name: name, Options: &options{Conns: int(value)}}
		p := &part{Name: "echo"}
		p.add("messages a second", "/s", "more", value)
		r.Parts = []*part{p}
		folder := filepath.Join(t.TempDir(), name)
		if err := r.write(folder); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(folder, "report.json")
	}
	f := func(fails bool, before, after string, wants ...string) {
		t.Helper()
		out, err := benchCommand("compare", before, after).CombinedOutput()
		if (err != nil) != fails {
			t.Errorf("%v: %s", err, out)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("no %q in %s", want, out)
			}
		}
	}
	f(false, write("old", 1000), write("new", 1500), "+50.0%", "not the same load: 1000 connections")
	f(true, "nothing.json", "nothing.json", "nothing.json")
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	f(true, empty, empty, "empty.json is no report")
}

// TestCompareNamesWhatIsMissing: a figure that only one report has is no
// difference of nothing.
func TestCompareNamesWhatIsMissing(t *testing.T) {
	one := &report{Options: &options{}, Parts: []*part{{Name: "echo", Figures: []figure{{Name: "messages"}}}, {Name: "idle"}}}
	other := &report{Options: &options{}, Parts: []*part{{Name: "echo", Figures: []figure{{Name: "answer p50"}}}}}
	var out bytes.Buffer
	(&screen{out: &out}).difference(one, other)
	for _, want := range []string{
		"only in the new report: echo, answer p50\n", "only in the old report: echo, messages\n", "only in the old report: idle\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
}

func TestOptionErrors(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		_, err := parseOptions(args, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	f("name one or more scenarios: connect, idle", "-url", "ws://x/")
	f(`unknown scenario "fly"`, "-url", "ws://x/", "fly")
	f("either -url", "echo")
	f("either -url", "-url", "ws://x/", "-server", "y {listen}", "echo")
	f("must have {listen}", "-server", "y", "echo")
	f("-check must be", "-url", "ws://x/", "-check", "maybe", "echo")
	f("scenario echo is named twice", "-url", "ws://127.0.0.1/", "echo", "rate", "echo")
	f("-conns stands behind a scenario", "-url", "ws://127.0.0.1/", "echo", "-conns")
	for _, bad := range []string{"NaN", "Inf", "-1", "1e8"} {
		f("-rate must be more than 0 and at most 10000000", "-url", "ws://127.0.0.1/", "-rate", bad, "echo")
		f("-connect-rate must be 0 to", "-url", "ws://127.0.0.1/", "-connect-rate", bad, "echo")
	}
	for flag, high := range map[string]int{"-size": maxSize, "-in-flight": maxInFlight, "-loops": maxLoops} {
		for _, bad := range []int{0, high + 1} {
			f(fmt.Sprintf("%s must be 1 to %d, got %d", flag, high, bad), "-url", "ws://127.0.0.1/", flag, fmt.Sprint(bad), "echo")
		}
	}
	f("-duration must be more than 0", "-url", "ws://127.0.0.1/", "-duration", "-1s", "echo")
	f("-conns must be more than 0, got 0", "-url", "ws://127.0.0.1/", "-conns", "0", "echo")
	f("-conns must be at most", "-url", "unix:/x", "-conns", "99999999999", "echo")
	f("no more ports to connect to 192.0.2.1:80 from", "-url", "ws://192.0.2.1/", "-conns", "65536", "echo")
	f(fmt.Sprintf("-processes must be 0 to %d, got 3", min(2, runtime.NumCPU())),
		"-url", "ws://127.0.0.1/", "-conns", "2", "-processes", "3", "echo")
	f(fmt.Sprintf("-processes must be 0 to %d, got 90", runtime.NumCPU()), "-url", "ws://127.0.0.1/", "-processes", "90", "echo")
	f("-pid goes with -url", "-server", "y {listen}", "-pid", "1", "echo")
	f(`-conns must be a whole number, got "many"`, "-conns", "many", "echo")
	f(`-rate must be a number, got "x"`, "-rate", "x", "echo")
	f(`-duration must be a duration, such as 10s or 1m30s, got "7"`, "-duration", "7", "echo")
	f("-url must be", "-url", "http://127.0.0.1/", "echo")
	f("not defined", "-port", "1", "echo")
	for _, bad := range []string{"http://x/", "x", "ws://", "wss://x/", "unix:", "unix::/path"} {
		if _, err := parseTarget(bad, true); err == nil || !strings.Contains(err.Error(), "-url") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPeersOptionErrors(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		_, err := parsePeers(args, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	f("must be more than 0", "-rounds", "0")
	f(`-rounds must be a whole number, got "x"`, "-rounds", "x")
	f("-conns must be at most", "-conns", "999999999")
	f("must be more than 0", "-duration", "-1s")
	f("must have {listen}", "-server", "")
	f(`unknown argument "gws"`, "gws")
	f("not defined", "-bad")
	err := checkNames([]peer{{Name: "gws"}, {Name: "nbio"}}, "gws,gorila")
	if err == nil || !strings.Contains(err.Error(), `"gorila": there are gws, nbio`) {
		t.Error(err)
	}
}

// TestTargets: a figure beyond its target, or one that was to be held to one and
// is not there, fails the run.
func TestTargets(t *testing.T) {
	f := func(p99 float64, want string) {
		t.Helper()
		rate := &part{Name: "rate"}
		rate.add("generator's own lateness p99", "ms", "", 1)
		if p99 > 0 {
			rate.add("answer p99", "ms", "less", p99)
		}
		r := &report{Parts: []*part{rate}}
		r.hold()
		r.judge()
		if got := strings.Join(r.FellShort, "; "); got != want {
			t.Errorf("p99 %v: fell short %q, want %q", p99, got, want)
		}
	}
	f(9.9, "")
	f(10.1, "rate: answer p99 is 10.1 ms")
	f(0, "rate: answer p99 is not known")
}

// TestLiveLineFits: a line that wraps is not replaced by the next one.
func TestLiveLineFits(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, fd: -1, terminal: true, live: true}
	s.show("heartbeat", sample{At: 99_999, Rate: 1e9, ServerCPU: 99, BenchCPU: 99, Resident: 1e12}, Counters{Open: 1e6, Faults: 1e6}, 2)
	shown := strings.NewReplacer(clear, "", red, "", normal, "").Replace(out.String())
	if n := len([]rune(shown)); n > 79 || !strings.Contains(shown, "1,000,000 errors") {
		t.Errorf("%d columns: %q", n, shown)
	}
}
