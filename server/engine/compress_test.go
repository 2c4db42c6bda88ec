package engine

import (
	"bytes"
	"compress/flate"
	"io"
	"runtime"
	"strings"
	"testing"

	"turnstile/netpoll"
	"turnstile/proto"
)

const deflateHeader = "Sec-WebSocket-Extensions: permessage-deflate"

func compresses(size int) func(*Config) { return func(c *Config) { c.Compress = size } }

// compressed is a compressed message of a client.
func compressed(message string) []byte {
	var out strings.Builder
	w, _ := flate.NewWriter(&out, flate.BestCompression)
	io.WriteString(w, message)
	w.Flush()
	f := text(strings.TrimSuffix(out.String(), "\x00\x00\xff\xff"))
	f[0] |= 0x40 // RSV1: RFC 7692 §6
	return f
}

// hear reads a message of the server's.
func hear(t *testing.T, fd int) proto.Message {
	t.Helper()
	p := proto.Parser{Rules: &proto.Rules{MaxMessage: 1 << 20, Inflater: &proto.Inflater{}}}
	var got []byte
	for one := make([]byte, 1); ; got = append(got, one[0]) {
		m, _, err := p.Next(got)
		if err != nil {
			t.Fatal(err)
		}
		if m.Op != proto.OpContinuation {
			return m
		}
		if n, err := read(fd, one); err != nil || n == 0 {
			t.Fatalf("after %q: %d, %v", got, n, err)
		}
	}
}

// TestAnswersAreCompressed: those that are long enough, to clients that take that, and
// nothing is kept for a connection.
func TestAnswersAreCompressed(t *testing.T) {
	h := startEngine(t, compresses(200))
	long := strings.Repeat("long ", 100)
	f := func(fd int, message []byte, want string, inflated bool) {
		t.Helper()
		writeAll(t, fd, message)
		if m := hear(t, fd); !strings.Contains(string(m.Payload), want) || m.Inflated != inflated {
			t.Errorf("got %.100q, compressed: %v; want %.100q, %v", m.Payload, m.Inflated, want, inflated)
		}
	}
	with, without := h.connect("/count", deflateHeader), h.connect("/count")
	f(with, text(long), long, true)
	f(with, compressed(long), long, true)
	f(with, text("short"), "short", false)
	f(with, compressed("short"), "short", false)
	f(without, text(long), long, false)
	h.onLoop(func(w *worker) {
		c, other := w.connOf(with), w.connOf(without)
		if c.input != nil || c.backlog != nil || !c.parsed.BetweenMessages() || c.rates != nil {
			t.Error("the connection holds memory between messages")
		}
		if c.terms.window() != 15 || other.terms.window() != 0 {
			t.Errorf("the windows are %d and %d", c.terms.window(), other.terms.window())
		}
	})
	if saved := h.metrics().CompressSaved.Load(); saved < uint64(len(long)) {
		t.Errorf("%d bytes are saved", saved)
	}
}

// TestWhatDoesNotInflate: each has its code and its reason.
func TestWhatDoesNotInflate(t *testing.T) {
	h := startEngine(t, compresses(1))
	f := func(message []byte, code proto.StatusCode, reason CloseReason) {
		t.Helper()
		fd := h.connect("/count", deflateHeader)
		writeAll(t, fd, message)
		if m := hear(t, fd); m.Op != proto.OpClose || proto.CloseCode(m.Payload) != code {
			t.Errorf("got %v %q, want code %d", m.Op, m.Payload, code)
		}
		h.onLoop(func(w *worker) {
			if got := w.connOf(fd).reason; got != reason {
				t.Errorf("the reason is %v, want %v", got, reason)
			}
		})
	}
	f(compressed(strings.Repeat("0", 10<<20)), 1009, closeTooBig)
	bad := text("no deflate")
	bad[0] |= 0x40
	f(bad, 1007, closeNotDeflate)
	f(compressed("\xff"), 1007, closeNotUTF8)
}

// TestCompressedMessageAllocatesNothing: in the steady state, as without compression.
func TestCompressedMessageAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector allocates; this run only shows that messages pass")
	}
	h := startEngine(t, compresses(1))
	fd := h.connect("/count", deflateHeader)
	burst := bytes.Repeat(compressed(strings.Repeat(`{"key":"value"}`, 20)), 16)
	burst = append(burst, frame(proto.OpPing, true, "?")...)
	pong := proto.AppendFrame(nil, proto.OpPong, []byte("?"))
	buf := make([]byte, 64<<10)
	allocations := testing.AllocsPerRun(200, func() { exchange(t, fd, burst, pong, buf) })
	if allocations != 0 && !raceEnabled {
		t.Errorf("%v allocations for 16 messages and a ping", allocations)
	}
}

// TestInflatingTakesTurns: one read may have messages that become a thousand times as long.
// Another client has its answer before all of them are handled.
func TestInflatingTakesTurns(t *testing.T) {
	h := startEngine(t, compresses(1))
	greedy, other := h.connect("/count", deflateHeader), h.connect("/count")
	const messages = 50
	burst := bytes.Repeat(compressed(strings.Repeat("0", 64<<10)), messages)
	if len(burst) > shortRead {
		t.Fatalf("%d bytes are more than one read", len(burst))
	}
	var first, after uint64
	h.onLoop(func(w *worker) {
		c := w.connOf(greedy)
		c.arrive(t, greedy, burst)
		w.connOf(other).arrive(t, other, text("me too"))
		c.onEvent(netpoll.Woken(netpoll.Readable))
		first = c.session.Count
	})
	if m := hear(t, other); !strings.Contains(string(m.Payload), "me too") {
		t.Errorf("got %q", m.Payload)
	}
	eventually(t, "all are counted", func() bool {
		h.onLoop(func(w *worker) { after = w.connOf(greedy).session.Count })
		return after == messages
	})
	if first != 1 {
		t.Errorf("%d messages were handled at once, want 1", first)
	}
}

// TestSendCompresses: a frame of Conn.Send too is compressed for who takes that.
func TestSendCompresses(t *testing.T) {
	h := startEngine(t, compresses(100))
	with, without := h.connect("/count", deflateHeader), h.connect("/count")
	payload := strings.Repeat("to all ", 100)
	h.onLoop(func(w *worker) {
		for _, c := range w.conns {
			c.Send(proto.OpText, []byte(payload))
		}
	})
	for fd, inflated := range map[int]bool{with: true, without: false} {
		if m := hear(t, fd); string(m.Payload) != payload || m.Inflated != inflated {
			t.Errorf("got %.50q, compressed: %v, want %v", m.Payload, m.Inflated, inflated)
		}
	}
}

// mirror is an application that sends back what it gets.
type mirror struct{ Silent }

func (mirror) OnMessage(_ *Conn, m proto.Message, out []byte) []byte {
	return proto.AppendFrame(out, m.Op, m.Payload)
}

// TestIdleConnectionsKeepNothing: a connection that has agreed on compression, and has used
// it in both directions, takes no byte more than another one.
func TestIdleConnectionsKeepNothing(t *testing.T) {
	const n, attempts, smallest = 1000, 5, 8 // smallest is the size of the smallest object that a connection could have
	h := startEngine(t, compresses(1), func(c *Config) {
		c.MaxConnections, c.Endpoints = 2*n, []Endpoint{{"/mirror", func() Handler { return mirror{} }}}
	})
	message := strings.Repeat("again and ", 50)
	plain := func() int64 { return h.heapOf(n, text(message)) }
	compressing := func() int64 { return h.heapOf(n, compressed(message), deflateHeader) }
	compressing() // makes the memory that the worker has for all, and its tables
	var with, without int64
	for range attempts { // garbage of earlier tests may go during one
		if with, without = compressing(), plain(); with-without < n*smallest {
			break
		}
	}
	if with-without >= n*smallest {
		t.Errorf("%d connections with compression take %d bytes, as many without it %d", n, with, without)
	}
	if saved := h.metrics().CompressSaved.Load(); saved < 2*n*uint64(len(message)/2) {
		t.Errorf("compression has saved %d bytes", saved)
	}
}

// heapOf is how many bytes of the heap n connections take that have each sent a message and
// got the answer. It returns when they have gone.
func (h *harness) heapOf(n int, message []byte, headers ...string) (bytes int64) {
	h.t.(*testing.T).Run("connections", func(t *testing.T) { // which end with it
		h := &harness{t: t, engine: h.engine, addr: h.addr}
		burst, pong := append(message, frame(proto.OpPing, true, "?")...), proto.AppendFrame(nil, proto.OpPong, []byte("?"))
		buf := make([]byte, 2*len(burst)+1000)
		before := h.heapInUse()
		for range n {
			exchange(t, h.connect("/mirror", headers...), burst, pong, buf)
		}
		bytes = h.heapInUse() - before
	})
	eventually(h.t, "all have gone", func() bool { return h.engine.Connections() == 0 })
	return bytes
}

// heapInUse is how many bytes of the heap are alive when the loop has done what it has.
func (h *harness) heapInUse() int64 {
	h.onLoop(func(*worker) {})
	runtime.GC()
	runtime.GC() // what a sync.Pool keeps over one
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
