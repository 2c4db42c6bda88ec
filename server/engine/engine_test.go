package engine

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/session"
)

func TestMessageAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector allocates; this run only shows that messages pass")
	}
	h := startEngine(t)
	fd := h.connect("/count")
	burst := bytes.Repeat(text("a message"), 16)
	burst = append(burst, frame(proto.OpPing, true, "?")...)
	pong := proto.AppendFrame(nil, proto.OpPong, []byte("?"))
	buf := make([]byte, 64<<10)
	allocations := testing.AllocsPerRun(500, func() { exchange(t, fd, burst, pong, buf) })
	if allocations != 0 && !raceEnabled {
		t.Errorf("%v allocations for 16 messages and a ping", allocations)
	}
}

func TestSystemCallsOfAMessage(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	buf := make([]byte, 64<<10)
	m := h.metrics()
	count := func(messages int) (reads, writes uint64) {
		burst := bytes.Repeat(text("x"), messages-1)
		burst = append(burst, text("last")...)
		settle := func() { h.onLoop(func(*worker) {}) } // a client may have an answer before its write is counted
		settle()
		r, w := m.ReadCalls.Load(), m.WriteCalls.Load()
		exchange(t, fd, burst, []byte(`"last"}`), buf)
		settle()
		return m.ReadCalls.Load() - r, m.WriteCalls.Load() - w
	}
	for _, messages := range []int{1, 16} {
		if r, w := count(messages); r != 1 || w != 1 {
			t.Errorf("%d messages at once: %d reads and %d writes, want one of each", messages, r, w)
		}
	}
}

// A read behind an unfinished frame takes as much as any other.
func TestStreamIsReadInFullBuffers(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	stream := bytes.Repeat(text(strings.Repeat("x", 2*longMessage)), 30)
	stream = append(stream, text("last")...)
	h.onLoop(func(w *worker) { w.conns[0].sendsLong = true })
	unix.Write(fd, stream[:3])
	eventually(t, "a part of a frame is kept", func() (kept bool) {
		h.onLoop(func(w *worker) { kept = len(w.conns[0].spill()) == 3 })
		return kept
	})
	var before uint64
	h.onLoop(func(w *worker) {
		before = w.metrics.ReadCalls.Load()
		w.conns[0].arrive(t, fd, stream[3:])
	})
	exchange(t, fd, nil, []byte(`"last"}`), make([]byte, 1<<20))
	h.onLoop(func(w *worker) {
		if reads := w.metrics.ReadCalls.Load() - before; reads != 1 {
			t.Errorf("%d reads for %d bytes", reads, len(stream)-3)
		}
	})
}

// The text of one long message does not stay as memory for replies.
func TestLongReplyIsNotKept(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.MaxMessage = 1_000_000 })
	fd := h.connect("/count")
	message := strings.Repeat("\x01", 1_000_000)
	exchange(t, fd, text(message), []byte(`"}`), make([]byte, 8<<20))
	h.onLoop(func(w *worker) {
		if cap(w.out) > maxOut {
			t.Errorf("%d bytes are kept", cap(w.out))
		}
	})
}

func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	buf := make([]byte, 1<<20)
	fragments := bytes.Join([][]byte{frame(proto.OpText, false, "a"), frame(proto.OpContinuation, true, "b")}, nil)
	exchange(t, fd, fragments, []byte(`"ab"}`), buf)
	whole := text("cut in two")
	unix.Write(fd, whole[:5])
	eventually(t, "the first half is kept", func() (kept bool) {
		h.onLoop(func(w *worker) { kept = len(w.conns[0].spill()) == 5 })
		return kept
	})
	exchange(t, fd, whole[5:], []byte(`"cut in two"}`), buf)
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		if c.input != nil || c.backlog != nil || c.parsed != (proto.Unfinished{}) {
			t.Errorf("input %+v, backlog %d, parser %+v", c.input, c.backlog.length(), c.parsed)
		}
	})
}

// The size is a size class of Go's allocator: one byte more costs 16.
func TestSizeOfAConnection(t *testing.T) {
	if size := unsafe.Sizeof(Conn{}); size > 208 {
		t.Errorf("a Conn has %d bytes: is every field worth it?", size)
	}
}

// Closing must be safe from every state, in the middle of whatever runs, and
// end in nothing held.
func TestCloseFromEveryState(t *testing.T) {
	h := startEngine(t)
	reach := map[state]func(c *Conn){
		stateOpen:      func(*Conn) {},
		stateLingering: func(c *Conn) { c.sendClose(CloseGoodbye, proto.StatusNormalClosure, "") },
		stateClosing: func(c *Conn) {
			c.worker.out = append(c.worker.out, make([]byte, 8<<20)...) // more than the socket takes
			c.sendClose(CloseGoodbye, proto.StatusNormalClosure, "")
		},
	}
	for want, act := range reach {
		h.connect("/count")
		h.onLoop(func(w *worker) {
			c := w.conns[0]
			act(c)
			if c.flush(); c.state != want {
				t.Errorf("state %d, want %d", c.state, want)
			}
			c.close(closeReset)
			c.close(closeReset)
			c.flush()
			if len(w.conns) != 0 || w.upgraded != 0 || c.backlog != nil {
				t.Errorf("from state %d: %d connections, %d upgraded, backlog %d", want, len(w.conns), w.upgraded, c.backlog.length())
			}
		})
	}
	if held := h.metrics().Backlog.Load(); held != 0 {
		t.Errorf("backlog of %d bytes is counted", held)
	}
}

// The number of a closed fd may be somebody else's by the time a late event
// comes.
func TestLateEventTouchesNothing(t *testing.T) {
	h := startEngine(t)
	h.connect("/count")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		number := int(c.fd)
		c.close(closeReset)
		if err := unix.Dup3(pair[0], number, 0); err != nil {
			t.Error(err)
		}
		defer unix.Close(number)
		unix.Write(pair[1], text("for the new owner"))
		c.onEvent(netpoll.Woken(netpoll.Readable | netpoll.Writable))
	})
	if n, err := read(pair[0], make([]byte, 100)); err != nil || n != len(text("for the new owner")) {
		t.Errorf("the new owner reads %d bytes, %v", n, err)
	}
}

// A closed connection is garbage at once: no timer and no table holds it.
func TestClosedConnectionIsFreed(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.Heartbeat = time.Hour })
	freed := make(chan struct{})
	h.connect("/count")
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		runtime.SetFinalizer(c, func(*Conn) { close(freed) })
		c.close(closeReset)
	})
	eventually(t, "it is freed", func() bool {
		runtime.GC()
		select {
		case <-freed:
			return true
		default:
			return false
		}
	})
}

// After a pause of the whole process every client looks silent; what they sent
// meanwhile is in their sockets.
func TestLastLookBeforeAClientIsDead(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	buf := make([]byte, 1<<16)
	exchange(t, fd, text("one"), []byte(`"one"}`), buf)
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		c.arrive(t, fd, text("two"))
		c.lastRead -= 3 * w.engine.config.Heartbeat
		c.OnTimer()
		if c.state != stateOpen {
			t.Errorf("state %d", c.state)
		}
	})
	exchange(t, fd, text("three"), []byte(`"three"}`), buf)
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		if c.lastRead -= 3 * w.engine.config.Heartbeat; c.session.Count != 3 {
			t.Errorf("%d messages counted", c.session.Count)
		}
		if c.OnTimer(); c.state != stateClosed {
			t.Errorf("a client that is really silent is in state %d", c.state)
		}
	})
}

// Progress alone does not help: what is due keeps its deadline until all of it
// has left, and only what came after it gets a new one.
func TestEveryByteOwedHasItsDeadline(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.WriteTimeout = 10 * time.Minute })
	fd := h.connect("/count")
	const big = 32 << 20 // more than any socket takes
	h.onLoop(func(w *worker) {
		w.out = append(w.out, make([]byte, big)...)
		w.conns[0].flush()
	})
	// progress reads until the socket takes more, and reports what that did
	// to a deadline of 1.
	progress := func(due int) (left int, deadline time.Duration) {
		buf := make([]byte, 1<<20)
		for moved := false; !moved; {
			read(fd, buf)
			h.onLoop(func(w *worker) {
				c := w.conns[0]
				held := c.backlog.length()
				c.backlog.deadline, c.backlog.due = 1, due
				c.onWritable()
				moved, left, deadline = c.backlog.length() < held, c.backlog.due, c.backlog.deadline
			})
		}
		return left, deadline
	}
	if left, deadline := progress(big); left >= big || deadline != 1 {
		t.Errorf("some of what was due left: %d of %d are still due, by %v", left, big, deadline)
	}
	if left, deadline := progress(1); left <= 1 || deadline == 1 {
		t.Errorf("all that was due left: %d are due now, by %v", left, deadline)
	}
}

// What comes between the drain's begin and a connection's goodbye is too late,
// and is told so.
func TestMessagesDuringTheDrainAreRefused(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	buf := make([]byte, 1<<16)
	h.onLoop(func(w *worker) { w.draining = true })
	id := ""
	h.onLoop(func(w *worker) { id = w.conns[0].session.ID().String() })
	exchange(t, fd, text("too late"), []byte(`{"error":"Server is shutting down","session_id":"`+id+`"}`), buf)
	exchange(t, fd, text("goodbye"), []byte("\x88\x10\x03\xe8Normal closure"), buf)
	h.onLoop(func(w *worker) { w.draining = false })
}

// What is in a socket, not yet read, when the drain begins has arrived in time.
func TestDrainReadsWhatHasArrived(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	h.onLoop(func(w *worker) {
		w.conns[0].arrive(t, fd, text("in time"))
		w.drain(func() {})
	})
	unix.Shutdown(fd, unix.SHUT_WR)
	if got := string(readToEnd(t, fd)); !strings.Contains(got, `"message":"in time"}`) ||
		!strings.Contains(got, `"total":1,"reason":"server_shutdown"`) {
		t.Errorf("got %q", got)
	}
}

// A claim between two messages of one callback: the replies to what did not
// count are not sent, and what was sent stands.
func TestTakeoverWithinACallback(t *testing.T) {
	h := startEngine(t)
	fd := h.connect("/count")
	buf := make([]byte, 1<<16)
	exchange(t, fd, text("one"), []byte(`"one"}`), buf)
	var other stolen
	h.onLoop(func(w *worker) {
		c := w.conns[0]
		c.onFrame(proto.Message{Op: proto.OpPing, Payload: []byte("p")})
		c.onFrame(proto.Message{Op: proto.OpText, Payload: []byte("two")})
		if _, err := h.engine.config.Store.Claim(&other.lease, c.session.ID(), &other); err != nil {
			t.Error(err)
		}
		c.onFrame(proto.Message{Op: proto.OpText, Payload: []byte("three")})
		c.flush()
	})
	if other.lease.Count != 1 {
		t.Errorf("the new owner starts at %d, want 1", other.lease.Count)
	}
	want := proto.AppendFrame(nil, proto.OpPong, []byte("p"))
	want = proto.AppendTakenOver(want, 1)
	want = proto.AppendClose(want, proto.StatusTakenOver, "session taken over")
	n := 0
	for n < len(want) {
		got, err := read(fd, buf[n:])
		if err != nil || got == 0 {
			t.Fatalf("after %q: %d, %v", buf[:n], got, err)
		}
		n += got
	}
	if !bytes.Equal(buf[:n], want) {
		t.Errorf("got  %q\nwant %q", buf[:n], want)
	}
}

// stolen is an owner beside the server's connections.
type stolen struct{ lease session.Lease }

func (*stolen) OnTakenOver()                                       {}
func (*stolen) Holding() *session.Lease                            { panic("nothing is pending") }
func (*stolen) Loop() session.Loop                                 { panic("nothing is pending") }
func (*stolen) OnClaimed(bool, error)                              { panic("nothing is pending") }
func (*stolen) OnCommitted(session.Outcome, uint64, time.Duration) { panic("nothing is pending") }

func BenchmarkMessageInProcess(b *testing.B) {
	h := startEngine(b)
	fd := h.connect("/count")
	burst := bytes.Repeat(text("a message of thirty-two bytes..."), 16)
	burst = append(burst, text("last")...)
	buf := make([]byte, 64<<10)
	b.ReportAllocs()
	for b.Loop() {
		exchange(b, fd, burst, []byte(`"last"}`), buf)
	}
}
