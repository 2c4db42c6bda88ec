package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServerEnds: what was measured until then is reported, with how it ended.
func TestServerEnds(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	script := filepath.Join(t.TempDir(), "serve")
	text := fmt.Sprintf("#!/bin/sh\necho $$ >%s\nexec %s\n", pidFile, strings.Replace(buildServer(t), listenPlace, "$1", 1))
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	go func() { killed <- killWhenBusy(t.Context(), pidFile) }()
	r, out, code := runBench(t, "-server", script+" {listen}", "-conns", "10", "-duration", "1h", "connect", "echo")
	if err := <-killed; err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code != exitFellShort || r.Failed != "the server ended in the middle: signal: killed" || !strings.Contains(out, r.Failed) {
		t.Errorf("exit code %d, failed %q: %s", code, r.Failed, out)
	}
	r.want(t, "connect", "connected", 10, 10)
	r.want(t, "echo", "messages", 10, 1e9)
	r.want(t, "echo", "errors", 10, 10)
}

// killWhenBusy kills the process whose id is in a file when it has worked for
// more than connections cost.
func killWhenBusy(ctx context.Context, pidFile string) error {
	var pid int
	busy := until(ctx, time.Minute, func() bool {
		text, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		u, err := usageOf(pid)
		return err == nil && u.CPU > 300*time.Millisecond
	})
	if !busy {
		return fmt.Errorf("process %d is not busy", pid)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// startServer starts the real server on a unix socket, and returns its URL and
// process.
func startServer(t *testing.T, more ...string) (url, pid string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	words := append(strings.Fields(strings.Replace(buildServer(t), listenPlace, "unix:"+socket, 1)), append(more, "-heartbeat", "30s")...)
	cmd := exec.Command(words[0], words[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	target, err := parseTarget("unix:"+socket, true)
	if err != nil {
		t.Fatal(err)
	}
	if !until(t.Context(), 30*time.Second, func() bool {
		fd, err := target.dial(0)
		if err == nil {
			syscall.Close(fd)
		}
		return err == nil
	}) {
		t.Fatal("the server does not listen")
	}
	return "unix:" + socket + ":/ws/chat/", strconv.Itoa(cmd.Process.Pid)
}

func TestUnixSocket(t *testing.T) {
	url, pid := startServer(t)
	r, out, code := runBench(t, "-url", url, "-pid", pid, "-conns", "50", "-duration", "1s", "connect", "echo", "resume")
	if code != exitOK {
		t.Errorf("exit code %d: %s", code, out)
	}
	r.want(t, "connect", "connected", 50, 50)
	r.want(t, "echo", "server CPU a message", 0.01, 1e6)
	r.want(t, "resume", "resumed", 50, 50)
}

// TestMoreThanTheSocketTakes: a socket that is full for a moment is no fault, on
// neither side.
func TestMoreThanTheSocketTakes(t *testing.T) {
	url, _ := startServer(t, "-max-message", "1000000")
	for _, load := range [][]string{{"-in-flight", "5000", "-size", "1000"}, {"-in-flight", "3", "-size", "500000"}} {
		r, out, code := runBench(t, append([]string{"-url", url, "-conns", "2", "-duration", "200ms"}, append(load, "echo")...)...)
		if code != exitOK {
			t.Errorf("%q: exit code %d: %s", load, code, out)
		}
		r.want(t, "echo", "messages", 6, 1e9)
	}
}

// TestRateOfOneClient: no message is dealt to a loop without a client.
func TestRateOfOneClient(t *testing.T) {
	url, _ := startServer(t)
	r, _, _ := runBench(t, "-url", url, "-conns", "1", "-rate", "200", "-duration", "1s", "rate")
	r.want(t, "rate", "messages", 110, 200)
}

// TestRateBeyondReach: what could not be sent in time is told, and takes no
// memory.
func TestRateBeyondReach(t *testing.T) {
	url, _ := startServer(t)
	r, out, _ := runBench(t, "-url", url, "-conns", "4", "-rate", "1e7", "-duration", "1s", "rate")
	limits := strings.Join(r.Parts[0].Limits, "; ")
	if !strings.Contains(limits, "of 10,000,000 messages") || !strings.Contains(out, "the generator fell behind") {
		t.Errorf("limits %q: %s", limits, out)
	}
}

// TestLimits: the report says where the generator, the machine or somebody else
// was measured.
func TestLimits(t *testing.T) {
	r := &run{ctx: t.Context(), options: &options{Loops: 2, Processes: 1}, report: &report{Machine: machine{Cores: 4}}}
	f := func(want string, generator, server, others time.Duration, late time.Duration) {
		t.Helper()
		o := &Outcome{Seen: newSeen(), Counters: Counters{At: time.Second, CPU: generator}}
		o.Latency.record(10 * time.Millisecond)
		o.Late.record(late)
		u := usage{Known: true, CPU: server}
		got := strings.Join(r.limits(Step{Kind: stepEcho}, o, u, generator+server+others), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("generator %v, server %v, others %v, late %v: %q, want %q", generator, server, others, late, got, want)
		}
	}
	const none, ms = time.Duration(0), time.Millisecond
	f("", 1700*ms, 1900*ms, 300*ms, ms)
	f("the generator was busy all the time", 1900*ms, none, none, none)
	f("server and generator together used 3.90 of 4 processors", 1700*ms, 2200*ms, none, none)
	f("other programs used 0.50 of 4 processors meanwhile", 1700*ms, 100*ms, 500*ms, none)
	f("the generator's own lateness is 6.00 of the 10.0 ms", none, none, none, 6*ms)
}

// wantRefusal runs bench, which has to end with one line and no report.
func wantRefusal(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := benchCommand(args...).CombinedOutput()
	if text := string(out); err == nil || !strings.Contains(text, want) || strings.Count(text, "\n") != 1 {
		t.Errorf("bench %q: %v, want one line with %q: %s", args, err, want, text)
	}
}

// TestProcessThatIsNoServer: the figures of somebody else's process are no
// figures of the server.
func TestProcessThatIsNoServer(t *testing.T) {
	url, pid := startServer(t)
	idler := exec.Command("sleep", "1h")
	if err := idler.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idler.Process.Kill(); idler.Wait() })
	wantRefusal(t, "is sleep, which listens on no socket", "-url", url, "-pid", strconv.Itoa(idler.Process.Pid), "connect")
	wantRefusal(t, "-pid 4194305: there is no such process", "-url", url, "-pid", "4194305", "connect") // beyond PID_MAX_LIMIT
	if os.Getuid() == 0 {
		wantRefusalAsNobody(t, "-pid "+pid+" is a process of another user", "-url", url, "-pid", pid, "connect")
	}
}

// wantRefusalAsNobody is wantRefusal of a bench that has no privilege.
func wantRefusalAsNobody(t *testing.T, want string, args ...string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "bench") // t.TempDir is for this user only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "bench")
	if err := errors.Join(os.WriteFile(path, program, 0o755), os.Chmod(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := benchCommand(args...)
	cmd.Path = path
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("bench %q as nobody: %v, want %q: %s", args, err, want, out)
	}
}

// TestServerBehindAnother: the server may stand behind a proxy, which is what
// the URL leads to; the report says that it is not the same.
func TestServerBehindAnother(t *testing.T) {
	url := answering(t, func(n int) int { return n }) // by this process
	_, pid := startServer(t)
	r, out, _ := runBench(t, "-url", url, "-pid", pid, "-conns", "2", "connect")
	if !strings.Contains(r.Note, "does not listen on "+url+" itself") || !strings.Contains(out, "bench: "+r.Note) {
		t.Errorf("note %q: %s", r.Note, out)
	}
	r, _, _ = runBench(t, "-url", url, "-pid", strconv.Itoa(os.Getpid()), "-conns", "2", "connect")
	if r.Note != "" {
		t.Errorf("note %q on the server itself", r.Note)
	}
}

// TestMoreThanTheServerHolds: a load that it cannot hold ends the run, before
// it begins or at the first scenario.
func TestMoreThanTheServerHolds(t *testing.T) {
	server := buildServer(t)
	shell := filepath.Join(t.TempDir(), "few")
	script := "#!/bin/sh\nulimit -n 300\nexec " + strings.Replace(server, listenPlace, "$1", 1) + "\n"
	if err := os.WriteFile(shell, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, "-conns is 301, but the server may have no more than 300 files open",
		"-server", shell+" {listen}", "-conns", "301", "connect")
	r, out, code := runBench(t, "-server", server+" -max-connections 5", "-conns", "8", "connect", "echo")
	want := "3 of 8 connections could not be opened: not upgraded: HTTP/1.1 503"
	if code != exitFellShort || !strings.Contains(r.Failed, want) || !strings.Contains(out, want) {
		t.Errorf("exit code %d, failed %q: %s", code, r.Failed, out)
	}
	if len(r.Parts) != 1 {
		t.Errorf("it went on with %s", r.Parts[1].Name)
	}
}
