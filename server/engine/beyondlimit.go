package engine

import (
	"slices"

	"turnstile/netpoll"
)

// A beyondLimit has the sockets beyond -max-connections or beyond the limit of their
// address. They are refused, unless they ask for a page: so a probe is answered when the
// server is full. They are on the acceptor's loop. It can therefore close the oldest of
// them at the moment when a new one needs the place, and a flood of them costs the
// workers nothing.
type beyondLimit struct {
	// Fixed after newBeyondLimit.
	worker *worker
	places int

	// Owned by the acceptor's loop.
	conns []*Conn // in the order of their arrival
}

// newBeyondLimit makes the worker of these sockets. They count for the first worker in
// the metrics: the label of a worker is for those that have connections.
func newBeyondLimit(e *Engine, loop *netpoll.Loop) *beyondLimit {
	return &beyondLimit{worker: newWorker(e, loop, e.config.Metrics.Workers[0]), places: e.config.PlacesBeyondLimit}
}

// welcome waits for the request of a socket; it runs on the loop.
func (b *beyondLimit) welcome(a arrival) {
	if len(b.conns) == b.places {
		b.makeRoom()
	}
	if c := newConn(b.worker, a); b.worker.enrol(c) {
		b.conns = append(b.conns, c)
		c.schedule()
	}
}

// makeRoom closes the oldest socket. If it has sent its request already, it is answered
// first.
func (b *beyondLimit) makeRoom() {
	oldest := b.conns[0]
	oldest.onEvent(netpoll.Woken(netpoll.Readable))
	if oldest.state == stateHandshake {
		b.worker.engine.config.Metrics.Dropped.Inc()
	}
	oldest.close(closeGone)
}

// forget gives the place of c back.
func (b *beyondLimit) forget(c *Conn) {
	if i := slices.Index(b.conns, c); i >= 0 {
		b.conns = slices.Delete(b.conns, i, i+1)
	}
}
