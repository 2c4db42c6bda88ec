package engine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
)

// order is an application that notes whose messages come when.
type order struct {
	Silent
	messages *[]*Conn
}

func (o order) OnMessage(c *Conn, _ proto.Message, out []byte) []byte {
	*o.messages = append(*o.messages, c)
	return out
}

// TestManyMessagesLeaveOthersTheirTurn: of a client that has sent several buffers of
// short messages, one short read is handled before a client that has sent one message.
func TestManyMessagesLeaveOthersTheirTurn(t *testing.T) {
	var messages []*Conn
	h := startEngine(t, func(c *Config) {
		c.Endpoints = []Endpoint{{"/order", func() Handler { return order{messages: &messages} }}}
	})
	hog, other := h.connect("/order"), h.connect("/order")
	short := text("x")
	flood := bytes.Repeat(short, 4*readBufferBytes/len(short))
	var hogs, others *Conn
	h.onLoop(func(w *worker) { hogs, others = w.conns[0], w.conns[1] })
	// Room for more than one buffer, without a reader.
	if err := unix.SetsockoptInt(int(hogs.fd), unix.SOL_SOCKET, unix.SO_RCVBUF, len(flood)); err != nil {
		t.Fatal(err)
	}
	goOn := h.hold()
	go writeAll(t, hog, flood)
	eventually(t, "two buffers have come", func() bool { return netpoll.Unread(int(hogs.fd)) >= 2*readBufferBytes })
	writeAll(t, other, short)
	eventually(t, "the message has come", func() bool { return netpoll.Unread(int(others.fd)) == len(short) })
	goOn()
	perRead := shortRead/len(short) + 1
	var before int
	eventually(t, "the other's message is handled", func() (done bool) {
		h.onLoop(func(*worker) {
			for i, c := range messages {
				if c != hogs {
					before, done = i, true
				}
			}
		})
		return done
	})
	if before == 0 || before > perRead {
		t.Errorf("%d messages of one client were handled before another's, want one read's: %d", before, perRead)
	}
	eventually(t, "all is handled", func() (done bool) {
		h.onLoop(func(*worker) { done = len(messages) == len(flood)/len(short)+1 })
		return done
	})
}

// roll is an application that notes how many connections its worker has at a message.
type roll struct {
	Silent
	conns *int
}

func (r roll) OnMessage(c *Conn, _ proto.Message, out []byte) []byte {
	*r.conns = len(c.worker.conns)
	return out
}

// Of a crowd that comes at once, the worker welcomes some before it handles the message of
// a client that is there; and in the end all.
func TestCrowdsLeaveOthersTheirTurn(t *testing.T) {
	var conns int
	h := startEngine(t, func(c *Config) {
		c.Endpoints = []Endpoint{{"/roll", func() Handler { return roll{conns: &conns} }}}
	})
	fd := h.connect("/roll")
	var there *Conn
	h.onLoop(func(w *worker) { there = w.conns[0] })
	goOn := h.hold()
	const crowd = 4 * welcomeMost
	for range crowd {
		h.ask("")
	}
	b := h.engine.workers[0].inbox
	eventually(t, "the crowd has come", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.arrivals) == crowd
	})
	writeAll(t, fd, text("x"))
	eventually(t, "the message has come", func() bool { return netpoll.Unread(int(there.fd)) == len(text("x")) })
	goOn()
	eventually(t, "all are welcome", func() (all bool) {
		h.onLoop(func(w *worker) { all = len(w.conns) == 1+crowd && conns > 0 })
		return all
	})
	if conns > 1+welcomeMost {
		t.Errorf("%d connections came before the message", conns-1)
	}
}

// Of a crowd at one listener, the acceptor takes some before it looks at another listener.
func TestCrowdsLeaveOtherListenersTheirTurn(t *testing.T) {
	h := startEngine(t)
	crowded, other := h.engine.acceptor.listeners[0], h.listen()
	b := h.engine.workers[0].inbox
	defer h.hold()() // what is accepted stays in the inbox
	goOn := holdLoop(t, h.engine.acceptor.loop)
	const crowd = 4 * acceptBatch
	for range crowd {
		h.ask("")
	}
	waitForQueue(t, crowded, crowd)
	h.addr = other.Addr
	h.ask("")
	waitForQueue(t, other, 1)
	goOn()
	var arrivals []arrival
	eventually(t, "all are accepted", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		arrivals = slices.Clone(b.arrivals)
		return len(arrivals) == crowd+1
	})
	before := slices.IndexFunc(arrivals, func(a arrival) bool {
		name, err := unix.Getsockname(a.fd)
		if err != nil {
			t.Fatal(err)
		}
		return strings.HasSuffix(other.Addr, fmt.Sprint(":", name.(*unix.SockaddrInet4).Port))
	})
	if before < 0 || before > acceptBatch {
		t.Errorf("%d of the crowd were accepted before the other's client, want %d at the most", before, acceptBatch)
	}
}

// listen adds a listener.
func (h *harness) listen() *netpoll.Listener {
	h.t.Helper()
	l, err := netpoll.Listen(testHost + ":0")
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.engine.Listen(l); err != nil {
		h.t.Fatal(err)
	}
	return l
}

// waitForQueue waits until n sockets wait to be accepted: tcp_info(7) has that of a listener
// as tcpi_unacked.
func waitForQueue(t *testing.T, l *netpoll.Listener, n int) {
	t.Helper()
	eventually(t, "the sockets wait", func() bool {
		info, err := unix.GetsockoptTCPInfo(l.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		return int(info.Unacked) == n
	})
}
