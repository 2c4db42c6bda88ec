package engine

import (
	"testing"

	"golang.org/x/sys/unix"

	"turnstile/metrics"
)

// withWorkers gives an engine more than the harness's one worker.
func withWorkers(n int) func(*Config) {
	return func(c *Config) {
		var labels metrics.Labels
		labels.Handshakes, labels.Closes = Labels()
		c.Workers, c.Metrics = n, metrics.New(n, labels, metrics.Sources{})
	}
}

// wantBalanced checks that the workers have want upgraded connections together, and
// each its share, 10 % more or less.
func (h *harness) wantBalanced(want int) {
	h.t.Helper()
	var shares []int
	sum, share := 0, float64(want)/float64(len(h.engine.workers))
	off := false
	for _, w := range h.engine.workers {
		var n int
		w.loop.Call(func() { n = w.upgraded })
		shares, sum = append(shares, n), sum+n
		off = off || float64(n) < 0.9*share || float64(n) > 1.1*share
	}
	if off || sum != want {
		h.t.Errorf("the workers have %v connections, want %v each and %d in all", shares, share, want)
	}
}

// hangUp makes all clients of the first n workers leave.
func (h *harness) hangUp(n int) {
	h.t.Helper()
	for _, w := range h.engine.workers[:n] {
		w.loop.Call(func() { w.cut() })
	}
}

// TestPagesDoNotUnbalance: each client loads a page before it opens its WebSocket, as
// browsers do.
func TestPagesDoNotUnbalance(t *testing.T) {
	h := startEngine(t, withWorkers(2))
	for n := range 20 {
		page := h.ask(probeRequest) // it is answered on the loop
		exchange(t, page, nil, []byte("\r\n\r\n"), make([]byte, 1<<10))
		unix.Close(page)
		eventually(t, "the page's connection is gone", func() bool { return h.engine.Connections() == n })
		h.connect("/count")
	}
	h.wantBalanced(20)
}

// TestClosesDoNotUnbalance: all clients of some workers leave, and others come.
func TestClosesDoNotUnbalance(t *testing.T) {
	h := startEngine(t, withWorkers(4))
	for range 40 {
		h.connect("/count")
	}
	h.wantBalanced(40)
	h.hangUp(2)
	for range 60 {
		h.connect("/count")
	}
	h.wantBalanced(80)
}

// TestBurstIsBalanced: sockets are dealt before a worker has seen the first of them.
func TestBurstIsBalanced(t *testing.T) {
	h := startEngine(t, withWorkers(2))
	for range 20 {
		h.connect("/count")
	}
	h.hangUp(1)
	goOn := h.hold()
	var clients []int
	for range 50 {
		clients = append(clients, h.dial("/count"))
	}
	eventually(t, "all are accepted", func() bool { return h.engine.Connections() == 60 })
	goOn()
	for _, fd := range clients {
		exchange(t, fd, nil, []byte("\r\n\r\n"), make([]byte, 1<<10))
	}
	h.wantBalanced(60)
}

// TestHandoverIsBalanced: connections come in small batches from a process with
// another number of workers, while clients come too.
func TestHandoverIsBalanced(t *testing.T) {
	giver, taker := startEngine(t, withWorkers(3)), startEngine(t, withWorkers(4))
	for range 60 {
		giver.connect("/count")
	}
	for range 5 {
		taker.connect("/count")
	}
	giver.engine.HoldRequests(true)
	for number, gone := 0, 0; gone < 60; number = (number + 1) % 3 {
		batch, _ := giver.freeze(number, 5)
		var fds []int
		for _, fd := range batch.FDs {
			copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, copied)
		}
		taker.engine.Adopt(fds, batch.Records)
		batch.Release()
		gone += len(fds)
		taker.connect("/count")
	}
	giver.wantBalanced(0)
	var all int
	for _, w := range taker.engine.workers {
		w.loop.Call(func() { all += w.upgraded })
	}
	taker.wantBalanced(all)
	if all < 65 {
		t.Errorf("%d connections after the handover", all)
	}
}
