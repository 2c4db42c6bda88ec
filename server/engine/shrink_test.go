package engine

import (
	"net/netip"
	"testing"
)

// TestShrink: what the connections of the past have left goes, and the others are
// served as before.
func TestShrink(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.MaxConnectionsPerIP = 1000 })
	buf := make([]byte, 1<<10)
	fd := h.connect("/count")
	for range 100 {
		h.connect("/count")
	}
	h.onLoop(func(w *worker) {
		w.free.put(w.free.get(10_000))
		w.out = make([]byte, 0, maxOut)
		for _, c := range append([]*Conn(nil), w.conns[1:]...) {
			c.close(closeGone)
		}
		if w.free.bytes == 0 || cap(w.conns) < 101 {
			t.Errorf("nothing to shrink: %d, %d", w.free.bytes, cap(w.conns))
		}
	})
	h.engine.Shrink()
	h.onLoop(func(w *worker) {
		if w.free.bytes != 0 || cap(w.out) != 0 || cap(w.conns) > 10 {
			t.Errorf("kept: %d bytes of backlogs, %d of answers, room for %d connections", w.free.bytes, cap(w.out), cap(w.conns))
		}
	})
	exchange(t, fd, text("a"), []byte(`"a"}`), buf)
	peers := h.engine.peers
	peers.mu.Lock()
	defer peers.mu.Unlock()
	if n := peers.count[block(netip.MustParseAddr("127.0.0.1"))]; n != 1 {
		t.Errorf("%d connections count for the clients' address, want 1", n)
	}
}

// TestInboxKeepsLittle: the memory of a burst of sockets goes.
func TestInboxKeepsLittle(t *testing.T) {
	h := startEngine(t)
	b := h.engine.workers[0].inbox
	goOn := h.hold()
	for range 10 * maxKept {
		b.put(arrival{fd: -1}) // no loop takes it
	}
	goOn()
	eventually(t, "room for two short bursts is left", func() (left bool) {
		h.onLoop(func(*worker) {
			b.mu.Lock()
			defer b.mu.Unlock()
			left = !b.isPosted && cap(b.taken)+cap(b.arrivals) <= 2*maxKept
		})
		return left
	})
}
