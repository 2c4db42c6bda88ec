package engine

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"turnstile/server/handover"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/session"
)

// testHost is a loopback address of the tests' own: a port there is never the
// source port of somebody's connection to 127.0.0.1.
const testHost = "127.0.0.74"

// patience bounds every wait of the tests; nothing waits for so long that works.
const patience = time.Minute

// messageTimeout is of the harness's engine.
const messageTimeout = time.Hour

const someSession = "1df8902a-2987-496f-a19a-937f834b88d1"

// tally is an application that counts, and says so in the frames of the counter.
type tally struct{ Silent }

func (tally) OnRequest(_ *Conn, r *proto.Request) Wish {
	text, asked := r.QueryValue("session_id")
	if id, ok := session.ParseID(text); asked && ok {
		return Resume(id)
	}
	return NewSession
}

func (tally) OnMessage(c *Conn, m proto.Message, out []byte) []byte {
	id := c.SessionID().Text()
	switch {
	case string(m.Payload) == "goodbye":
		c.Close(CloseGoodbye, proto.StatusNormalClosure, "Normal closure")
		return out
	case c.IsLate():
		return proto.AppendShuttingDown(out, id[:])
	}
	return proto.AppendCount(out, c.Add(), id[:], m.Payload)
}

func (tally) OnDrain(c *Conn, out []byte) []byte { return proto.AppendShutdown(out, c.Count(), -1) }

func (tally) OnTakenOver(c *Conn, out []byte) []byte { return proto.AppendTakenOver(out, c.Stored()) }

// aPlain answers /probe/ at once. What it is given to serve waits in the channel.
type aPlain chan net.Conn

func (aPlain) AppendAnswer(out []byte, method, path string) []byte {
	if path == "/probe/" {
		out = append(out, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"...)
	}
	return out
}

func (p aPlain) Serve(open func() (net.Conn, error)) {
	if conn, err := open(); err == nil {
		p <- conn
	}
}

// A harness is an engine with one worker, whose insides the tests look at.
type harness struct {
	t      testing.TB
	engine *Engine
	addr   string
}

// startEngine starts an engine with tally at /count; change may change its
// configuration.
func startEngine(t testing.TB, change ...func(*Config)) *harness {
	t.Helper()
	store := session.NewMemory(session.MemoryConfig{TTL: time.Hour, Max: 1000, Timeout: patience, Now: netpoll.Monotonic})
	var labels metrics.Labels
	labels.Handshakes, labels.Closes = Labels()
	config := Config{
		Workers: 1, Endpoints: []Endpoint{{"/count", func() Handler { return tally{} }}},
		MaxConnections: 1000, MaxMessage: 64 << 10,
		Heartbeat: time.Hour, HandshakeTimeout: patience, WriteTimeout: patience, MessageTimeout: messageTimeout,
		Store: store, Metrics: metrics.New(1, labels, metrics.Sources{}), Log: zerolog.Nop(), Plain: make(aPlain, 10),
		PlacesBeyondLimit: 4, PlainPlaces: 10,
		Fatal: func(err error) { t.Error(err) },
	}
	for _, f := range change {
		f(&config)
	}
	e, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.Listen(testHost + ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Listen(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.CloseListeners()
		e.Cut()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := config.Store.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return &harness{t: t, engine: e, addr: l.Addr}
}

// connect opens a client socket and upgrades it; headers are further lines of the request.
func (h *harness) connect(target string, headers ...string) (fd int) {
	h.t.Helper()
	fd = h.dial(target, headers...)
	buf, end := make([]byte, 1000), []byte("\r\n\r\n")
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_PEEK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 || !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 101")) {
			h.t.Fatalf("%s, %v", buf[:max(n, 0)], err)
		}
		if i := bytes.Index(buf[:n], end); i >= 0 {
			read(fd, buf[:i+len(end)])
			return fd
		}
	}
}

// dial opens a client socket and asks for an upgrade.
func (h *harness) dial(target string, headers ...string) (fd int) {
	h.t.Helper()
	return h.ask("GET " + target + " HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		strings.Join(append(slices.Clone(headers), "", ""), "\r\n"))
}

// ask opens a blocking client socket and sends a request; no read of the socket waits
// for longer than patience.
func (h *harness) ask(request string) (fd int) {
	h.t.Helper()
	to, err := net.ResolveTCPAddr("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { unix.Close(fd) })
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		h.t.Fatal(err)
	}
	writeAll(h.t, fd, []byte(request))
	return fd
}

// onLoop runs f on the only worker's loop.
func (h *harness) onLoop(f func(w *worker)) {
	w := h.engine.workers[0]
	w.loop.Call(func() { f(w) })
}

// hold keeps all workers' loops from their sockets until goOn is called.
func (h *harness) hold() (goOn func()) {
	var all []func()
	for _, w := range h.engine.workers {
		all = append(all, holdLoop(h.t, w.loop))
	}
	return func() {
		for _, goOn := range all {
			goOn()
		}
	}
}

// holdLoop keeps a loop from its sockets until goOn is called.
func holdLoop(t testing.TB, l *netpoll.Loop) (goOn func()) {
	held, release := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(held); <-release })
	<-held
	goOn = sync.OnceFunc(func() { close(release) })
	t.Cleanup(goOn) // before the engine's own
	return goOn
}

func (h *harness) metrics() *metrics.Worker { return h.engine.workers[0].metrics }

// exchange sends a burst of frames and reads until its last answer is there.
func exchange(t testing.TB, fd int, burst, last, buf []byte) {
	t.Helper()
	writeAll(t, fd, burst)
	for got := 0; ; {
		n, err := read(fd, buf[got:])
		if err != nil || n == 0 {
			t.Fatalf("after %q: %d, %v", buf[:got], n, err)
		}
		if got += n; bytes.HasSuffix(buf[:got], last) {
			return
		}
	}
}

// read reads from a blocking socket; a signal of the Go runtime may interrupt that.
func read(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// writeAll writes to a blocking socket; a signal may interrupt that after a part.
func writeAll(t testing.TB, fd int, p []byte) {
	t.Helper()
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && err != unix.EINTR {
			t.Errorf("%d bytes are not written: %v", len(p), err)
			return
		}
		p = p[max(n, 0):]
	}
}

// arrive writes to a client's socket, and waits until the kernel has brought all of it to
// the server's: on a busy machine it does so a little later. It runs on the loop, which
// therefore reads nothing meanwhile.
func (c *Conn) arrive(t testing.TB, client int, p []byte) {
	t.Helper()
	writeAll(t, client, p)
	for deadline := time.Now().Add(patience); netpoll.Unread(int(c.fd)) < len(p); {
		if time.Now().After(deadline) {
			t.Errorf("%d of %d bytes have come within %v", netpoll.Unread(int(c.fd)), len(p), patience)
			return
		}
	}
}

// endArrives waits, like arrive, until the kernel has brought the client's end.
func (c *Conn) endArrives(t testing.TB) {
	t.Helper()
	end := []unix.PollFd{{Fd: c.fd, Events: unix.POLLRDHUP}}
	for deadline := time.Now().Add(patience); end[0].Revents&unix.POLLRDHUP == 0; unix.Poll(end, 0) {
		if time.Now().After(deadline) {
			t.Errorf("the end has not come within %v", patience)
			return
		}
	}
}

// connOf is the connection of a client's socket.
func (w *worker) connOf(client int) *Conn {
	address := func(name unix.Sockaddr, err error) unix.SockaddrInet4 {
		if err != nil {
			panic(err)
		}
		return *name.(*unix.SockaddrInet4)
	}
	want := address(unix.Getsockname(client))
	i := slices.IndexFunc(w.conns, func(c *Conn) bool {
		got := address(unix.Getpeername(int(c.fd)))
		return got.Port == want.Port && got.Addr == want.Addr
	})
	return w.conns[i]
}

func frame(op proto.OpCode, fin bool, payload string) []byte {
	return proto.AppendMaskedFrame(nil, op, fin, [4]byte{0x12, 0x34, 0x56, 0x78}, []byte(payload))
}

func text(payload string) []byte { return frame(proto.OpText, true, payload) }

// eventually waits for a condition; what says what should come true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !condition(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// takesAll is another process that takes every connection.
func takesAll(*handover.Record) bool { return true }

// freeze freezes at most n connections of a worker for a process that takes all of them.
func (h *harness) freeze(number, n int) (b *Batch, waiting int) {
	b = new(Batch)
	waiting = h.engine.Freeze(b, number, n, takesAll)
	return b, waiting
}
