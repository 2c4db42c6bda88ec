package engine

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/server/handover"
)

// TestArrivedKeepsItsTimes: what was due in so long before the old process
// stopped serving a connection is due that much sooner here.
func TestArrivedKeepsItsTimes(t *testing.T) {
	h := startEngine(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	const away = 200 * time.Millisecond
	r := handover.Record{
		Opened: -time.Hour, LastRead: -10 * time.Second,
		HeartbeatAt: 7 * time.Second, Deadline: 3 * time.Second, RateTAT: time.Minute,
	}
	h.onLoop(func(w *worker) {
		before := w.loop.At(netpoll.Monotonic())
		r.Frozen = netpoll.Clock() - away
		asking := w.newArrived(pair[0], &r)
		r.Endpoint, r.Backlog, r.Due = "/count", []byte("x"), 1
		c := w.newArrived(pair[0], &r)
		took := w.loop.At(netpoll.Monotonic()) - before
		for name, got := range map[string][2]time.Duration{
			"opened":   {w.loop.At(c.opened), r.Opened},
			"lastRead": {c.lastRead, r.LastRead}, "request": {asking.dueAt, r.Deadline},
			"heartbeat": {c.dueAt, r.HeartbeatAt}, "backlog": {c.backlog.deadline, r.Deadline},
		} {
			// Both clocks tick between their readings, for as long as it took.
			if off := got[0] - (before - away + got[1]); off < -took || off > took {
				t.Errorf("%s is %v off", name, off)
			}
		}
		if tat := c.rates.times().messageTAT; tat != c.lastRead-r.LastRead+r.RateTAT {
			t.Errorf("messageTAT is %v", tat)
		}
		c.state = stateOpen
		due, every := c.dueAt, w.engine.config.Heartbeat
		c.heartbeat(due + 2*every + time.Second) // it was away for two of them
		w.out = w.out[:0]
		if c.dueAt != due+3*every {
			t.Errorf("the next heartbeat is %v after the one that was due, want %v", c.dueAt-due, 3*every)
		}
	})
}

// TestTakenOverWhileFrozen: a connection that was taken back is told what it
// could not be told while it was frozen.
func TestTakenOverWhileFrozen(t *testing.T) {
	h := startEngine(t)
	buf := make([]byte, 1<<16)
	target := "/count?session_id=" + someSession
	first := h.connect(target)
	exchange(t, first, text("a"), []byte(`"a"}`), buf)
	h.engine.HoldRequests(true)
	batch, _ := h.freeze(0, 1)
	h.engine.HoldRequests(false)
	if len(batch.FDs) != 1 || batch.Records[0].Session.Count != 1 {
		t.Fatalf("frozen: %+v", batch)
	}
	second := h.connect(target)
	exchange(t, second, text("b"), []byte(`"b"}`), buf)
	batch.TakeBack()
	exchange(t, first, nil, []byte("session taken over"), buf)
	exchange(t, second, text("c"), []byte(`"c"}`), buf)
}

// TestBatchIsBoundedByBytes: connections with much of a long message go in several
// batches, and nothing of it is lost when they are taken back.
func TestBatchIsBoundedByBytes(t *testing.T) {
	const begun = batchBytes * 2 / 5 // so that the third goes beyond
	h := startEngine(t, func(c *Config) { c.MaxMessage = batchBytes })
	message := text(strings.Repeat("m", begun+1))
	var fds []int
	for range 4 {
		fd := h.connect("/count")
		writeAll(t, fd, message[:begun])
		fds = append(fds, fd)
	}
	eventually(t, "all is read that was sent", func() (read bool) {
		h.onLoop(func(w *worker) {
			read = len(w.conns) == len(fds)
			for _, c := range w.conns {
				read = read && len(c.spill()) == begun
			}
		})
		return read
	})
	h.engine.HoldRequests(true)
	first, _ := h.freeze(0, len(fds))
	second, _ := h.freeze(0, len(fds))
	if len(first.FDs) != 3 || len(second.FDs) != 1 {
		t.Errorf("the batches have %d and %d connections, want 3 and 1", len(first.FDs), len(second.FDs))
	}
	h.engine.HoldRequests(false)
	first.TakeBack()
	second.TakeBack()
	for _, fd := range fds {
		exchange(t, fd, message[begun:], []byte(`"}`), make([]byte, 2*len(message)))
	}
}

// One Batch is filled again and again.
func TestFreezeReleases(t *testing.T) {
	h := startEngine(t)
	for range 3 {
		h.connect("/count")
	}
	h.engine.HoldRequests(true)
	var batch Batch
	for left := 3; left >= 1; left-- {
		if waiting := h.engine.Freeze(&batch, 0, 1, takesAll); waiting != 0 || len(batch.FDs) != 1 || len(batch.Records) != 1 {
			t.Errorf("%d wait, and a batch has %d file descriptors and %d records, want 0, 1 and 1", waiting, len(batch.FDs), len(batch.Records))
		}
		if n := h.engine.Connections(); n != left {
			t.Errorf("%d connections while one of %d is frozen", n, left)
		}
	}
	h.engine.Freeze(&batch, 0, 1, takesAll)
	if n := h.engine.Connections(); len(batch.FDs) != 0 || n != 0 {
		t.Errorf("%d in a batch, %d connections, when all have gone", len(batch.FDs), n)
	}
	batch.Release()
	batch.TakeBack()
}
