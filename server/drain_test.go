package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/proto"
	"turnstile/server/redistest"
)

// wantShutdown expects the goodbye of a drain and the close behind it.
func (w *wire) wantShutdown(total uint64) reply {
	w.t.Helper()
	r := w.answer()
	if !r.Bye || r.Total != total || r.Reason != "server_shutdown" || !r.Inflight {
		w.t.Fatalf("got %+v, want the bye of a shutdown with total %d", r, total)
	}
	w.wantClose(proto.StatusGoingAway)
	return r
}

func TestDrain(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		p := startServer(t, "-drain-timeout", "30s")
		first, second := p.open("/ws/chat/"), p.open("/ws/chat/", v2Header)
		first.send(text("a"), text("b"))
		first.wantCount(1, "a")
		first.wantCount(2, "b")
		second.reply()
		p.signal(signal)
		if r := first.wantShutdown(2); r.RetryMS != nil {
			t.Errorf("retry_after_ms %d for a client of the first version", *r.RetryMS)
		}
		if r := second.wantShutdown(0); r.RetryMS == nil || *r.RetryMS < 0 || *r.RetryMS > 30_000 {
			t.Errorf("retry_after_ms %v", r.RetryMS)
		}
		first.conn.Close()
		second.conn.Close()
		if code := p.wait(); code != exitOK {
			t.Errorf("exit code %d; %s", code, p.stderr.String())
		}
		if cut := p.waitLog("server_stopped")["cut"]; cut != 0.0 {
			t.Errorf("%v connections were cut", cut)
		}
	}
}

// whileStopped holds the process still, so that what is sent meanwhile has
// arrived before the signal that follows is handled.
func (p *process) whileStopped(act func()) {
	p.t.Helper()
	goOn := p.stop()
	act()
	goOn()
}

// unacknowledged is how many bytes of a client the server's kernel does not have yet: see tcp(7).
func (w *wire) unacknowledged() (n int) {
	w.t.Helper()
	conn, err := w.conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestMessagesBeforeTheDrainAreAnswered(t *testing.T) {
	p := startServer(t)
	var clients []*wire
	for range 20 {
		clients = append(clients, p.open("/ws/chat/"))
	}
	p.whileStopped(func() {
		for _, w := range clients {
			w.send([]byte(strings.Repeat(string(text("in time")), 10)))
		}
		for _, w := range clients {
			eventually(t, "all of it has arrived", func() bool { return w.unacknowledged() == 0 })
		}
		p.signal(syscall.SIGTERM)
	})
	for _, w := range clients {
		for i := range uint64(10) {
			w.wantCount(i+1, "in time")
		}
		w.wantShutdown(10)
		w.conn.Close()
	}
	p.wait()
}

func TestNewClientsDuringTheDrain(t *testing.T) {
	p := startServer(t, "-drain-timeout", "10m", "-write-timeout", "10m")
	holder := p.openDeaf() // the drain waits for it
	p.signal(syscall.SIGTERM)
	p.waitLog("drain_started")
	eventually(t, "the instance is not ready", func() bool { status, _, _ := p.get("/readyz/"); return status == 503 })
	w := newWire(t, p.dial())
	response := w.request(upgradeRequest("/ws/chat/"))
	if response.StatusCode != 503 || response.Header.Get("Retry-After") == "" {
		t.Errorf("upgrade: %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	if status, body, _ := p.get("/readyz/"); status != 503 ||
		!strings.Contains(body, `"status":"not_ready"`) || !strings.Contains(body, `"shutting_down":true`) {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, _, _ := p.get("/healthz/"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
	if p.metric("websocket_shutdown_time_seconds") <= 0 {
		t.Error("no shutdown time")
	}
	holder.conn.Close()
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// openDeaf connects a client that sends and never reads, until its replies pile
// up at the server.
func (p *process) openDeaf() *wire {
	p.t.Helper()
	w := p.open("/ws/chat/")
	go func() {
		flood := []byte(strings.Repeat(string(text("x")), 10_000))
		for {
			if _, err := w.conn.Write(flood); err != nil {
				return
			}
		}
	}()
	eventually(p.t, "its replies pile up", func() bool { return p.metric("websocket_backlog_bytes") > backlogHigh })
	return w
}

// A client that takes nothing and closes nothing cannot hold up the exit.
func TestDrainIsCut(t *testing.T) {
	p := startServer(t, "-drain-timeout", "1s", "-write-timeout", "1m")
	p.openDeaf()
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if cut := p.waitLog("server_stopped")["cut"]; cut != 1.0 {
		t.Errorf("%v connections were cut, want 1", cut)
	}
}

// All that has arrived is answered, also what waits because the client took its
// replies too slowly; nothing is passed over in silence.
func TestDrainAnswersAllThatHasArrived(t *testing.T) {
	p := startServer(t, "-drain-timeout", "1m", "-write-timeout", "1m")
	w := newWire(t, p.dial())
	w.request(upgradeRequest("/ws/chat/"))
	conn, err := w.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	one := text("x")
	flood := bytes.Repeat(one, 100_000)
	written, unacked := 0, 0
	eventually(t, "nothing more goes in", func() (full bool) {
		conn.Control(func(fd uintptr) {
			for n, err := 1, error(nil); err == nil; written += max(n, 0) {
				n, err = unix.Write(int(fd), flood[written%len(one):])
			}
			before := unacked
			unacked, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
			full = unacked > 0 && unacked == before
		})
		return full && p.metric("websocket_backlog_bytes") > backlogHigh
	})
	p.signal(syscall.SIGTERM)
	p.waitLog("drain_started")
	counted, late := 0, 0
	for {
		r := w.reply()
		switch {
		case r.Bye:
			if r.Total != uint64(counted) {
				t.Errorf("the bye says %d, %d were answered", r.Total, counted)
			}
			w.wantClose(proto.StatusGoingAway)
			if arrived := (written - unacked) / len(one); counted < arrived {
				t.Errorf("%d messages had arrived, %d were counted, %d called late", arrived, counted, late)
			}
			return
		case r.Error != "":
			late++
		default:
			if counted++; r.Count != uint64(counted) || late > 0 {
				t.Fatalf("count %d follows %d, after %d late ones", r.Count, counted-1, late)
			}
		}
	}
}

func TestSecondSignalWhileItStops(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL(), "-drain-timeout", "1h", "-store-timeout", "1h")
	w := p.open("/ws/chat/")
	w.send(text("x"))
	w.wantCount(1, "x")
	redis.Pause() // the session cannot be released
	p.signal(syscall.SIGTERM)
	w.wantShutdown(1)
	w.conn.Close()
	eventually(t, "the listener is closed", func() bool {
		conn, err := net.Dial("tcp", p.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	p.signalUntilExit()
	if code := p.wait(); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
}

// signalUntilExit is an impatient user: signals soon after the first change nothing, a
// later one ends the server.
func (p *process) signalUntilExit() {
	p.t.Helper()
	eventually(p.t, "a later signal ends the server", func() bool {
		err := p.cmd.Process.Signal(syscall.SIGTERM)
		return err != nil || p.hasExited()
	})
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	p := startServer(t, "-drain-timeout", "1h", "-write-timeout", "1h")
	p.openDeaf()
	began := time.Now()
	p.signalUntilExit()
	if code := p.wait(); code != exitFailure {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
	if lived := time.Since(began); lived < sameWish {
		t.Errorf("it ended %v after the first signal: one that comes within %v is the same wish", lived, sameWish)
	}
	if text := fmt.Sprint(p.waitLog("server_failed")["error"]); !strings.Contains(text, "second signal") {
		t.Errorf("the log says %q", text)
	}
}

// TestSignalSaidTwice: two signals at once are one wish, and nobody is cut. They are
// different ones, since the kernel would make one of two that are the same.
func TestSignalSaidTwice(t *testing.T) {
	p := startServer(t, "-drain-timeout", "1m")
	var clients []*wire
	for range 20 {
		clients = append(clients, p.open("/ws/chat/"))
	}
	p.whileStopped(func() {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
			p.signal(s)
		}
	})
	for _, w := range clients {
		w.wantShutdown(0)
		w.conn.Close()
	}
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d: %v", code, p.logged("server_failed"))
	}
	if n := len(p.logged("drain_started")); n != 1 {
		t.Errorf("%d drains", n)
	}
}

// TestNohup: a server that is started with SIGHUP ignored stays when the terminal goes.
func TestNohup(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec "$0" "$@"`, os.Args[0], "-listen", testHost+":0", "-log-format", "json")
	cmd.Env = append(os.Environ(), asServer+"=1")
	p := launch(t, cmd)
	p.waitListening()
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGTERM)
	if reason := p.waitLog("drain_started")["reason"]; reason != syscall.SIGTERM.String() {
		t.Errorf("it drains because of %q", reason)
	}
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestFirstSignalDuringADrain: the drain that a command has begun, or a handover, is
// what a service manager's signal asks for. Only a second signal is impatience.
func TestFirstSignalDuringADrain(t *testing.T) {
	p, path := controlled(t, "-drain-timeout", "1h", "-write-timeout", "1h")
	holder := p.openDeaf()
	command(t, path, "drain")
	p.waitLog("drain_started")
	p.signal(syscall.SIGTERM)
	p.waitLog("drain_under_way")
	holder.conn.Close()
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d: %v", code, p.logged("server_failed"))
	}
}

// TestTenThousand is the whole promise at once: 10,000 clients connect, send,
// are counted, come back with their sessions, and are drained.
func TestTenThousand(t *testing.T) {
	clients := 10_000
	if raceEnabled {
		clients = 1_000
	}
	p := startServer(t, "-workers", "4", "-drain-timeout", "1m")
	s := newSwarm(t, 2)
	var replies, byes, ends atomic.Int64
	counting := onCount(func(*swarmClient) { replies.Add(1) })
	setup := func(c *swarmClient) {
		c.onOpen = func(c *swarmClient) { c.write(text("one")); c.write(text("two")) }
		c.onMessage = counting
	}
	for range clients {
		s.dial(p.addr, "/ws/chat/", setup)
	}
	s.until("two replies each", func() bool { return replies.Load() == int64(2*clients) })
	if n := p.metric("websocket_active_connections"); n != float64(clients) {
		t.Errorf("%v connections are active", n)
	}
	sessions := s.leaveAll()
	replies.Store(0)
	for _, session := range sessions {
		s.dial(p.addr, "/ws/chat/?session_id="+session, func(c *swarmClient) {
			c.count, c.session = 2, session
			c.onOpen = func(c *swarmClient) { c.write(text("three")) }
			c.onMessage = counting
			c.onClose = func(c *swarmClient) {
				if c.byes == 1 && c.code == proto.StatusGoingAway {
					byes.Add(1)
				}
				ends.Add(1)
			}
		})
	}
	s.until("a reply each", func() bool { return replies.Load() == int64(clients) })
	if n := p.metric("websocket_messages_total"); n != float64(3*clients) {
		t.Errorf("%v messages counted, want %d", n, 3*clients)
	}
	began := time.Now()
	p.signal(syscall.SIGTERM)
	code := p.wait()
	t.Logf("drain of %d connections: %v until the exit", clients, time.Since(began))
	s.until("all connections have ended", func() bool { return ends.Load() == int64(clients) })
	if code != exitOK || byes.Load() != int64(clients) {
		t.Errorf("exit code %d, %d of %d got their bye and 1001", code, byes.Load(), clients)
	}
	connected, ended := len(p.logged("websocket_connected")), len(p.logged("websocket_disconnected"))
	dropped := 0 // the test may read too slowly
	for _, line := range p.logged("log_lines_dropped") {
		dropped += int(line["dropped"].(float64))
	}
	// The exit waits for a reader of the log only for a while: then its last line is missing, too.
	isWhole := len(p.logged("server_stopped")) == 1
	if connected > 2*clients || ended > 2*clients || isWhole && connected+ended+dropped < 4*clients {
		t.Errorf("%d connections are logged as opened, %d as closed, %d lines as dropped, want %d of each kind",
			connected, ended, dropped, 2*clients)
	}
}

// leaveAll ends all clients without a word and returns their sessions.
func (s *swarm) leaveAll() (sessions []string) {
	for _, c := range s.clients {
		c.loop.Call(func() {
			c.leave()
			sessions = append(sessions, c.session)
		})
	}
	s.clients = nil
	return sessions
}

func TestStartIsQuick(t *testing.T) {
	began := time.Now()
	startServer(t, "-workers", "3")
	t.Logf("start to ready: %v", time.Since(began))
}
