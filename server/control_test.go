package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/proto"
	"turnstile/server/handover"
	"turnstile/server/oracle"
	"turnstile/server/redistest"
)

// controlled starts a server with a control socket.
func controlled(t *testing.T, flags ...string) (p *process, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	return startServer(t, append(flags, "-control", path)...), path
}

func TestControlStatus(t *testing.T) {
	p, path := controlled(t)
	p.open("/ws/chat/")
	newWire(t, p.dial()) // counts from its accept
	var got map[string]any
	eventually(t, "both connections are counted", func() bool { got = command(t, path, "status"); return got["connections"] == 2.0 })
	want := map[string]any{"pid": float64(p.cmd.Process.Pid), "ready": true, "draining": false, "connections": 2.0, "sessions": 1.0}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
	if uptime, ok := got["uptime_ms"].(float64); !ok || uptime < 0 {
		t.Errorf("uptime_ms is %v", got["uptime_ms"])
	}
}

func TestControlDrain(t *testing.T) {
	p, path := controlled(t)
	w := p.open("/ws/chat/")
	w.send(text("a"))
	w.wantCount(1, "a")
	if got := command(t, path, "drain"); got["error"] != nil || got["pid"] == nil {
		t.Errorf("drain answers %v", got)
	}
	w.wantShutdown(1)
	w.conn.Close()
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d; %s", code, p.stderr.String())
	}
	if reason := p.waitLog("drain_started")["reason"]; reason != "drain" {
		t.Errorf("the drain's reason is %v", reason)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's file is left: %v", err)
	}
}

func TestControlRefusesWhatItDoesNotKnow(t *testing.T) {
	p, path := controlled(t)
	f := func(line string, wants ...string) {
		t.Helper()
		got := fmt.Sprint(command(t, path, line)["error"])
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%.20q is answered with %q, want %q in it", line, got, want)
			}
		}
	}
	for _, line := range []string{"", "stop", "status now", "drain x", "prepare", "take-over", "STATUS"} {
		f(line, strconv.Quote(line), "must be status, drain, prepare PATH or take-over PATH")
	}
	f("prepare "+path+".nobody", "cannot take over from "+strconv.Quote(path+".nobody"), "nobody listens there")
	f("prepare /etc/passwd", `cannot take over from "/etc/passwd": that is no socket: give the path of the running server's -control socket`)
	if got := command(t, path, "status"); got["connections"] != 0.0 || got["draining"] != false {
		t.Errorf("the status is %v", got)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
}

// TestControlIsTheUsers: the socket's mode keeps others out, and where it does
// not (root sees to that here) their user ID does.
func TestControlIsTheUsers(t *testing.T) {
	p, path := controlled(t)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket's file is %v, %v; want mode 0600", info, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("to become another user takes root")
	}
	dir, err := os.MkdirTemp("", "control") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, public := filepath.Join(dir, "server"), filepath.Join(dir, "control")
	if text, err := os.ReadFile(os.Args[0]); err != nil || os.WriteFile(binary, text, 0o755) != nil || os.Chmod(dir, 0o755) != nil {
		t.Fatal("cannot copy the server", err)
	}
	if err := os.Rename(path, public); err != nil {
		t.Fatal(err)
	}
	asNobody := func() string {
		cmd := exec.Command(binary, "-control", public, "-tell", "drain")
		cmd.Env, cmd.Dir = append(os.Environ(), asServer+"=1"), dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("another user is obeyed: %s", out)
		}
		return string(out)
	}
	if got := asNobody(); !strings.Contains(got, "permission denied") {
		t.Errorf("another user is told %q", got)
	}
	if err := os.Chmod(public, 0o666); err != nil {
		t.Fatal(err)
	}
	asNobody()
	if got := p.waitLog("control_refused")["error"]; got != "user 65534 may not control a process of user 0" {
		t.Errorf("the log says %q", got)
	}
	if got := command(t, public, "status"); got["draining"] != false {
		t.Errorf("the status is %v", got)
	}
}

func TestControlSocketsPlace(t *testing.T) {
	refused := func(path, why string, flags ...string) {
		t.Helper()
		p := startProcess(t, nil, append(flags, "-listen", testHost+":0", "-control", path)...)
		if code := p.wait(); code != exitFailure || !strings.Contains(p.stderr.String(), why) || !strings.Contains(p.stderr.String(), path) {
			t.Errorf("exit code %d, %q; want %q", code, p.stderr.String(), why)
		}
	}
	first, path := controlled(t)
	refused(path, "another process listens there")
	if got := command(t, path, "status"); got["pid"] != float64(first.cmd.Process.Pid) {
		t.Errorf("the first server's status is %v", got)
	}
	first.signal(syscall.SIGKILL)
	first.wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal("a killed server leaves no file behind:", err)
	}
	second := startServer(t, "-control", path)
	if got := command(t, path, "status"); got["pid"] != float64(second.cmd.Process.Pid) {
		t.Errorf("the status is %v; the stale socket's place was not taken", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(file, "is no socket")
	if text, err := os.ReadFile(file); string(text) != "mine" {
		t.Errorf("the file is now %q, %v", text, err)
	}
	refused(filepath.Join(file, "control"), "not a directory")
	refused(filepath.Join(t.TempDir(), "missing", "control"), "no such file or directory")
}

// tellAs runs a server that tells another one, as an operator does.
func tellAs(flags ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(os.Args[0], flags...)
	cmd.Env = append(os.Environ(), asServer+"=1")
	var out, complaint output
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.Run()
	return out.String(), complaint.String(), cmd.ProcessState.ExitCode()
}

// The longest path that -control takes can be bound, with whatever number the process has.
func TestControlSocketsLongestPath(t *testing.T) {
	t.Chdir(t.TempDir())
	path := strings.Repeat("c", longestSocketPath)
	for checkControlPath(path) != nil {
		path = path[1:]
	}
	if len(path)+len(".4194304") > longestSocketPath { // pid_max of a large machine: proc(5)
		t.Errorf("-control takes %d bytes, to which a process adds its number", len(path))
	}
	c, err := openControl(&server{}, path, "")
	if err != nil {
		t.Fatal(err)
	}
	c.close()
}

func TestTell(t *testing.T) {
	p, path := controlled(t)
	f := func(wantOut, wantErr string, wantCode int, flags ...string) {
		t.Helper()
		out, complaint, code := tellAs(flags...)
		if code != wantCode || !strings.HasPrefix(out, wantOut) || (out == "") != (wantOut == "") ||
			!strings.HasPrefix(complaint, wantErr) || (complaint == "") != (wantErr == "") {
			t.Errorf("%q: exit code %d, %q, %q; want %d, %q, %q", flags, code, out, complaint, wantCode, wantOut, wantErr)
		}
	}
	f(fmt.Sprintf(`{"pid":%d,"ready":true,`, p.cmd.Process.Pid), "", exitOK, "-control", path, "-tell", "status")
	f("", "server: cannot take over from", exitFailure, "-control", path, "-tell", "take-over "+path+".x")
	f("", "server: -tell: nobody answers at -control", exitFailure, "-control", path+".x", "-tell", "status")
	f("", "server: -tell needs -control", exitUsage, "-tell", "status")
	other, otherPath := controlled(t)
	other.open("/ws/chat/")
	f(`{"would_hand_over":true,"connections":1}`+"\n", "", exitOK, "-control", path, "-tell", "prepare "+otherPath)
	f(`{"pid":`, "", exitOK, "-control", path, "-tell", "drain")
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	f("", "server: -tell: nobody answers at -control", exitFailure, "-control", path, "-tell", "status")
}

// A -take-over-from that can be no server's is a slip of whoever wrote it: the
// start does not go on without.
func TestTakeOverFromNoSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir} {
		p := startProcess(t, nil, "-listen", testHost+":0", "-take-over-from", path)
		want := fmt.Sprintf("server: cannot take over from %q: that is no socket: give the path of the running server's -control socket\n", path)
		if code := p.wait(); code != exitFailure || p.stderr.String() != want {
			t.Errorf("exit code %d, %q; want %q", code, p.stderr.String(), want)
		}
	}
}

func TestNobodyToTakeOverFrom(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nobody")
	stale, path := controlled(t)
	stale.signal(syscall.SIGKILL)
	stale.wait()
	for _, from := range []string{missing, path} {
		p := startServer(t, "-take-over-from", from, "-control", from)
		if got := p.waitLog("nobody_to_take_over_from"); got["path"] != from || got["level"] != "WARN" {
			t.Errorf("the log says %v", got)
		}
		w := p.open("/ws/chat/?session_id=" + someSession) // and no claim waits for anybody
		w.send(text("a"))
		w.wantCount(1, "a")
		if got := command(t, from, "status"); got["ready"] != true {
			t.Errorf("the status is %v", got)
		}
	}
}

// startPrepared starts a server beside p's that is prepared to take over from it.
func startPrepared(t *testing.T, path string, flags ...string) (p *process, own string) {
	t.Helper()
	own = path + ".next"
	p = startServer(t, append(flags, "-control", own)...)
	if got := command(t, own, "prepare "+path); got["error"] != nil {
		t.Fatalf("prepare: %v", got)
	}
	return p, own
}

// claiming asks for a session, and does not wait.
func (p *process) claiming(id string) *wire {
	p.t.Helper()
	w := newWire(p.t, p.dial())
	w.write([]byte(upgradeRequest("/ws/chat/?session_id="+id, v2Header)))
	return w
}

const otherSession = "2df8902a-2987-496f-a19a-937f834b88d2"

// TestClaimsWaitForATakeover: while a takeover is prepared, nobody but the old
// server knows whether a session is new. Its end is the answer, however it ends.
func TestClaimsWaitForATakeover(t *testing.T) {
	ends := map[string]struct {
		end   func(old *process, path, own string)
		count uint64
	}{
		"the takeover": {func(old *process, path, own string) {
			if got := command(t, own, "take-over "+path); got["error"] != nil || got["unheld_sessions"] != 1.0 || got["connections"] != 0.0 {
				t.Errorf("take-over answers %v", got)
			}
			if code := old.wait(); code != exitOK {
				t.Errorf("the old server ends with exit code %d", code)
			}
		}, 1},
		"the old server's death": {func(old *process, path, own string) {
			old.signal(syscall.SIGKILL)
			old.wait()
		}, 0},
	}
	for name, test := range ends {
		t.Run(name, func(t *testing.T) {
			old, path := controlled(t)
			w := old.open("/ws/chat/?session_id=" + someSession)
			w.send(text("a"), text("goodbye"))
			w.wantCount(1, "a")
			w.reply()
			w.wantClose(proto.StatusNormalClosure)
			next, own := startPrepared(t, path, "-store-timeout", "1m")
			known, unknown := next.claiming(someSession), next.claiming(otherSession)
			minted := next.open("/ws/chat/", v2Header) // a session of its own
			minted.wantSession(0, false)
			eventually(t, "both claims wait", func() bool { return command(t, own, "status")["connections"] == 3.0 })
			if got := command(t, own, "status")["sessions"]; got != 1.0 {
				t.Errorf("%v sessions are there while the claims wait, want the minted one", got)
			}
			test.end(old, path, own)
			known.wantUpgraded()
			known.wantSession(test.count, test.count > 0)
			unknown.wantUpgraded()
			unknown.wantSession(0, false)
		})
	}
}

// TestPrepareTwice: a takeover that is prepared is nobody else's to replace.
func TestPrepareTwice(t *testing.T) {
	first, firstPath := controlled(t)
	second, secondPath := controlled(t)
	w := first.open("/ws/chat/")
	next, own := startPrepared(t, firstPath, "-store-timeout", "1m")
	waiting := next.claiming(someSession)
	eventually(t, "the claim waits", func() bool { return command(t, own, "status")["connections"] == 1.0 })
	refused := func(path, line, want string) {
		t.Helper()
		if got := fmt.Sprint(command(t, path, line)["error"]); !strings.Contains(got, "refused (busy): "+want) {
			t.Errorf("%q is answered with %q, want %q in it", line, got, want)
		}
	}
	prepared := fmt.Sprintf("a takeover from %q is prepared: begin it with take-over, or wait, it is forgotten 30s after", firstPath)
	refused(own, "prepare "+firstPath, prepared)
	refused(own, "prepare "+secondPath, prepared)
	refused(own, "take-over "+secondPath, prepared)
	refused(secondPath, "prepare "+firstPath, "another handover is under way")
	refused(secondPath, "prepare "+own, "it takes over from another server itself")
	if got := command(t, own, "take-over "+firstPath); got["connections"] != 1.0 {
		t.Errorf("take-over answers %v", got)
	}
	waiting.wantUpgraded()
	waiting.wantSession(0, false)
	w.send(text("a"))
	w.wantCount(1, "a")
	if code := first.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	second.open("/ws/chat/")
	if got := command(t, own, "take-over "+secondPath); got["connections"] != 1.0 { // the place is free again
		t.Errorf("take-over answers %v", got)
	}
	if code := second.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestPrepareAtOnce: of many that prepare at the same time one does, and the others are
// told why not.
func TestPrepareAtOnce(t *testing.T) {
	_, path := controlled(t)
	_, own := controlled(t)
	answers := make(chan string)
	for range 8 {
		go func() { answers <- fmt.Sprint(tell(own, "prepare "+path, io.Discard)) }()
	}
	prepared := 0
	for range 8 {
		if got := <-answers; got == fmt.Sprint(nil) {
			prepared++
		} else if !strings.Contains(got, "refused (busy): a takeover from") {
			t.Error(got)
		}
	}
	if prepared != 1 {
		t.Errorf("%d are prepared, want 1", prepared)
	}
}

// preparedForEnv, in the environment, is how long a server stays prepared.
const preparedForEnv = "TURNSTILE_TEST_PREPARED_FOR"

func shortenPrepared() {
	if d, err := time.ParseDuration(os.Getenv(preparedForEnv)); err == nil {
		preparedFor = d
	}
}

// TestPrepareForgotten: a takeover that nobody begins ends on both sides.
func TestPrepareForgotten(t *testing.T) {
	t.Setenv(preparedForEnv, "100ms")
	old, path := controlled(t)
	old.open("/ws/chat/")
	next, _ := startPrepared(t, path, "-store-timeout", "1m")
	waiting := next.claiming(someSession) // before or after: it is answered
	if got := next.waitLog("takeover_forgotten"); got["from"] != path {
		t.Errorf("the log says %v", got)
	}
	old.waitLog("handover_not_started")
	waiting.wantUpgraded()
	waiting.wantSession(0, false)
	_, third := controlled(t)
	eventually(t, "the old server is free for others", func() bool {
		return command(t, third, "take-over "+path)["connections"] == 1.0
	})
	if code := old.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestControlWaitsForTheEngine: a server that is asked before it serves answers when it
// does. It could not give its listeners away before.
func TestControlWaitsForTheEngine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	config, err := parseConfig([]string{"-listen", testHost + ":0", "-control", path, "-workers", "1"}, nil, 1, 1<<10, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	nowhere, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	log, queue := newLogger(config, descriptor(nowhere.Fd()))
	defer queue.Close()
	s, err := newServer(config, log, queue)
	if err != nil {
		t.Fatal(err)
	}
	asking, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	listener := s.control.Load().listener
	listener.SetDeadline(time.Now().Add(patience / 10))
	early, err := listener.Accept() // it waits there, unless somebody serves it already
	if err != nil {
		t.Fatal("the server obeys before it serves:", err)
	}
	early.Close()
	listener.SetDeadline(time.Time{})
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	x := handover.NewExchange(conn.(*net.UnixConn))
	io.WriteString(conn, commandHandover+"\n")
	go func() { ended <- s.run(signals) }()
	if got, err := x.Greet(s.hello()); err != nil || !slices.Equal(got.Listeners, config.Listen) {
		t.Errorf("the server answers %+v, %v, want the listeners %q", got, err, config.Listen)
	}
	x.Close()
	signals <- syscall.SIGTERM
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestSignalDuringAHandover: a SIGTERM to the old server while its connections
// go ends it in time, and what has not gone is drained.
func TestSignalDuringAHandover(t *testing.T) {
	redis := redistest.Start(t)
	chain := startChain(t, "-redis", redis.URL())
	c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
	for range 3 {
		successor := chain.startSuccessor()
		chain.current.waitLog("handover_started")
		chain.current.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
		if code := chain.current.wait(); code != exitOK {
			t.Errorf("the old server ends with exit code %d: %s %v", code, chain.current.stderr.String(), chain.current.logged("server_failed"))
		}
		successor.waitLog("takeover_finished")
		chain.current = successor
		c.WaitRounds(2)
	}
	c.Settle()
}

// TestHandoverFailsAtItsEnd: when the last batch, of the sessions, does not go,
// the old server is there for new clients as before.
func TestHandoverFailsAtItsEnd(t *testing.T) {
	chain := startChain(t)
	w := chain.open("/ws/chat/?session_id=" + someSession)
	w.send(text("a"), text("goodbye"))
	w.wantCount(1, "a")
	w.reply()
	w.wantClose(proto.StatusNormalClosure)
	if code := chain.startSuccessor(brokenAt + "=take 2").wait(); code != -1 { // 1 is the listeners
		t.Errorf("the new server was not killed, it ends with exit code %d", code)
	}
	chain.current.waitLog("handover_failed")
	chain.open("/ws/chat/?session_id="+someSession, v2Header).wantSession(1, true)
}
