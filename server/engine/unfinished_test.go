package engine

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/proto"
)

// begin sends what begins a message and does not end it, and waits until it is noted.
func (h *harness) begin(fd int, front []byte) {
	h.t.Helper()
	var before int
	h.onLoop(func(w *worker) { before = w.unfinished.count() })
	unix.Write(fd, front)
	eventually(h.t, "the message is noted", func() (noted bool) {
		h.onLoop(func(w *worker) { noted = w.unfinished.count() > before })
		return noted
	})
}

func (u *unfinished) count() (n int) {
	for in := u.first; in != nil; in = in.younger {
		n++
	}
	return n
}

// age makes all unfinished messages older, and lets the deadline pass for those that
// are overdue then.
func (h *harness) age(by time.Duration) {
	h.onLoop(func(w *worker) {
		for in := w.unfinished.first; in != nil; in = in.younger {
			in.began -= by
		}
		w.unfinished.OnTimer()
	})
}

var tooLate = proto.AppendClose(nil, proto.StatusPolicyViolation, "message not ended in time")

func TestMessageHasADeadline(t *testing.T) {
	f := func(name string, front, more []byte) {
		t.Run(name, func(t *testing.T) {
			h := startEngine(t)
			fd, buf := h.connect("/count"), make([]byte, 1000)
			h.begin(fd, front)
			h.age(messageTimeout * 2 / 3)
			exchange(t, fd, append(more, frame(proto.OpPing, true, "alive")...), proto.AppendFrame(nil, proto.OpPong, []byte("alive")), buf)
			h.age(messageTimeout/3 + time.Second)
			exchange(t, fd, nil, tooLate, buf)
		})
	}
	fragment := frame(proto.OpText, false, "a")
	f("a first fragment", fragment, nil)
	f("fragments without an end", fragment, bytes.Repeat(frame(proto.OpContinuation, false, ""), 100))
	f("a fragment behind a message", append(text("whole"), fragment...), nil)

	for _, front := range [][]byte{{0x81}, text("cut")[:7], frame(proto.OpPing, true, "cut")[:3]} {
		h := startEngine(t)
		fd := h.connect("/count")
		h.begin(fd, front)
		h.age(messageTimeout + time.Second)
		exchange(t, fd, nil, tooLate, make([]byte, 1000))
		if closed := h.metrics().Closes[closeMessageTimeout].Load(); closed != 0 {
			t.Errorf("%d are closed before the client has", closed)
		}
		unix.Shutdown(fd, unix.SHUT_WR)
		readToEnd(t, fd)
		h.onLoop(func(w *worker) {
			if w.unfinished.first != nil || w.unfinished.bytes != 0 || w.metrics.Closes[closeMessageTimeout].Load() != 1 {
				t.Errorf("afterwards: %+v", w.unfinished)
			}
		})
	}
}

// A client whose messages follow each other without a gap is not one that does not end
// them.
func TestEachMessageHasItsOwnDeadline(t *testing.T) {
	h := startEngine(t)
	fd, buf := h.connect("/count"), make([]byte, 1000)
	half := text("cut in two")
	h.begin(fd, half[:4])
	for range 5 {
		h.age(messageTimeout * 2 / 3)
		exchange(t, fd, append(half[4:len(half):len(half)], half[:4]...), []byte(`"cut in two"}`), buf)
	}
}

// The deadline is for the client, and not for the worker that does not read it.
func TestMessageOfAClientThatIsNotRead(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	h.begin(fd, text("cut")[:7])
	h.onLoop(func(w *worker) { w.heldBytes += heldBudget + 1 })
	h.age(messageTimeout + time.Second)
	h.onLoop(func(w *worker) {
		w.heldBytes -= heldBudget + 1
		w.conns[0].watch()
	})
	exchange(t, fd, text("cut")[7:], []byte(`"cut"}`), make([]byte, 1000))
}

// A client gets no more time for a message by a handover, whoever has begun one meanwhile.
func TestMessageKeepsItsDeadlineOverAHandover(t *testing.T) {
	h := startEngine(t)
	other, fd := h.connect("/count"), h.connect("/count")
	h.begin(fd, frame(proto.OpText, false, "a"))
	h.begin(other, frame(proto.OpText, false, "b"))
	h.onLoop(func(w *worker) { w.unfinished.first.began -= 2 * messageTimeout })
	h.handToItself()
	exchange(t, fd, nil, tooLate, make([]byte, 1000))
	exchange(t, other, frame(proto.OpContinuation, true, "c"), []byte(`"bc"}`), make([]byte, 1000))
}

// If even the fronts are too many, the oldest messages go. Who is within the bound ends his
// in peace.
func TestTheOldestMessagesGo(t *testing.T) {
	const size, few = 1 << 20, 4
	h := startEngine(t, func(c *Config) { c.MaxMessage = size })
	most := 0
	h.onLoop(func(w *worker) {
		most = w.unfinished.most()
		w.unfinished.bytes += most - few*size // as if others held the rest
	})
	message := text(strings.Repeat("x", size))
	var fds []int
	buf := make([]byte, 2*size)
	for range 2 * few {
		fd := h.connect("/count")
		writeAll(t, fd, message[:len(message)-1])
		eventually(t, "it is read", func() (read bool) {
			h.onLoop(func(w *worker) {
				read = len(w.connOf(fd).spill()) == len(message)-1
				if w.unfinished.bytes > most+2*size {
					t.Errorf("%d bytes are held", w.unfinished.bytes)
				}
			})
			return read
		})
		fds = append(fds, fd)
	}
	last := fds[len(fds)-few+1:]
	for _, fd := range last {
		exchange(t, fd, message[len(message)-1:], []byte(`"}`), buf)
	}
	for _, fd := range fds[:few] {
		exchange(t, fd, nil, proto.AppendClose(nil, proto.StatusTryAgainLater, "too many unfinished messages"), buf)
	}
}

// A header that announces a long message costs nothing, and a long message no more than
// its length.
func TestMemoryOfALongMessage(t *testing.T) {
	const size = 2 << 20
	h := startEngine(t, func(c *Config) { c.MaxMessage = size })
	fd, message := h.connect("/count"), text(strings.Repeat("x", size))
	sent := 0
	for _, upTo := range []int{14, 40_000, 600_000, 1_500_000, size} {
		writeAll(t, fd, message[sent:upTo])
		sent = upTo
		eventually(t, "it is read", func() (read bool) {
			h.onLoop(func(w *worker) {
				spill := w.conns[0].spill()
				read = len(spill) == sent
				if most := min(max(2*len(spill), spillAtOnce), len(message)+spillSlack); cap(spill) > most {
					t.Errorf("%d bytes take %d", len(spill), cap(spill))
				}
			})
			return read
		})
	}
	exchange(t, fd, message[sent:], []byte(`"}`), make([]byte, 2*size))
	h.onLoop(func(w *worker) {
		if c := w.conns[0]; c.input != nil {
			t.Errorf("%d bytes stay", cap(c.spill()))
		}
	})
}

// The memory of a long message that has ended is that of the next one, of whichever client.
func TestLongMessagesShareMemory(t *testing.T) {
	const size, front = 60_000, 40_000
	h := startEngine(t)
	var fds [3]int
	for i := range fds {
		fds[i] = h.connect("/count")
	}
	begin := func(fd int, message []byte) (memory *byte) {
		t.Helper()
		writeAll(t, fd, message[:front])
		eventually(t, "the front is read", func() (read bool) {
			h.onLoop(func(w *worker) {
				spill := w.connOf(fd).spill()
				if read = len(spill) == front; read {
					memory = &spill[0]
				}
			})
			return read
		})
		return memory
	}
	end := func(fd int, message []byte, payload string) {
		t.Helper()
		exchange(t, fd, message[front:], []byte(`,"message":"`+payload+`"}`), make([]byte, 2*size))
	}
	payloads := [3]string{strings.Repeat("a", size), strings.Repeat("b", size), strings.Repeat("c", size)}
	a, b, c := text(payloads[0]), text(payloads[1]), text(payloads[2])
	ofA, ofB := begin(fds[0], a), begin(fds[1], b)
	if ofA == ofB {
		t.Fatal("two messages that are under way have the same memory")
	}
	end(fds[0], a, payloads[0])
	if ofC := begin(fds[2], c); ofC != ofA {
		t.Error("the third message has memory of its own")
	}
	end(fds[1], b, payloads[1])
	end(fds[2], c, payloads[2])
	h.onLoop(func(w *worker) {
		if len(w.spares) != 2 || &w.spares[0][:1][0] == &w.spares[1][:1][0] {
			t.Errorf("%d spares at the end", len(w.spares))
		}
		w.shrink()
		if len(w.spares) != 0 {
			t.Errorf("%d spares after shrink", len(w.spares))
		}
	})
}
