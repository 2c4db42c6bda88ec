package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"turnstile/netpoll"
)

// asBench, in the environment, makes the test binary be the program.
const asBench = "TURNSTILE_TEST_AS_BENCH"

func TestMain(m *testing.M) {
	if os.Getenv(asBench) != "" || len(os.Args) == 2 && os.Args[1] == generatorArgument {
		os.Exit(start(os.Args[1:]))
	}
	var err error
	if programs, err = os.MkdirTemp("", "bench"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(programs)
	os.Exit(code)
}

// programs is a folder for what is built once for all tests.
var programs string

// builtServer is the path of the real server.
var builtServer = sync.OnceValues(func() (path string, err error) {
	path = filepath.Join(programs, "server")
	if out, err := exec.Command("go", "build", "-o", path, "turnstile/server").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// benchCommand is the program with arguments.
func benchCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asBench+"=1")
	return cmd
}

// buildServer builds the real server, and returns the command that starts it.
func buildServer(t *testing.T) string {
	t.Helper()
	path, err := builtServer()
	if err != nil {
		t.Fatal(err)
	}
	return path + " -log-level warn -heartbeat 800ms -listen {listen}"
}

// runBench runs the program with a report, and reads it.
func runBench(t *testing.T, args ...string) (r *report, output string, code int) {
	t.Helper()
	folder := t.TempDir()
	cmd := benchCommand(append([]string{"-out", folder}, args...)...)
	out, _ := cmd.CombinedOutput()
	r, err := readReport(filepath.Join(folder, "report.json"))
	if err != nil {
		t.Fatalf("%v; %s", err, out)
	}
	return r, string(out), cmd.ProcessState.ExitCode()
}

func (r *report) want(t *testing.T, part, name string, least, most float64) {
	t.Helper()
	f := r.find(part, name)
	if f == nil || f.Value < least || f.Value > most {
		t.Errorf("%s: %s is %v, want %v to %v", part, name, f, least, most)
	}
}

func (r *report) wantNote(t *testing.T, part, name, note string) {
	t.Helper()
	if f := r.find(part, name); f == nil || !strings.Contains(f.Note, note) {
		t.Errorf("%s: %s is %v, want a note of %q", part, name, f, note)
	}
}

// processCounts are how many generator processes a test tries: bench refuses more than
// there are processors.
func processCounts() []string {
	if runtime.NumCPU() == 1 {
		return []string{"1"}
	}
	return []string{"1", "2"}
}

func TestAllScenarios(t *testing.T) {
	server := buildServer(t)
	for _, processes := range processCounts() {
		t.Run(processes+" processes", func(t *testing.T) {
			t.Parallel()
			checkAllScenarios(t, server, processes)
		})
	}
}

func checkAllScenarios(t *testing.T, server, processes string) {
	r, out, code := runBench(t, append([]string{
		"-server", server, "-conns", "200", "-duration", "2s", "-rate", "500", "-processes", processes, "-in-flight", "3",
		"-connect-rate", "100", // so that churn has free clients also when the machine stands still for a second
	}, scenarioNames()...)...)
	if code != exitOK {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, p := range append(scenarioNames(), "drain") {
		r.want(t, p, "errors", 0, 0)
		if !strings.Contains(out, "\n"+p+" ") {
			t.Errorf("%s is not in the table", p)
		}
	}
	r.want(t, "connect", "connected", 200, 200)
	r.want(t, "connect", "upgrade p99", 0.01, 60_000)
	r.want(t, "idle", "resident memory of the empty server", 1, 100)
	r.want(t, "echo", "messages", 100, 1e9)
	r.want(t, "echo", "server CPU a message", 0.01, 1e6)
	r.want(t, "rate", "messages", 100, 1000)
	r.want(t, "sparse", "messages", 40, 80) // once in five seconds each, for two seconds
	r.wantNote(t, "sparse", "server CPU a message", "too few")
	r.want(t, "heartbeat", "heartbeats", 200, 1000)
	r.want(t, "heartbeat", "between two of a client, p50", 0.1, 5)
	r.want(t, "resume", "resumed", 200, 200)
	r.want(t, "storm", "came back", 180, 180)
	r.want(t, "storm", "time until all are served", 0.001, 60)
	r.want(t, "storm", "answer p99", 0.01, 60_000)
	r.want(t, "storm", "answer p99 of the others, before", 0.01, 60_000)
	r.want(t, "churn", "connections", 50, 1000)
	i := slices.IndexFunc(r.Parts, func(p *part) bool { return p.Name == "echo" })
	if !slices.ContainsFunc(r.Parts[i].Series, func(s sample) bool { return s.BenchCPU > 0.01 }) {
		t.Error("no sample of echo has the generator's CPU")
	}
	if p := r.Parts[i]; p.Latency == nil || len(p.Latency.Points) < 3 || len(p.Series) == 0 {
		t.Errorf("no curve, or no samples, of echo: %+v", p)
	}
}

// TestPageStandsAlone: the page must not ask the network for anything.
func TestPageStandsAlone(t *testing.T) {
	r := &report{Name: "</script><b>", Parts: []*part{{Name: "echo", Errors: map[string]int64{"<i>": 1}}}}
	data, _ := json.Marshal(r)
	page, err := r.page(data)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, bad := range []string{"src=", "href=", "url(", "@import", "</script><b>", "<i>", "ZgotmplZ"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if !strings.Contains(text, "uPlot") || !strings.Contains(text, `"name":"\u003c/script\u003e\u003cb\u003e"`) {
		t.Error("the charts or the data are missing")
	}
}

// answering is a server whose n-th answer on a connection has the count that
// counts says, and which ends the connection when it says 0.
func answering(t *testing.T, counts func(n int) int) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", serverHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		for n := 1; counts(n) > 0; n++ {
			if _, _, err := conn.Read(r.Context()); err != nil {
				return
			}
			answer := fmt.Appendf(nil, `{"count":%d,"session_id":"00000000-0000-0000-0000-000000000000","message":"x"}`, counts(n))
			conn.Write(r.Context(), websocket.MessageText, answer)
		}
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "ws://" + l.Addr().String() + "/"
}

// TestFaultsAreSeen: the generator is only worth what it complains about.
func TestFaultsAreSeen(t *testing.T) {
	f := func(what string, counts func(n int) int) {
		t.Helper()
		r, out, code := runBench(t, "-url", answering(t, counts), "-conns", "3", "-duration", "1s", "echo")
		var seen int64
		for fault, n := range r.Parts[0].Errors {
			if strings.HasPrefix(fault, what) {
				seen += n
			}
		}
		if code != exitFellShort || seen == 0 || !strings.Contains(out, what) {
			t.Errorf("%s: exit code %d, errors %v", what, code, r.Parts[0].Errors)
		}
	}
	f("a gap in the counts", func(n int) int { return n + n/2 })
	f("a count twice", func(n int) int { return n - n/2 })
	f("lost: ", func(n int) int {
		if n > 2 {
			return 0
		}
		return n
	})
}

func TestServerThatIsNotThere(t *testing.T) {
	addr, release, err := netpoll.ReservePort(serverHost)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	r, _, code := runBench(t, "-url", "ws://"+addr+"/", "-conns", "5", "connect")
	if code != exitFellShort || r.Parts[0].Errors["connect: connection refused"] != 5 {
		t.Errorf("exit code %d, errors %v", code, r.Parts[0].Errors)
	}
}

// TestInterrupt: what was measured is not lost.
func TestInterrupt(t *testing.T) {
	for _, processes := range processCounts() {
		for _, scenario := range []string{"echo", "churn"} {
			interruptAfter100(t, processes, scenario)
		}
	}
}

func interruptAfter100(t *testing.T, processes, scenario string) {
	t.Helper()
	var answers atomic.Int64
	enough := make(chan struct{})
	url := answering(t, func(n int) int {
		if answers.Add(1) == 200 { // asked for twice an answer
			close(enough)
		}
		return n
	})
	folder := t.TempDir()
	cmd := benchCommand("-url", url, "-conns", "20", "-duration", "1h", "-out", folder, "-processes", processes, "connect", scenario)
	var text bytes.Buffer
	cmd.Stdout = &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	select {
	case <-enough:
	case <-time.After(time.Minute):
		t.Fatal("it does not begin")
	}
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	r, err := readReport(filepath.Join(folder, "report.json"))
	if err != nil || !r.Cut || cmd.ProcessState.ExitCode() != exitFellShort || !strings.Contains(text.String(), "before its time") {
		t.Fatalf("exit code %d, %v: %s", cmd.ProcessState.ExitCode(), err, text.String())
	}
	if scenario == "echo" {
		r.want(t, "echo", "messages", 1, 1e9)
	} else {
		r.want(t, "churn", "connections", 1, 1e9)
	}
}

func TestLocalAddresses(t *testing.T) {
	loop, err := parseTarget("ws://127.0.0.1:1/", true)
	if err != nil {
		t.Fatal(err)
	}
	far, err := parseTarget("ws://192.0.2.1:1/", true)
	if err != nil {
		t.Fatal(err)
	}
	for index, want := range map[int]bool{0: false, portsEach - 1: false, portsEach: true, 5 * portsEach: true} {
		if _, ok := loop.localAddress(index); ok != want {
			t.Errorf("client %d has an address of its own: %v", index, ok)
		}
		if _, ok := far.localAddress(index); ok {
			t.Errorf("client %d of a far server has a loopback address", index)
		}
	}
}

// TestManyPorts: more connections than one address has ports would be slow
// here; that the other addresses work is enough.
func TestOtherLocalAddress(t *testing.T) {
	target, err := parseTarget(answering(t, func(n int) int { return n }), true)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := target.dial(3 * portsEach)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if !until(context.Background(), time.Minute, func() bool {
		_, err := syscall.Getpeername(fd)
		return err == nil
	}) {
		t.Fatal("not connected")
	}
	from, err := syscall.Getsockname(fd)
	if in4, ok := from.(*syscall.SockaddrInet4); err != nil || !ok || in4.Addr != [4]byte{127, 0, 1, 3} {
		t.Errorf("from %v, %v", from, err)
	}
}

// TestPeers: two servers in turn, a peer that is not built, and a table of both.
func TestPeers(t *testing.T) {
	server := strings.TrimSuffix(buildServer(t), " -heartbeat 800ms")
	folder, out := t.TempDir(), t.TempDir()
	command := strings.Fields(server)
	peers := []peer{{Name: "other", What: "the same", Run: command}, {Name: "missing", Run: []string{".build/missing"}, Needs: "luck"}}
	data, _ := json.Marshal(peers)
	if err := os.WriteFile(filepath.Join(folder, "peers.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := benchCommand("peers", "-peers", folder, "-server", server, "-rounds", "2", "-conns", "100",
		"-duration", "200ms", "-out", out).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "| other |") || !strings.Contains(string(text), "skipped: missing (needs luck)") {
		t.Fatalf("%v: %s", err, text)
	}
	var b bout
	data, err = os.ReadFile(filepath.Join(out, "peers.json"))
	if err != nil || json.Unmarshal(data, &b) != nil || len(b.Results) != 2 {
		t.Fatalf("%v: %s", err, data)
	}
	for _, r := range b.Results {
		for _, c := range columns {
			// So few messages may be too few for a figure of what each has cost.
			if n := len(r.Values[c.Title]); n != 2 && c.Unit != "µs" {
				t.Errorf("%s: %s has %d values", r.Name, c.Title, n)
			}
		}
		if len(r.Values["100 × 16: CPU"]) == 0 {
			t.Errorf("%s: no figure of 100 × 16's CPU", r.Name)
		}
		if len(r.Errors) > 0 {
			t.Errorf("%s: %v", r.Name, r.Errors)
		}
	}
	page, err := os.ReadFile(filepath.Join(out, "peers.html"))
	if err != nil || strings.Count(string(page), `class="ours"`) != len(b.Results[0].Values) || strings.Contains(string(page), "ZgotmplZ") {
		t.Errorf("the page: %v, %d bars of ours", err, strings.Count(string(page), `class="ours"`))
	}
}
