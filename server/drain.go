package main

import (
	"slices"

	"turnstile/proto"
)

// drainSlice is how many connections get their goodbye before the loop looks
// at its other events.
const drainSlice = 256

// drain says goodbye to every connection; it runs on the loop. What had
// arrived before is answered first, but for requests that wait for their
// session; messages that come between that and a
// connection's goodbye are told that they are too late. New requests are
// refused. onEmpty is called on the loop when the last connection has closed.
func (w *worker) drain(onEmpty func()) {
	for _, c := range slices.Clone(w.conns) {
		switch {
		case c.state == stateClaiming:
			c.refuseClaim(handshakeDraining)
		case c.state == stateOpen && !c.paused && !c.backedUp():
			c.onReadable()
			c.flush()
		}
	}
	w.draining = true
	if w.upgraded == 0 {
		onEmpty()
		return
	}
	w.onEmpty = onEmpty
	w.sayGoodbye(slices.Clone(w.conns))
}

func (w *worker) sayGoodbye(conns []*Conn) {
	n := min(len(conns), drainSlice)
	for _, c := range conns[:n] {
		if c.state == stateOpen {
			c.endpoint.onDrain(c)
			c.sendClose(closeShutdown, proto.StatusGoingAway, "Going away")
			c.flush()
		}
	}
	if rest := conns[n:]; len(rest) > 0 {
		w.loop.Post(func() { w.sayGoodbye(rest) })
	}
}

// cut closes whatever is left, and calls done with how many of it had been
// upgraded; it runs on the loop.
func (w *worker) cut(done func(upgraded int)) {
	upgraded := w.upgraded
	for _, c := range slices.Clone(w.conns) {
		c.close(closeShutdown)
	}
	done(upgraded)
}
