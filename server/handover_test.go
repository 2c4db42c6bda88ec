package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/handover"
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

// brokenAt, in the environment, breaks a process at the n-th time that this one comes to
// a step of a handover: "STEP N" kills this one, "STEP N PID" another, and "STEP N FILE"
// has this one stand there until the file exists.
const brokenAt = "TURNSTILE_TEST_BROKEN_AT"

func breakAtStep() {
	var step, what string
	var n int
	if read, _ := fmt.Sscan(os.Getenv(brokenAt), &step, &n, &what); read < 2 {
		return
	}
	handover.AtStep = func(s string) {
		if s != step {
			return
		}
		if n--; n == 0 {
			breakNow(what)
		}
	}
}

func breakNow(what string) {
	victim, err := strconv.Atoi(what)
	switch {
	case what == "":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case err == nil:
		syscall.Kill(victim, syscall.SIGKILL)
	default:
		os.WriteFile(what+standing, nil, 0o600)
		// A test of another process makes the file, or kills this one.
		for deadline := time.Now().Add(2 * patience); os.IsNotExist(second(os.Stat(what))); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				panic("nobody lets it go on from " + what)
			}
		}
	}
}

// standing is the end of the name of a file that says that a process stands.
const standing = ".standing"

func second[T any](_ T, err error) error { return err }

// atSteps runs a test that breaks a process at each of these steps, at the
// first, second or third time that it comes there.
func atSteps(t *testing.T, steps []string, run func(t *testing.T, env string)) {
	seed := rand.Uint64()
	if text := os.Getenv("TURNSTILE_CHAOS_SEED"); text != "" {
		fmt.Sscan(text, &seed)
	}
	t.Logf("TURNSTILE_CHAOS_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, step := range steps {
		if !strings.Contains(step, " ") {
			step = fmt.Sprint(step, " ", 1+random.IntN(3))
		}
		t.Run(step, func(t *testing.T) { run(t, brokenAt+"="+step) })
	}
}

// brokenCrowd is large enough for a second batch of each worker's.
const brokenCrowd = 3 * batchSize

// TestHandoverOldDies kills the old server at each step. What it has given, or
// the new one has accepted, goes on there without an interruption; the others'
// clients come back to the new one, with Redis at the right count.
func TestHandoverOldDies(t *testing.T) {
	redis := redistest.Start(t)
	atSteps(t, []string{"offer 1", "offer", "offered", "given", "done 1"}, func(t *testing.T, env string) {
		chain := newChain(t, "-redis", redis.URL())
		chain.startFirst(env)
		c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
		successor := chain.startSuccessor()
		successor.waitLog("takeover_finished")
		if code := chain.current.wait(); code != -1 {
			t.Errorf("the old server was not killed, it ends with exit code %d", code)
		}
		eventually(t, "the new server listens", func() bool {
			conn, err := net.Dial("tcp", chain.addr)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		adopted := int(successor.metric("websocket_adopted_total"))
		c.WaitRounds(3)
		c.Settle()
		if ends := c.Ends(); len(ends) > brokenCrowd-adopted {
			t.Errorf("%d connections have ended, and %d were adopted: %v", len(ends), adopted, ends)
		}
	})
}

// TestHandoverNewDies kills the new server at each step. The old one goes on
// serving what the new one did not own, and nobody notices but the clients of
// what it did.
func TestHandoverNewDies(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		atSteps(t, []string{"take", "taken", "begun", "owned"}, func(t *testing.T, env string) {
			chain := startChain(t, flags...)
			c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
			if code := chain.startSuccessor(env).wait(); code != -1 {
				t.Errorf("the new server was not killed, it ends with exit code %d", code)
			}
			chain.current.waitLog("handover_failed")
			given := int(chain.current.metric("websocket_handed_over_total"))
			c.WaitRounds(3)
			if len(flags) > 0 || given == 0 {
				c.Settle()
			} else { // sessions of the embedded store have died
				c.Leave()
			}
			if ends := c.Ends(); len(ends) > given {
				t.Errorf("%d connections have ended, and %d were given: %v", len(ends), given, ends)
			}
			chain.handOver() // the next one finds the old one where it was
		})
	})
}

// standingSuccessor starts a successor that stands still before it takes its n-th batch,
// and goes on when it is let go. It returns when the successor stands.
func (s *serverChain) standingSuccessor(n int) (p *process, letGo func()) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "go")
	p = s.startSuccessor(fmt.Sprintf("%s=take %d %s", brokenAt, n, file))
	eventually(s.t, "the new server stands still", func() bool { return second(os.Stat(file+standing)) == nil })
	return p, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			s.t.Error(err)
		}
	}
}

// wantSplit checks a takeover that has come to a part and no further: the clients of that
// part got a goodbye from the new server, which has ended; all others are the old one's
// and saw nothing; and the next server can take over.
func (s *serverChain) wantSplit(c *oracle.Crowd, successor *process, code int, redis bool) {
	s.t.Helper()
	if got := successor.wait(); got != code {
		s.t.Errorf("the new server ends with exit code %d, want %d: %s", got, code, successor.stderr.String())
	}
	c.WaitRounds(3)
	adopted := int(successor.waitLog("takeover_finished")["connections"].(float64))
	ends := c.Ends()
	if adopted == 0 || adopted >= c.Size() {
		s.t.Errorf("%d of %d connections were adopted: no part of them", adopted, c.Size())
	}
	if len(ends) != adopted || ends.Goodbyes() != adopted {
		s.t.Errorf("%d connections were adopted, and these have ended: %v", adopted, ends)
	}
	if got := command(s.t, s.control, commandStatus); got["pid"] != float64(s.current.cmd.Process.Pid) || got["ready"] != true {
		s.t.Errorf("at the control socket is %v", got)
	}
	if redis {
		c.Settle()
	} else { // sessions of the embedded store have ended with the new server
		c.Leave()
	}
	s.handOver()
}

// TestSignalToTheSuccessor: a SIGTERM to the new server while it takes over. Its clients
// get a goodbye, and the others stay with the old one.
func TestSignalToTheSuccessor(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		c := oracle.StartCrowd(t, chain.addr, 2*brokenCrowd, 0)
		c.WaitRounds(1)
		successor, letGo := chain.standingSuccessor(3)
		successor.signal(syscall.SIGTERM)
		successor.waitLog("drain_started")
		letGo()
		chain.current.waitLog("handover_failed")
		chain.wantSplit(c, successor, exitOK, len(flags) > 0)
	})
}

// TestHandoverBreaksWhileBothLive: the new server stands still for longer than the old one
// waits, and goes on then. It finds that the old one serves, and ends.
func TestHandoverBreaksWhileBothLive(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
		c.WaitRounds(1)
		successor, letGo := chain.standingSuccessor(3)
		chain.current.waitLog("handover_failed")
		letGo()
		chain.wantSplit(c, successor, exitFailure, len(flags) > 0)
	})
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

// wantRefused checks that a takeover is refused, and that nobody notices.
func (s *serverChain) wantRefused(reason handover.Refusal, refused string) {
	s.t.Helper()
	if !strings.Contains(refused, "refused ("+string(reason)+")") {
		s.t.Errorf("got %q, want a refusal for %s", refused, reason)
	}
	if got := s.current.metric(fmt.Sprintf("websocket_handover_refusals_total{reason=%q}", reason)); got != 1 {
		s.t.Errorf("%v refusals for %s are counted, want 1", got, reason)
	}
}

func TestHandoverRefused(t *testing.T) {
	chain := startChain(t)
	var wires []*wire
	for range 30 {
		wires = append(wires, chain.open("/ws/chat/"))
	}
	successorSays := func(flags ...string) string {
		chain.flags = append(chain.flags, flags...)
		defer func() { chain.flags = chain.flags[:len(chain.flags)-len(flags)] }()
		p := chain.startSuccessor()
		if code := p.wait(); code != exitFailure {
			t.Errorf("the refused server ends with exit code %d", code)
		}
		return p.stderr.String()
	}
	hello := handover.Hello{Version: handover.Newest, Store: "embedded", Endpoints: []string{"/ws/chat"}, Connections: 1, FileDescriptors: 1}
	less := func(change func(h *handover.Hello)) string {
		h := hello
		change(&h)
		return chain.greet(h)
	}
	chain.wantRefused(handover.RefusedStore, successorSays("-redis", "redis://user:secret@"+testHost+":1"))
	chain.wantRefused(handover.RefusedVersion, less(func(h *handover.Hello) { h.Version++ }))
	chain.wantRefused(handover.RefusedEndpoints, less(func(h *handover.Hello) { h.Endpoints = []string{"/ws/other"} }))
	chain.wantRefused(handover.RefusedConnections, less(func(h *handover.Hello) { h.Connections = 0 }))
	chain.wantRefused(handover.RefusedFileDescriptors, less(func(h *handover.Hello) { h.FileDescriptors = -1 }))

	for _, word := range []string{"prepare ", "take-over "} {
		if answer := command(t, chain.control, word+chain.control); !strings.Contains(fmt.Sprint(answer["error"]), errItself.Error()) {
			t.Errorf("%sitself answers %v", word, answer)
		}
	}

	prepared := startServer(t, "-control", chain.control+".2")
	if answer := command(t, chain.control+".2", "prepare "+chain.control); answer["connections"] != 30.0 {
		t.Errorf("prepare answers %v", answer)
	}
	chain.wantRefused(handover.RefusedBusy, successorSays())
	prepared.signal(syscall.SIGKILL)
	prepared.wait()
	for _, w := range wires {
		w.send(text("still there"))
		w.wantCount(1, "still there")
	}
	eventually(t, "the next one may take over", func() bool { return !chain.current.isHandingOver(chain.control) })
	chain.handOver()
}

// TestHandoverOfADrain: what says goodbye to its clients does not give them away.
func TestHandoverOfADrain(t *testing.T) {
	chain := startChain(t, "-drain-timeout", "10m", "-write-timeout", "10m")
	chain.current.openDeaf() // the drain waits for it
	command(t, chain.control, commandDrain)
	chain.current.waitLog("drain_started")
	chain.wantRefused(handover.RefusedDraining, chain.greet(handover.Hello{Version: handover.Newest}))
}

// isHandingOver asks whether a greeting is refused for that reason.
func (p *process) isHandingOver(control string) bool {
	conn, err := net.Dial("unix", control)
	if err != nil {
		return true
	}
	x := handover.NewExchange(conn.(*net.UnixConn))
	defer x.Close()
	io.WriteString(conn, commandHandover+"\n")
	_, err = x.Greet(handover.Hello{Version: -1})
	refused, ok := errors.AsType[*handover.RefusedError](err)
	return !ok || refused.Reason == handover.RefusedBusy
}

// greet says hello in the place of a new server, and returns the refusal.
func (s *serverChain) greet(h handover.Hello) string {
	conn, err := net.Dial("unix", s.control)
	if err != nil {
		s.t.Fatal(err)
	}
	x := handover.NewExchange(conn.(*net.UnixConn))
	defer x.Close()
	io.WriteString(conn, commandHandover+"\n")
	_, err = x.Greet(h)
	return fmt.Sprint(err)
}

// command sends a command to a control socket.
func command(t testing.TB, path, line string) (answer map[string]any) {
	t.Helper()
	var out bytes.Buffer
	if err := tell(path, line, &out); err != nil {
		return map[string]any{"error": err.Error()}
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}
