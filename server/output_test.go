package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody outside who takes the server's output away, or does not take it, hurts a client.

// countOnce sends one message on each connection. Each is answered with count.
func countOnce(clients []*wire, count uint64) {
	for _, w := range clients {
		w.send(text("x"))
	}
	for _, w := range clients {
		w.wantCount(count, "x")
	}
}

func (p *process) openMany(n int) (clients []*wire) {
	p.t.Helper()
	for range n {
		clients = append(clients, p.open("/ws/chat/"))
	}
	return clients
}

// logUntilDropped makes a server that logs refusals do so, with long lines, until further
// ones are dropped.
func (p *process) logUntilDropped() {
	p.t.Helper()
	refused := upgradeRequest("/ws/chat/", "Origin: http://"+strings.Repeat("a", 6000)+".example")
	dropped := func() float64 { return p.metric("websocket_log_dropped_total") }
	before := dropped()
	eventually(p.t, "lines of the log are dropped", func() bool {
		for range 100 {
			w := newWire(p.t, p.dial())
			if response := w.request(refused); response.StatusCode != 403 {
				p.t.Fatal(response.Status)
			}
			w.conn.Close()
		}
		return dropped() > before
	})
}

// wantHealthy expects the server to answer its probes, and each client.
func (p *process) wantHealthy(clients []*wire, count uint64) {
	p.t.Helper()
	for _, path := range []string{"/healthz/", "/readyz/"} {
		if status, body, _ := p.get(path); status != 200 {
			p.t.Errorf("%s: %d %s", path, status, body)
		}
	}
	countOnce(clients, count)
}

// wantDrain ends the server with SIGTERM.
func (p *process) wantDrain(clients []*wire, total uint64) {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	for _, w := range clients {
		w.wantShutdown(total)
		w.conn.Close()
	}
	eventually(p.t, "the process ends", p.isZombie)
}

// isZombie reports whether the process has ended, when nobody reads its output to the
// end: see State in proc(5).
func (p *process) isZombie() bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	return err != nil || strings.Contains(string(state), "State:\tZ")
}

func (p *process) wantExitOK() {
	p.t.Helper()
	if code := p.wait(); code != exitOK {
		p.t.Errorf("exit code %d; %s", code, p.stderr.String())
	}
}

// TestLogThatNobodyReads: a reader of the log that stands still holds nobody up, neither
// a client nor a probe nor the end, and hears later how much it has missed.
func TestLogThatNobodyReads(t *testing.T) {
	p := startServer(t, "-log-level", "debug")
	clients := p.openMany(50)
	p.stdout.Lock()
	p.logUntilDropped()
	p.wantHealthy(clients, 1)
	p.stdout.Unlock()
	told := p.waitLog("log_lines_dropped")
	if n, ok := told["dropped"].(float64); !ok || n < 1 || told["level"] != "WARN" || told["timestamp"] == nil || told["service"] == nil {
		t.Errorf("the log says %v", told)
	}
	p.wantHealthy(clients, 2)
	p.stdout.Lock()
	p.logUntilDropped()
	p.wantHealthy(clients, 3)
	p.wantDrain(clients, 3)
	p.stdout.Unlock()
	p.wantExitOK()
	if n := len(p.logged("not_json")); n > 1 { // the last one, where the pipe was full
		t.Errorf("%d lines are torn", n)
	}
}

// TestLogWithoutAReader: journald restarts, head(1) has enough.
func TestLogWithoutAReader(t *testing.T) {
	p := startServer(t, "-log-level", "debug")
	clients := p.openMany(50)
	p.stdout.pipe.Close()
	p.logUntilDropped()
	p.wantHealthy(clients, 1)
	p.logUntilDropped()
	p.wantHealthy(clients, 2)
	p.wantDrain(clients, 2)
	p.wantExitOK()
}

// TestLogOnATerminalThatStandsStill: as after ^S.
func TestLogOnATerminalThatStandsStill(t *testing.T) {
	terminal, screen := openTerminal(t)
	cmd := exec.Command(os.Args[0], "-listen", testHost+":0", "-log-level", "debug")
	cmd.Env = append(os.Environ(), asServer+"=1")
	cmd.Stdout = terminal
	p := startQuiet(t, cmd)
	page := regexp.MustCompile(`http://(` + testHost + `:\d+)/`)
	eventually(t, "the terminal shows where the server listens", func() bool { return page.MatchString(screen.String()) })
	p.addr = page.FindStringSubmatch(screen.String())[1]
	clients := p.openMany(50)
	if err := unix.IoctlSetInt(int(terminal.Fd()), unix.TCXONC, unix.TCOOFF); err != nil {
		t.Fatal(err)
	}
	p.logUntilDropped()
	p.wantHealthy(clients, 1)
	p.wantDrain(clients, 1)
	p.wantExitOK()
}

// TestStandardErrorThatNobodyReads: the line that says why the start has failed keeps
// no process from ending, nor changes its exit code.
func TestStandardErrorThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fd := int(w.Fd())
	unix.SetNonblock(fd, true)
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 4096))
	}
	unix.SetNonblock(fd, false)
	f := func(what string) {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-listen", "192.0.2.1:1")
		cmd.Env = append(os.Environ(), asServer+"=1")
		cmd.Stderr = w
		if code := startQuiet(t, cmd).wait(); code != exitFailure {
			t.Errorf("with standard error %s: exit code %d", what, code)
		}
	}
	f("full")
	r.Close()
	f("gone")
}

// startQuiet starts a server whose output is the command's matter.
func startQuiet(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, exited: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.end)
	return p
}

// openTerminal returns a terminal, and what stands on its screen: see pty(7).
func openTerminal(t testing.TB) (terminal *os.File, screen *output) {
	t.Helper()
	other, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	if err := unix.IoctlSetPointerInt(int(other.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(other.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	screen = &output{}
	go io.Copy(screen, other) // until the terminal is closed
	return terminal, screen
}

// A death has much to say. It does not wait for somebody who does not read that.
func TestDeathWithAFullStandardError(t *testing.T) {
	unread, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	defer stderr.Close()
	if _, err := unix.FcntlInt(stderr.Fd(), unix.F_SETPIPE_SZ, 1); err != nil { // a page: the report is longer
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-listen", testHost+":0", "-log-format", "json")
	cmd.Env = append(os.Environ(), asServer+"=1")
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	bufio.NewReader(stdout).ReadBytes('\n') // it has started
	cmd.Process.Signal(syscall.SIGQUIT)     // a panic writes in the same way
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(patience / 4):
		t.Error("it does not end")
	}
}
