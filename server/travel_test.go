package main

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/server/handover"
)

// TestTravellerKeepsItsTimes: what was due in so long before the old process
// stopped serving a connection is due that much sooner here.
func TestTravellerKeepsItsTimes(t *testing.T) {
	e := startEngine(t, "-heartbeat", "30s")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	const away = 200 * time.Millisecond
	before := netpoll.Monotonic()
	r := handover.Record{
		Frozen: netpoll.Clock() - away, Opened: -time.Hour, LastRead: -10 * time.Second,
		HeartbeatAt: 7 * time.Second, Deadline: 3 * time.Second, PaidUntil: -time.Minute,
	}
	e.onLoop(func(w *worker) {
		c := w.newTraveller(pair[0], &r)
		took := netpoll.Monotonic() - before
		for name, got := range map[string][2]time.Duration{
			"opened": {c.opened, r.Opened}, "lastRead": {c.lastRead, r.LastRead}, "heartbeatAt": {c.heartbeatAt, r.HeartbeatAt}, "deadline": {c.deadline, r.Deadline},
		} {
			// Both clocks tick between their readings, for as long as it took.
			if off := got[0] - (before - away + got[1]); off < -took || off > took {
				t.Errorf("%s is %v off", name, off)
			}
		}
		if c.paidUntil != max(0, c.lastRead-r.LastRead+r.PaidUntil) {
			t.Errorf("paidUntil is %v", c.paidUntil)
		}
		c.state, c.endpoint = stateOpen, w.server.endpoints[0]
		due, every := c.heartbeatAt, w.config.Heartbeat
		c.heartbeat(due + 2*every + time.Second) // it was away for two of them
		w.out = w.out[:0]
		if c.heartbeatAt != due+3*every {
			t.Errorf("the next heartbeat is %v after the one that was due, want %v", c.heartbeatAt-due, 3*every)
		}
	})
}

// TestTakenOverWhileFrozen: a connection that was taken back is told what it
// could not be told while it was frozen.
func TestTakenOverWhileFrozen(t *testing.T) {
	e := startEngine(t)
	buf := make([]byte, 1<<16)
	target := "/ws/chat/?session_id=" + someSession
	first := e.connect(target)
	if err := unix.SetsockoptTimeval(first, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	exchange(t, first, text("a"), []byte(`"a"}`), buf)
	var batch []traveller
	e.onLoop(func(w *worker) {
		w.giving = true
		batch, _ = w.freeze(1)
		w.giving = false
	})
	if len(batch) != 1 || batch[0].record.Session.Count != 1 {
		t.Fatalf("frozen: %+v", batch)
	}
	second := e.connect(target)
	exchange(t, second, text("b"), []byte(`"b"}`), buf)
	e.onLoop(func(w *worker) { batch[0].conn.thaw() })
	exchange(t, first, nil, []byte("session taken over"), buf)
	exchange(t, second, text("c"), []byte(`"c"}`), buf)
}
