package engine

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
)

// lingering is a client whose connection lingers for as long as the test takes.
func (h *harness) lingering() (fd int) {
	h.t.Helper()
	fd = h.connect("/count")
	h.onLoop(func(w *worker) {
		c := w.conns[len(w.conns)-1]
		c.sendClose(CloseGoodbye, proto.StatusNormalClosure, "")
		if c.flush(); c.state != stateLingering {
			h.t.Errorf("state %d", c.state)
		}
		c.dueAt = w.loop.Now() + time.Hour
	})
	exchange(h.t, fd, nil, []byte("\x88\x02\x03\xe8"), make([]byte, 100))
	return fd
}

// isOver reports whether the server has ended its side.
func isOver(fd int) bool {
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
	return n == 0 && err == nil
}

// A proxy would take the server's end for the end of both sides.
func TestLingeringKeepsTheServersSideOpen(t *testing.T) {
	h := startEngine(t)
	fd := h.lingering()
	unix.Write(fd, append(text("still on its way"), frame(proto.OpPing, true, "?")...))
	eventually(t, "it is read", func() (read bool) {
		h.onLoop(func(w *worker) { read = netpoll.Unread(int(w.conns[0].fd)) == 0 && w.conns[0].input != nil })
		return read
	})
	if isOver(fd) {
		t.Error("the server has ended its side before the client has closed")
	}
	cut := frame(proto.OpClose, true, "\x03\xe8")
	unix.Write(fd, cut[:3])
	unix.Write(fd, cut[3:])
	if got := readToEnd(t, fd); len(got) > 0 {
		t.Errorf("%q behind the close frame", got)
	}
	if closed := h.metrics().Closes[CloseGoodbye].Load(); closed != 1 {
		t.Errorf("%d are closed for their reason", closed)
	}
}

// A refused request is no WebSocket: HTTP clients wait for the end.
func TestRefusalEndsTheServersSide(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.PlainPlaces = 0 })
	fd := h.dial("/nowhere")
	if got := readToEnd(t, fd); len(got) == 0 {
		t.Error("no answer")
	}
}

// What was read before the close frame and not handled may be the client's close.
func TestCloseFrameThatWaitedInTheSpill(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		c.keepRest(append(text("never handled"), frame(proto.OpClose, true, "")...))
		c.paused = true
		c.sendClose(CloseGoodbye, proto.StatusNormalClosure, "")
		if c.flush(); c.state != stateClosed {
			t.Errorf("state %d", c.state)
		}
	})
	exchange(t, fd, nil, []byte("\x88\x02\x03\xe8"), make([]byte, 100))
}

// The client's close has come, and the worker comes to the deadline before it reads that.
func TestCloseFrameAtTheDeadline(t *testing.T) {
	h := startEngine(t)
	fd := h.lingering()
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		c.arrive(t, fd, frame(proto.OpClose, true, "\x03\xe8"))
		c.dueAt = w.loop.Now()
		if c.OnTimer(); c.state != stateClosed {
			t.Errorf("state %d", c.state)
		}
	})
	if got := readToEnd(t, fd); len(got) > 0 { // which fails at a RST
		t.Errorf("%q behind the close frame", got)
	}
}

// A client that sends on and on does not stay, and costs no more than a bound.
func TestFloodWhileLingering(t *testing.T) {
	f := func(name string, reason CloseReason, most int) {
		t.Run(name, func(t *testing.T) {
			h := startEngine(t)
			fd := h.lingering()
			h.onLoop(func(w *worker) { w.conns[0].reason = reason })
			unix.SetNonblock(fd, true)
			flood := bytes.Repeat([]byte{0x81}, 1<<20) // messages of a byte
			eventually(t, "it is not read any more", func() (deaf bool) {
				for {
					if _, err := unix.Write(fd, flood); err != nil {
						break
					}
				}
				h.onLoop(func(w *worker) {
					c := w.conns[0]
					deaf = netpoll.Events(c.watched)&netpoll.Readable == 0
					if c.input != nil && (c.input.skipped > most+readBufferBytes || cap(c.input.spill) > 0) {
						t.Errorf("%d bytes are read, %d kept", c.input.skipped, cap(c.input.spill))
					}
				})
				return deaf
			})
			h.onLoop(func(w *worker) {
				c := w.conns[0]
				c.dueAt = w.loop.Now()
				if c.OnTimer(); c.state != stateClosed {
					t.Errorf("at the deadline it is in state %d", c.state)
				}
			})
		})
	}
	f("goodbye", CloseGoodbye, skipMost)
	f("too many messages", closeRate, skipFlood)
}

// A long message that is under way is read to its end, and so is the client's close.
func TestCloseFrameBehindALongMessage(t *testing.T) {
	h := startEngine(t)
	fd := h.lingering()
	var sent []byte
	for i, fragment := range []int{skipMost / 2, 60_000, skipMost / 4} {
		sent = append(sent, frame([]proto.OpCode{proto.OpText, 0, 0}[i], i == 2, strings.Repeat("x", fragment))...)
	}
	go writeAll(t, fd, append(sent, frame(proto.OpClose, true, "\x03\xe8")...))
	readToEnd(t, fd)
	if closed := h.metrics().Closes[CloseGoodbye].Load(); closed != 1 {
		t.Errorf("%d are closed for their reason", closed)
	}
}

// Its last word is said: nobody else has to go on with it.
func TestLingeringIsNotHandedOver(t *testing.T) {
	h := startEngine(t)
	fd := h.lingering()
	h.engine.HoldRequests(true)
	batch, staying := h.freeze(0, 10)
	h.engine.HoldRequests(false)
	if len(batch.Records) != 0 || staying != 0 {
		t.Errorf("%d go, %d are to follow", len(batch.Records), staying)
	}
	batch.Release()
	unix.Write(fd, frame(proto.OpClose, true, "\x03\xe8"))
	if got := readToEnd(t, fd); len(got) > 0 {
		t.Errorf("%q behind the close frame", got)
	}
}
