package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/oracle"
	"turnstile/server/redistest"
)

// chainHost is a loopback address at which only these tests open ports, so
// that one that was free stays free.
const chainHost = "127.0.0.79"

// A serverChain is servers at one address, each of which takes over from the one
// before it.
type serverChain struct {
	t       *testing.T
	addr    string
	control string
	flags   []string
	current *process // the server that serves now
}

// startChain starts the first server of a chain.
func startChain(t *testing.T, flags ...string) *serverChain {
	t.Helper()
	chain := newChain(t, flags...)
	chain.startFirst()
	return chain
}

// startFirst starts the first server, and waits until it is ready; env breaks it
// somewhere.
func (s *serverChain) startFirst(env ...string) {
	s.t.Helper()
	s.current = s.start(env)
	s.current.waitLog("server_started")
	s.current.waitReady()
}

func newChain(t *testing.T, flags ...string) *serverChain {
	t.Helper()
	addr, release, err := netpoll.ReservePort(chainHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	chain := &serverChain{t: t, addr: addr, control: filepath.Join(t.TempDir(), "control")}
	chain.flags = append(append(patientFlags(), "-listen", chain.addr, "-control", chain.control, "-workers", "2"), flags...)
	return chain
}

// start starts a server of the chain; env can make it die at a step.
func (s *serverChain) start(env []string, flags ...string) *process {
	p := startProcess(s.t, env, append(flags, s.flags...)...)
	p.addr = s.addr
	return p
}

// startSuccessor starts a server that takes over.
func (s *serverChain) startSuccessor(env ...string) *process {
	return s.start(env, "-take-over-from", s.control)
}

// handOver starts a successor, and waits until it has taken over and the old server
// has ended.
func (s *serverChain) handOver() (old *process) {
	s.t.Helper()
	old = s.current
	s.awaitTakeover(s.startSuccessor())
	return old
}

// awaitTakeover waits until a successor has taken over and the old server has ended.
func (s *serverChain) awaitTakeover(successor *process) {
	s.t.Helper()
	if finished := successor.waitLog("takeover_finished"); finished["error"] != nil {
		s.t.Fatalf("the takeover failed: %v", finished)
	}
	if code := s.current.wait(); code != exitOK {
		s.t.Fatalf("the old server ends with exit code %d", code)
	}
	s.current = successor
}

func (s *serverChain) dial() net.Conn { return dialAddress(s.t, s.current.addr) }

func (s *serverChain) open(target string, headers ...string) *wire {
	s.t.Helper()
	return s.current.open(target, headers...)
}

func stores(t *testing.T, run func(t *testing.T, flags ...string)) {
	t.Run("embedded", func(t *testing.T) { run(t) })
	t.Run("redis", func(t *testing.T) { run(t, "-redis", redistest.Start(t).URL()) })
}

func TestHandover(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		first := chain.open("/ws/chat/", v2Header)
		id := first.wantSession(0, false)
		first.send(text("a"), text("b"))
		first.wantCount(1, "a")
		first.wantCount(2, "b")
		left := chain.open("/ws/chat/?session_id=" + someSession)
		left.send(text("x"), text("goodbye"))
		left.wantCount(1, "x")
		left.reply()
		left.wantClose(proto.StatusNormalClosure)
		request := upgradeRequest("/ws/chat/", v2Header)
		half := newWire(t, chain.dial())
		half.write([]byte(request[:len(request)/2]))
		silent := newWire(t, chain.dial())

		socket := socketOf(t, first.conn)
		if !chain.current.holds(socket) {
			t.Fatalf("the server does not hold socket %s", socket)
		}

		old := chain.handOver()

		if now := socketOf(t, first.conn); now != socket || !chain.current.holds(socket) {
			t.Errorf("the server's end is socket %s, held by the new server: %v; it was %s", now, chain.current.holds(socket), socket)
		}
		first.send(text("c"))
		if r := first.wantCount(3, "c"); r.SessionID != id {
			t.Errorf("the session is %s, and was %s", r.SessionID, id)
		}
		half.write([]byte(request[len(request)/2:]))
		half.wantUpgraded()
		half.wantSession(0, false)
		silent.write([]byte(request))
		silent.wantUpgraded()
		again := chain.open("/ws/chat/?session_id="+someSession, v2Header)
		again.wantSession(1, true)
		rival := chain.open("/ws/chat/?session_id="+id, v2Header)
		rival.wantSession(3, true)
		first.wantTakenOver(3)

		if got := chain.current.metric("websocket_adopted_total"); got != 1 {
			t.Errorf("%v connections were adopted, want 1", got)
		}
		if pauses := chain.current.metric("websocket_handover_pause_seconds_count"); pauses < 3 {
			t.Errorf("%v pauses were measured", pauses)
		}
		if n := len(old.logged("websocket_disconnected")); n != 1 {
			t.Errorf("the old server says that %d clients have disconnected, want the one that left", n)
		}
	})
}

// socketOf is the inode of the server's end of a connection, which its client
// knows by its own address: see proc(5), /proc/net/tcp.
func socketOf(t *testing.T, client net.Conn) (inode string) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	hex := func(a net.Addr) string {
		ip := a.(*net.TCPAddr).IP.To4()
		return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], a.(*net.TCPAddr).Port)
	}
	ours, theirs := hex(client.RemoteAddr()), hex(client.LocalAddr())
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); fields[1] == ours && fields[2] == theirs {
			return "socket:[" + fields[9] + "]"
		}
	}
	t.Fatalf("no connection from %s", client.LocalAddr())
	return ""
}

// holds reports whether the process has a socket open.
func (p *process) holds(socket string) bool {
	folder := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	entries, _ := os.ReadDir(folder)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		link, _ := os.Readlink(filepath.Join(folder, e.Name()))
		return link == socket
	})
}

// TestHandoverAtEveryByte cuts what a client sends at every byte: in headers,
// masks, characters, between fragments, around a ping.
func TestHandoverAtEveryByte(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		stream := bytes.Join([][]byte{
			frame(proto.OpText, false, "héllo "), frame(proto.OpPing, true, "p"), frame(proto.OpContinuation, false, "wör"),
			frame(proto.OpContinuation, true, "ld €"), text(strings.Repeat("ü", 150)),
		}, nil)
		wires := make([]*wire, len(stream)+1)
		for cut := range wires {
			wires[cut] = chain.open("/ws/chat/")
			wires[cut].write(stream[:cut])
		}
		chain.handOver()
		for cut, w := range wires {
			w.write(stream[cut:])
			if m := w.next(); m.Op != proto.OpPong || string(m.Payload) != "p" {
				t.Fatalf("cut at %d: got %s, want a pong", cut, describe(m))
			}
			w.wantCount(1, "héllo wörld €")
			w.wantCount(2, strings.Repeat("ü", 150))
		}
		bad := chain.open("/ws/chat/")
		bad.write(frame(proto.OpText, false, "\xe2\x82"))
		chain.handOver()
		bad.write(frame(proto.OpContinuation, true, "x"))
		bad.wantClose(proto.ErrNotUTF8.Code)
	})
}

// TestHandoverOfCompressed: a compressed message goes on wherever it is cut, and the
// terms of its connection go along.
func TestHandoverOfCompressed(t *testing.T) {
	chain := startChain(t, "-compress=1")
	message := strings.Repeat("héllo wörld € ", 20)
	payload := compress(message)
	stream := bytes.Join([][]byte{
		deflated(proto.OpText, false, payload[:5]), frame(proto.OpPing, true, "p"), frame(proto.OpContinuation, false, payload[5:20]),
		frame(proto.OpContinuation, true, payload[20:]), text("plain"),
	}, nil)
	wires := make([]*wire, len(stream)+1)
	for cut := range wires {
		wires[cut] = chain.open("/ws/chat/", deflateHeader+"; server_max_window_bits=9")
		wires[cut].write(stream[:cut])
	}
	bad, plain := chain.open("/ws/chat/", deflateHeader), chain.open("/ws/chat/")
	bad.write(deflated(proto.OpText, false, payload[:5]))
	chain.handOver()
	for cut, w := range wires {
		w.write(stream[cut:])
		if m := w.next(); m.Op != proto.OpPong {
			t.Fatalf("cut at %d: got %s, want a pong", cut, describe(m))
		}
		w.wantCount(1, message)
		w.wantCount(2, "plain")
	}
	if saved := chain.current.metric("websocket_compress_saved_bytes_total"); saved < float64(len(wires)*len(message)/2) {
		t.Errorf("compression saves %v bytes after the handover", saved)
	}
	bad.write(frame(proto.OpContinuation, true, "no deflate"))
	bad.wantClose(proto.ErrNotDeflate.Code)
	plain.send(deflated(proto.OpText, true, payload))
	plain.wantClose(proto.ErrReservedBits.Code)
}

// TestHandoverOfASlowReader: what a client has not read yet goes with it, and
// so do the messages that wait for that.
func TestHandoverOfASlowReader(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, append(flags, "-write-timeout", "1m")...)
		w := chain.open("/ws/chat/")
		message := strings.Repeat("m", 8<<10)
		sent := make(chan int)
		stop := make(chan struct{})
		go func() { // it blocks when nobody reads any more
			for n := 0; ; n++ {
				select {
				case <-stop:
					sent <- n
					return
				default:
					w.conn.Write(text(message))
				}
			}
		}()
		eventually(t, "the client is backed up", func() bool { return chain.current.metric("websocket_backlog_bytes") > backlogHigh })
		chain.handOver()
		if chain.current.metric("websocket_backlog_bytes") == 0 {
			t.Error("no backlog has come along")
		}
		close(stop)
		for n, total := 1, -1; total < 0 || n <= total; n++ {
			w.wantCount(uint64(n), message)
			select {
			case total = <-sent:
			default:
			}
		}
	})
}

// TestHandoverUnderLoad hands over again and again while all clients send, and
// no client sees anything of it.
func TestHandoverUnderLoad(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		c := oracle.StartCrowd(t, chain.current.addr, 100, 0)
		for range 5 {
			c.WaitRounds(2)
			chain.handOver()
		}
		c.WaitRounds(2)
		c.Settle()
		if ends := c.Ends(); len(ends) > 0 {
			t.Errorf("connections ended: %v", ends)
		}
		chain.current.wantPauses(t)
	})
}

// wantPauses prints how long connections were not served.
func (p *process) wantPauses(t *testing.T) {
	t.Helper()
	_, page, _ := p.get("/metrics/")
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "websocket_handover_pause_seconds") || strings.HasPrefix(line, "websocket_handover_seconds") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// TestHandoverWithoutRedis: Redis is away while the connections go, and comes
// back.
func TestHandoverWithoutRedis(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	chain := startChain(t, "-redis", redis.URL())
	c := oracle.StartCrowd(t, chain.current.addr, 100, 0)
	idle := chain.open("/ws/chat/", v2Header)
	id := idle.wantSession(0, false)
	idle.send(text("a"))
	idle.wantCount(1, "a")
	redis.Kill()
	successor := chain.startSuccessor()
	successor.waitLog("server_started")
	redis.Restart()
	chain.awaitTakeover(successor)
	c.WaitRounds(3)
	c.Settle()
	idle.send(text("b"))
	if r := idle.wantCount(2, "b"); r.SessionID != id {
		t.Errorf("the session is %s, and was %s", r.SessionID, id)
	}
}

// TestHandoverRedisDies kills Redis at each step of either side: the handover
// goes on, and whoever waits for Redis is answered when it is back.
func TestHandoverRedisDies(t *testing.T) {
	atSteps(t, []string{"offer", "given", "take", "begun"}, func(t *testing.T, env string) {
		redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		env = fmt.Sprint(env, " ", redis.PID())
		chain := newChain(t, "-redis", redis.URL(), "-store-timeout", "1m") // a busy disk may take long to sync
		chain.startFirst(env)
		c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
		successor := chain.startSuccessor(env)
		redis.WaitGone()
		redis.Restart()
		chain.awaitTakeover(successor)
		c.WaitRounds(3)
		c.Settle()
		if ends := c.Ends(); len(ends) > 0 {
			t.Errorf("connections have ended: %v", ends)
		}
	})
}

// TestBatchSize: a batch is a small part of all connections, in bounds.
func TestBatchSize(t *testing.T) {
	for n, want := range map[int]int{0: 32, 9_600: 32, 12_000: 40, 19_200: 64, 1_000_000: 64} {
		if got := batchSize(n); got != want {
			t.Errorf("of %d connections, %d go at a time, want %d", n, got, want)
		}
	}
}
