package main

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
)

// A swarm is many WebSocket clients on a few event loops: the project's own
// engine in the other role, so that 10,000 clients cost little beside the
// server that they test.
type swarm struct {
	t       testing.TB
	pool    *netpoll.Pool
	clients []*swarmClient
	failure atomic.Pointer[string]
}

// A swarmClient belongs to one loop of the swarm.
type swarmClient struct {
	swarm  *swarm
	loop   *netpoll.Loop
	fd     int
	parser proto.Parser
	spill  []byte
	open   bool
	closed bool
	code   proto.StatusCode // of the server's close frame

	session string
	count   uint64 // of the last reply
	byes    int

	onOpen    func(*swarmClient)
	onMessage func(*swarmClient, []byte)
	onClose   func(*swarmClient)
}

var clientRules = proto.Rules{MaxMessage: 1 << 24}
var clientMask = [4]byte{0x12, 0x34, 0x56, 0x78}

func newSwarm(t testing.TB, loops int) *swarm {
	t.Helper()
	s := &swarm{t: t}
	pool, err := netpoll.NewPool(loops, func(int) netpoll.Config {
		return netpoll.Config{Fatal: func(err error) { s.fail("%v", err) }}
	})
	if err != nil {
		t.Fatal(err)
	}
	s.pool = pool
	t.Cleanup(s.close)
	return s
}

func (s *swarm) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.failure.CompareAndSwap(nil, &text)
}

// check fails the test if a client has seen what it should not.
func (s *swarm) check() {
	s.t.Helper()
	if text := s.failure.Load(); text != nil {
		s.t.Fatal(*text)
	}
}

// until waits for a condition, and for no client to fail.
func (s *swarm) until(what string, condition func() bool) {
	s.t.Helper()
	eventually(s.t, what, func() bool { s.check(); return condition() })
}

func (s *swarm) close() {
	if s.pool == nil {
		return
	}
	for _, c := range s.clients {
		c.loop.Call(func() { c.leave() })
	}
	pool := s.pool
	s.pool = nil
	if err := pool.Close(); err != nil {
		s.t.Error(err)
	}
}

// dial connects one more client to target. What happens to it is told to the
// funcs that setup sets.
func (s *swarm) dial(addr, target string, setup func(*swarmClient)) *swarmClient {
	s.t.Helper()
	c := &swarmClient{swarm: s, loop: s.pool.Loops[len(s.clients)%len(s.pool.Loops)], parser: proto.Parser{Rules: &clientRules}}
	setup(c)
	c.fd = connectFD(s.t, addr)
	s.clients = append(s.clients, c)
	if _, err := netpoll.Write(c.fd, []byte(upgradeRequest(target))); err != nil {
		s.t.Fatal(err)
	}
	c.loop.Post(func() {
		if err := c.loop.Add(c.fd, netpoll.Readable, c.onEvent); err != nil {
			s.fail("%v", err)
		}
	})
	return c
}

// connectFD connects while the socket still blocks: on loopback, only a full
// accept queue makes that wait.
func connectFD(t testing.TB, addr string) int {
	t.Helper()
	to, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	for {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())})
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		t.Fatalf("cannot connect to %s: %v", addr, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return fd
}

// connectAll opens n counted connections, whose replies go to onMessage.
func (s *swarm) connectAll(p *process, n int, onMessage func(*swarmClient, []byte)) {
	s.t.Helper()
	var opened atomic.Int64
	for range n {
		s.dial(p.addr, "/ws/chat/", func(c *swarmClient) {
			c.onOpen = func(*swarmClient) { opened.Add(1) }
			c.onMessage = onMessage
		})
	}
	s.until(fmt.Sprintf("%d connections are open", n), func() bool { return opened.Load() == int64(n) })
}

func (c *swarmClient) onEvent(w netpoll.Woken) {
	c.loop.Awake(w)
	if c.closed {
		return
	}
	var chunk [16 << 10]byte
	n, err := netpoll.Read(c.fd, chunk[:])
	switch {
	case err == netpoll.ErrAgain:
		return
	case err != nil || n == 0:
		c.leave()
		if c.onClose != nil {
			c.onClose(c)
		}
		return
	}
	c.spill = append(c.spill, chunk[:n]...)
	if !c.open && !c.upgraded() {
		return
	}
	for !c.closed {
		m, n, err := c.parser.Next(c.spill)
		if err != nil {
			c.swarm.fail("a client's parser: %v", err)
		}
		c.onFrame(m)
		c.spill = c.spill[n:]
		if m.Op == proto.OpContinuation {
			break
		}
	}
	if len(c.spill) == 0 {
		c.spill = nil
	}
}

func (c *swarmClient) upgraded() bool {
	end := proto.HeaderEnd(c.spill, 0)
	if end == 0 {
		return false
	}
	if !bytes.HasPrefix(c.spill, []byte("HTTP/1.1 101 ")) {
		c.swarm.fail("not upgraded: %s", c.spill)
		c.leave()
		return false
	}
	c.spill = c.spill[end:]
	c.open = true
	if c.onOpen != nil {
		c.onOpen(c)
	}
	return true
}

func (c *swarmClient) onFrame(m proto.Message) {
	switch m.Op {
	case proto.OpText:
		if bytes.HasPrefix(m.Payload, []byte(`{"bye":true`)) {
			c.byes++
		}
		if c.onMessage != nil {
			c.onMessage(c, m.Payload)
		}
	case proto.OpPing:
		c.write(proto.AppendMaskedFrame(nil, proto.OpPong, true, clientMask, m.Payload))
	case proto.OpClose:
		c.code = proto.CloseCode(m.Payload)
		c.write(proto.AppendMaskedFrame(nil, proto.OpClose, true, clientMask, m.Payload[:min(2, len(m.Payload))]))
	}
}

// write sends a frame; the clients never send so much that it does not fit.
func (c *swarmClient) write(frame []byte) {
	if n, err := netpoll.Write(c.fd, frame); n != len(frame) && !c.closed && c.code == 0 {
		c.swarm.fail("a client's write: %v", err)
	}
}

func (c *swarmClient) leave() {
	if !c.closed {
		c.closed = true
		c.loop.Del(c.fd)
		netpoll.CloseFD(c.fd)
	}
}

// onCount is an onMessage that holds the server to counts without a gap; next
// is called for each reply.
func onCount(next func(c *swarmClient)) func(*swarmClient, []byte) {
	return func(c *swarmClient, text []byte) {
		count, session, ok := proto.ReadCount(text)
		if !ok {
			return
		}
		if count != c.count+1 {
			c.swarm.fail("count %d follows %d in session %s", count, c.count, session)
		}
		c.count = count
		if c.session == "" {
			c.session = string(session)
		}
		next(c)
	}
}

// cpuTime is what a process has used so far, as proc(5) counts it.
func cpuTime(t testing.TB, pid int) (user, system time.Duration) {
	t.Helper()
	var usage [2]uint64
	fields := statFields(t, pid)
	for i := range usage {
		ticks, err := strconv.ParseUint(fields[11+i], 10, 64) // utime and stime
		if err != nil {
			t.Fatal(err)
		}
		usage[i] = ticks
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux port
	return time.Duration(usage[0]) * tick, time.Duration(usage[1]) * tick
}
