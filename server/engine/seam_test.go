package engine

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/session"
)

// leavers is an application that tells all others of a worker who has left.
type leavers struct {
	Silent
	members map[*Conn]bool
}

func (h *leavers) OnOpen(c *Conn, _ bool, out []byte) []byte { h.members[c] = true; return out }

func (h *leavers) OnClosed(c *Conn) {
	delete(h.members, c)
	for member := range h.members {
		member.Send(proto.OpText, []byte("one has left"))
	}
}

// TestSendWhileOthersAreFlushed: a connection breaks when what was sent to it is
// written; what its application then sends to others arrives.
func TestSendWhileOthersAreFlushed(t *testing.T) {
	h := startEngine(t, func(c *Config) {
		c.Endpoints = []Endpoint{{"/leavers", func() Handler { return &leavers{members: make(map[*Conn]bool)} }}}
	})
	h.connect("/leavers")
	stays := h.connect("/leavers")
	buf := make([]byte, 1<<10)
	h.onLoop(func(w *worker) {
		breaks := w.conns[0]
		unix.Shutdown(int(breaks.fd), unix.SHUT_WR)
		breaks.Send(proto.OpText, []byte("not to be written"))
	})
	exchange(t, stays, nil, []byte("one has left"), buf)
	h.onLoop(func(w *worker) { w.conns[0].Send(proto.OpText, []byte("and again")) })
	exchange(t, stays, nil, []byte("and again"), buf)
}

// closer is an application whose method with the given name closes.
type closer struct {
	tally
	in string
}

func (h closer) closeIn(method string, c *Conn, out []byte) []byte {
	if h.in == method {
		out = proto.AppendFrame(out, proto.OpText, []byte("last"))
		c.Close(CloseGoodbye, proto.StatusNormalClosure, method)
	}
	return out
}

func (h closer) OnOpen(c *Conn, _ bool, out []byte) []byte { return h.closeIn("OnOpen", c, out) }
func (h closer) OnAdopt(c *Conn)                           { h.closeIn("OnAdopt", c, nil) }
func (h closer) OnHeartbeat(c *Conn, out []byte) []byte    { return h.closeIn("OnHeartbeat", c, out) }
func (h closer) OnDrain(c *Conn, out []byte) []byte        { return h.closeIn("OnDrain", c, out) }
func (h closer) OnTakenOver(c *Conn, out []byte) []byte    { return h.closeIn("OnTakenOver", c, out) }

// TestCloseInEveryMethod: the application's close frame is the last frame,
// whichever method it closes in.
func TestCloseInEveryMethod(t *testing.T) {
	cause := map[string]func(h *harness){
		"OnOpen":      func(*harness) {},
		"OnAdopt":     func(h *harness) { h.handToItself() },
		"OnHeartbeat": func(h *harness) { h.onLoop(func(w *worker) { w.conns[0].heartbeat(0); w.conns[0].flush() }) },
		"OnDrain":     func(h *harness) { h.onLoop(func(w *worker) { w.conns[0].goodbye() }) },
		"OnTakenOver": func(h *harness) { h.onLoop(func(w *worker) { w.conns[0].OnTakenOver() }) },
	}
	for method, happen := range cause {
		t.Run(method, func(t *testing.T) {
			h := startEngine(t, func(c *Config) {
				c.Endpoints = []Endpoint{{"/closer", func() Handler { return closer{in: method} }}}
			})
			fd := h.connect("/closer")
			happen(h)
			var want []byte
			if method != "OnAdopt" {
				want = proto.AppendFrame(want, proto.OpText, []byte("last"))
			}
			want = proto.AppendClose(want, proto.StatusNormalClosure, method)
			wantLastWords(t, fd, want)
		})
	}
}

// handToItself hands the only connection over to the engine that has it.
func (h *harness) handToItself() {
	h.t.Helper()
	h.engine.HoldRequests(true)
	batch, _ := h.freeze(0, 1)
	h.engine.HoldRequests(false)
	fd, err := unix.FcntlInt(uintptr(batch.FDs[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	records := slices.Clone(batch.Records)
	for i := range records { // of memory that Release gives to others
		records[i].Unparsed, records[i].Backlog = slices.Clone(records[i].Unparsed), slices.Clone(records[i].Backlog)
	}
	batch.Release()
	h.engine.Adopt([]int{fd}, records)
}

// wantLastWords expects these bytes, answers the close frame at their end as a client
// does, and then expects no more.
func wantLastWords(t testing.TB, fd int, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	for n := 0; n < len(want); {
		more, err := read(fd, got[n:])
		if n += more; err != nil || more == 0 {
			t.Fatalf("after %q: %v", got[:n], err)
		}
	}
	unix.Write(fd, frame(proto.OpClose, true, "\x03\xe8"))
	if got = append(got, readToEnd(t, fd)...); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// readToEnd reads until the server says that no more comes.
func readToEnd(t testing.TB, fd int) (all []byte) {
	t.Helper()
	for buf := make([]byte, 1<<10); ; {
		n, err := read(fd, buf)
		if err != nil {
			t.Fatalf("after %q: %v", all, err)
		}
		if n == 0 {
			return all
		}
		all = append(all, buf[:n]...)
	}
}

// lateStore is a Memory that answers commits when it is told to.
type lateStore struct {
	*session.Memory
	pending *session.Lease
}

func (s *lateStore) Commit(l *session.Lease) session.Outcome {
	s.pending = l
	return session.Pending
}

// answer ends the commit under way; it runs on the loop.
func (s *lateStore) answer(c *Conn, outcome session.Outcome) {
	before := c.session.Committed()
	if outcome == session.Committed {
		outcome = s.Memory.Commit(s.pending)
	}
	c.OnCommitted(outcome, c.session.Committed()-before, 0)
}

func startLate(t *testing.T, application Handler) (*harness, *lateStore) {
	t.Helper()
	var store *lateStore
	h := startEngine(t, func(c *Config) {
		store = &lateStore{Memory: c.Store.(*session.Memory)}
		c.Store, c.Endpoints = store, []Endpoint{{"/late", func() Handler { return application }}}
	})
	return h, store
}

// greeter is an application that counts as soon as a connection opens.
type greeter struct{ tally }

func (greeter) OnOpen(c *Conn, _ bool, out []byte) []byte {
	c.Add()
	return proto.AppendFrame(out, proto.OpText, []byte("counted"))
}

// TestCountAsItOpens: the 101 does not wait for what the application counts behind
// it, and is not taken back with it.
func TestCountAsItOpens(t *testing.T) {
	h, store := startLate(t, greeter{})
	fd := h.connect("/late")
	h.onLoop(func(w *worker) { store.answer(w.conns[0], session.Unavailable) })
	want := proto.AppendClose(nil, proto.StatusTryAgainLater, "session store out of reach")
	wantLastWords(t, fd, want)
}

// quiet is an application that counts and answers nothing.
type quiet struct{ tally }

func (quiet) OnMessage(c *Conn, _ proto.Message, out []byte) []byte { c.Add(); return out }

// TestCommitWithoutAnswers: a connection whose client has left waits for its
// commit, though there is nothing to send.
func TestCommitWithoutAnswers(t *testing.T) {
	h, store := startLate(t, quiet{})
	fd := h.connect("/late")
	unix.Write(fd, text("counted"))
	unix.Shutdown(fd, unix.SHUT_WR)
	eventually(t, "the client's end is seen", func() (seen bool) {
		h.onLoop(func(w *worker) { seen = len(w.conns) == 0 || w.conns[0].eof })
		return seen
	})
	h.onLoop(func(w *worker) {
		if len(w.conns) != 1 {
			t.Error("it is closed before its commit is done")
			return
		}
		store.answer(w.conns[0], session.Committed)
	})
	if got := readToEnd(t, fd); len(got) > 0 {
		t.Errorf("got %q", got)
	}
	if counted := h.metrics().Messages.Load(); counted != 1 {
		t.Errorf("%d messages are counted", counted)
	}
}

// TestHeldRequestIsAnsweredHere: a request that had waited for another process, and
// now waits for its session, is not read on meanwhile.
func TestHeldRequestIsAnsweredHere(t *testing.T) {
	h := startEngine(t)
	h.engine.config.Store.(*session.Memory).Await()
	h.engine.HoldRequests(true)
	fd := h.dial("/count?session_id=" + someSession)
	eventually(t, "the request waits", func() (waits bool) {
		h.onLoop(func(w *worker) { waits = len(w.conns) == 1 && w.conns[0].paused })
		return waits
	})
	h.engine.HoldRequests(false)
	h.onLoop(func(w *worker) {
		if c := w.conns[0]; c.state != stateClaiming || !c.paused || netpoll.Events(c.watched)&netpoll.Readable != 0 {
			t.Errorf("state %d, paused %v, watched %b", c.state, c.paused, c.watched)
		}
	})
	h.engine.config.Store.(*session.Memory).Complete()
	exchange(t, fd, text("a"), []byte(`"a"}`), make([]byte, 1<<10))
}
