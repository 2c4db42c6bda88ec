package engine

import (
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/proto"
)

// weigh is an application that answers shortly, and notes the most that unfinished messages
// hold when one ends.
type weigh struct {
	Silent
	most *int
}

var thanks = proto.AppendFrame(nil, proto.OpText, []byte("thanks"))

func (a weigh) OnMessage(c *Conn, _ proto.Message, out []byte) []byte {
	u := &c.worker.unfinished
	*a.most = max(*a.most, u.bytes)
	if u.bodies > u.bodyBudget() {
		panic("BUG: the bodies hold more than their budget")
	}
	return append(out, thanks...)
}

func binary(payload string) []byte { return frame(proto.OpBinary, true, payload) }

// aWhile is more than a test takes.
const aWhile = time.Hour

// startWeighed starts an engine with weigh at /weigh. Nothing is too slow there, unless pass
// lets time pass.
func startWeighed(t *testing.T, change ...func(*Config)) (h *harness, most *int) {
	most = new(int)
	h = startEngine(t, append(change, func(c *Config) {
		c.Endpoints = []Endpoint{{"/weigh", func() Handler { return weigh{most: most} }}}
	})...)
	h.onLoop(func(w *worker) { w.unfinished.standstill = aWhile })
	return h, most
}

// pass lets so much time pass for the pace of all messages that have begun, and ends those
// that are too slow. It runs on the loop.
func (u *unfinished) pass(time time.Duration) {
	u.waitedSince -= time
	for in := u.first; in != nil; in = in.younger {
		in.slowAt -= time
	}
	u.OnTimer()
}

// waits waits until a client waits for the memory of others.
func (h *harness) waits(fd int) {
	h.t.Helper()
	eventually(h.t, "it waits", func() (waits bool) {
		h.onLoop(func(w *worker) { waits = w.connOf(fd).isWaiting() })
		return waits
	})
}

func (h *harness) wantNoneClosedForMemory() {
	h.t.Helper()
	h.onLoop(func(w *worker) {
		if n := w.metrics.Closes[closeMessageMemory].Load(); n != 0 {
			h.t.Errorf("%d are closed for their memory", n)
		}
	})
}

// connectAll opens n clients, into whose sockets a whole message fits.
func (h *harness) connectAll(n, message int) (fds []int) {
	for range n {
		fd := h.connect("/weigh")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*message); err != nil {
			h.t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// A thousand clients send a long message each at the same moment, which is more than the
// budget, and none can end his before all have begun. All are answered, and the memory
// stays within the budget.
func TestLongMessagesAtOnce(t *testing.T) {
	const size, front = 64 << 10, 40 << 10
	clients := 1000
	if raceEnabled {
		clients = 400
	}
	h, most := startWeighed(t, func(c *Config) { c.MaxConnections = clients })
	fds, message := h.connectAll(clients, size), binary(strings.Repeat("x", size))
	for _, fd := range fds {
		writeAll(t, fd, message[:front])
	}
	u := &h.engine.workers[0].unfinished
	eventually(t, "the others wait", func() (all bool) {
		h.onLoop(func(*worker) { all = len(u.waiting) >= clients-u.bodyBudget()/size-1 })
		return all
	})
	for _, fd := range fds {
		writeAll(t, fd, message[front:])
	}
	buf := make([]byte, 100)
	for _, fd := range fds {
		exchange(t, fd, nil, thanks, buf)
	}
	h.wantNoneClosedForMemory()
	h.onLoop(func(w *worker) {
		if *most < unfinishedBudget/2 || *most > unfinishedBudget {
			t.Errorf("they hold %d bytes at the most", *most)
		}
		if u.first != nil || u.bytes != 0 || u.bodies != 0 || u.beyondBudget != nil || len(u.waiting) > 0 {
			t.Errorf("afterwards: %+v", *u)
		}
	})
}

// Fragments of messages that do not fit beside each other: none can end before it has got
// more, and each has a part of the budget. All end, one after the other.
func TestFragmentsThatGrowAtOnce(t *testing.T) {
	const clients, size, part = 20, 1 << 20, 32 << 10
	h, _ := startWeighed(t, func(c *Config) { c.MaxMessage = size })
	var sending sync.WaitGroup
	someWait := make(chan struct{})
	fds := h.connectAll(clients, part)
	for _, fd := range fds {
		sending.Go(func() {
			fragment := frame(proto.OpBinary, false, strings.Repeat("x", part))
			for range size/part - 1 {
				writeAll(t, fd, fragment)
				fragment = frame(proto.OpContinuation, false, strings.Repeat("x", part))
			}
			<-someWait
			writeAll(t, fd, frame(proto.OpContinuation, true, ""))
		})
	}
	eventually(t, "some wait", func() (some bool) {
		h.onLoop(func(w *worker) { some = len(w.unfinished.waiting) > 0 })
		return some
	})
	close(someWait)
	for _, fd := range fds {
		exchange(t, fd, nil, thanks, make([]byte, 100))
	}
	sending.Wait()
	h.wantNoneClosedForMemory()
}

// Some hold all of the budget, and more of them wait. What stands still ends, so that an
// honest client goes on; short messages, and what is under way, do not even wait.
func TestWhoHoldsAllOfTheBudget(t *testing.T) {
	const clients, size = 300, 64 << 10
	h, _ := startWeighed(t)
	fds, message := h.connectAll(clients, size), binary(strings.Repeat("x", size))
	last, buf, u := len(message)-1, make([]byte, 100), &h.engine.workers[0].unfinished
	for _, fd := range fds {
		writeAll(t, fd, message[:last])
	}
	eventually(t, "the others wait", func() (all bool) {
		h.onLoop(func(*worker) { all = len(u.waiting) >= clients-u.bodyBudget()/size-1 })
		return all
	})
	honest := h.connectAll(2, size)
	writeAll(t, honest[0], message)
	exchange(t, honest[1], text("short"), thanks, buf)
	h.waits(honest[0])
	h.onLoop(func(w *worker) {
		w.connOf(fds[0]).input.slowAt += 2 * aWhile
		u.pass(2 * aWhile)
		closed := 0
		for _, c := range w.conns {
			if c.reason == closeMessageMemory {
				closed++
			}
		}
		if most := u.bodyBudget() / size; closed < most-10 || closed > most+1 {
			t.Errorf("%d of %d are closed for their memory", closed, clients)
		}
	})
	exchange(t, honest[0], nil, thanks, buf)
	exchange(t, fds[0], message[last:], thanks, buf)
}

// If all of the budget is held, one message after the other goes on beyond it.
func TestOneMessageBeyondTheBudget(t *testing.T) {
	const clients, size = 10, 64 << 10
	h, most := startWeighed(t)
	fds, message := h.connectAll(clients, size), binary(strings.Repeat("x", size))
	h.onLoop(func(w *worker) {
		u := &w.unfinished
		u.bodies, u.bytes = u.bodyBudget(), u.bodyBudget() // as if others held it
	})
	for _, fd := range fds {
		writeAll(t, fd, message)
	}
	for _, fd := range fds {
		exchange(t, fd, nil, thanks, make([]byte, 100))
	}
	h.onLoop(func(w *worker) {
		if bound := w.unfinished.bodyBudget() + size + 2*spillSlack + clients*shortRead; *most > bound {
			t.Errorf("they hold %d bytes, want %d at the most", *most, bound)
		}
	})
	h.wantNoneClosedForMemory()
}

// Others hold all of the budget, and one client the place beyond it, from which it sends part
// after part. It is closed when it is too slow, and not before: another one waits.
func TestPaceBeyondTheBudget(t *testing.T) {
	const size, front, steps = 64 << 10, 9 << 10, 10
	const leastPart = spillAtOnce / standstillsToHold / 4 // of a quarter of the longest standstill
	f := func(name string, part int, isSlow bool) {
		t.Run(name, func(t *testing.T) {
			h, _ := startWeighed(t)
			fds, message, buf := h.connectAll(2, size), binary(strings.Repeat("x", size)), make([]byte, 100)
			h.onLoop(func(w *worker) {
				u := &w.unfinished
				u.bodies, u.bytes = u.bodyBudget(), u.bodyBudget() // as if others held it
			})
			sent, closed := 0, false
			send := func(n int) {
				writeAll(t, fds[0], message[sent:sent+n])
				sent += n
				eventually(t, "it is read", func() (read bool) {
					h.onLoop(func(w *worker) { read = len(w.connOf(fds[0]).spill()) == sent })
					return read
				})
			}
			send(front)
			writeAll(t, fds[1], message)
			h.waits(fds[1])
			for i := 0; i < steps && !closed; i++ {
				send(part)
				h.onLoop(func(w *worker) {
					w.unfinished.pass(aWhile / 4)
					closed = w.connOf(fds[0]).reason == closeMessageMemory
				})
			}
			if closed != isSlow {
				t.Fatalf("the first is closed: %v", closed)
			}
			if !isSlow {
				exchange(t, fds[0], message[sent:], thanks, buf)
			}
			exchange(t, fds[1], nil, thanks, buf)
		})
	}
	f("single bytes", 1, true)
	f("half of what has to come", leastPart/2, true)
	f("a little more than that", leastPart*5/4, false)
}

// A client is not read while many answers wait. It goes if it does not take them, and others
// wait for the memory of its message; but not if the answers wait for the store.
func TestClientThatTakesNoAnswersKeepsNoPlace(t *testing.T) {
	const size, answers = 60 << 10, highWater + 1
	f := func(name string, sendable int, goes bool) {
		t.Run(name, func(t *testing.T) {
			h, _ := startWeighed(t)
			fds, message := h.connectAll(2, size), binary(strings.Repeat("x", size))
			h.onLoop(func(w *worker) {
				u := &w.unfinished
				u.bodies, u.bytes = u.bodyBudget(), u.bodyBudget() // as if others held it
			})
			writeAll(t, fds[0], message[:size/2])
			eventually(t, "it is read", func() (read bool) {
				h.onLoop(func(w *worker) { read = len(w.connOf(fds[0]).spill()) == size/2 })
				return read
			})
			writeAll(t, fds[1], message)
			h.waits(fds[1])
			h.onLoop(func(w *worker) {
				c := w.connOf(fds[0])
				c.keep(make([]byte, answers), sendable) // as if its socket were full
				c.storing = sendable == 0
				w.unfinished.pass(2 * aWhile)
				if c.reason == closeMessageMemory != goes {
					t.Errorf("it ends as %d", c.reason)
				}
				c.dropHeld()
			})
			if goes {
				exchange(t, fds[1], nil, thanks, make([]byte, 100))
			}
		})
	}
	f("its socket is full", answers, true)
	f("they wait for the store", 0, false)
}

// Whole frames that wait until answers have gone count as what is unfinished does.
func TestFramesThatWaitCount(t *testing.T) {
	const size = 40 << 10
	h, _ := startWeighed(t)
	fd := h.connect("/weigh")
	h.onLoop(func(w *worker) {
		c, u := w.conns[0], &w.unfinished
		c.paused = true
		c.keepRest(binary(strings.Repeat("x", size)))
		if u.bodies < size || u.bytes < size {
			t.Errorf("%d bytes count, %d of bodies", u.bytes, u.bodies)
		}
		c.resume()
		c.flush()
		if u.bodies != 0 || u.bytes != 0 || u.first != nil {
			t.Errorf("afterwards: %+v", *u)
		}
	})
	exchange(t, fd, nil, thanks, make([]byte, 100))
}

// In a crowd each holds leastFront, and goes on from there.
func TestFrontsInACrowd(t *testing.T) {
	h, _ := startWeighed(t)
	fd, message, buf := h.connect("/weigh"), binary(strings.Repeat("x", 7<<10)), make([]byte, 100)
	other := &input{}
	h.onLoop(func(w *worker) {
		u := &w.unfinished
		u.bodies, u.beyondBudget = u.bodyBudget(), other // as if others held all
		u.fronts = unfinishedBudget/4 + 1
		u.first, u.last = other, other
		other.conn, other.began = w.conns[0], w.loop.Now()
	})
	writeAll(t, fd, message)
	h.waits(fd)
	h.onLoop(func(w *worker) {
		if n := len(w.conns[0].spill()); n != leastFront {
			t.Errorf("%d bytes are read", n)
		}
		w.unfinished.remove(other)
	})
	exchange(t, fd, nil, thanks, buf)
}
