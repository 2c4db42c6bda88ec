package main

import (
	"time"

	"turnstile/proto"
	"turnstile/server/session"
)

// Conn implements session.Owner: what the store has to say runs on its loop.
var _ session.Owner = (*Conn)(nil)

// Loop implements session.Owner.
func (c *Conn) Loop() session.Loop { return c.worker.loop }

// OnClaimed implements session.Owner: the 101 was waiting for it.
func (c *Conn) OnClaimed(resumed bool, err error) {
	switch {
	case c.state != stateClaiming:
		return
	case err != nil:
		c.refuseClaim(handshakeStoreUnavailable)
		return
	}
	c.asked = 0
	c.release(len(c.backlog) - int(c.free))
	c.open(c.worker.takeRequestID(c))
	c.greet(resumed)
	c.paused = len(c.spill) > 0
	c.flush()
	c.proceed()
}

// refuseClaim ends a claim without a connection.
func (c *Conn) refuseClaim(result handshakeResult) {
	c.worker.takeRequestID(c)
	c.dropHeld()
	c.endpoint.onClosed(c)
	c.endpoint = nil
	c.refuse(result)
	c.flush()
}

// OnCommitted implements session.Owner: replies were waiting for it.
func (c *Conn) OnCommitted(outcome session.Outcome, counted uint64, took time.Duration) {
	if c.state == stateClosed {
		return
	}
	w := c.worker
	switch outcome {
	case session.Committed:
		w.metrics.Messages.Add(counted)
		w.metrics.MessageLatency.Update(took.Seconds())
		c.release(int(c.asked - c.free))
		c.asked = 0
		if c.session.Count == c.session.Committed() {
			c.release(len(c.backlog) - int(c.free))
		}
	case session.Revoked:
		c.takeBack()
		c.takenOver()
	default:
		c.takeBack()
		c.sendClose(closeStoreUnavailable, proto.StatusTryAgainLater, "session store out of reach")
	}
	c.flush()
	c.proceed()
}

// takeBack undoes what was counted and not stored.
func (c *Conn) takeBack() {
	c.dropHeld()
	c.session.Count = c.session.Committed()
}

// proceed goes on with what waited for the store.
func (c *Conn) proceed() {
	if c.paused && c.state != stateClosed {
		c.resume()
		c.flush()
	}
	c.finishDrain()
	c.worker.relieve()
}

// OnTakenOver implements session.Owner.
func (c *Conn) OnTakenOver() {
	c.worker.loop.Post(func() {
		if c.state == stateOpen && c.leaving != leavingAway {
			c.takenOver()
			c.flush()
		}
	})
}

// takenOver says goodbye to the connection whose session another one has
// claimed.
func (c *Conn) takenOver() {
	c.worker.out = proto.AppendTakenOver(c.worker.out, c.session.Committed())
	c.sendClose(closeTakenOver, proto.StatusTakenOver, "session taken over")
}

// starve notes a connection that is not read because of others' held replies.
func (w *worker) starve(c *Conn) {
	if !c.starved {
		c.starved = true
		w.starved = append(w.starved, c)
	}
}

// relieveSoon is relieve, once the running callback is over.
func (w *worker) relieveSoon() {
	if len(w.starved) > 0 {
		w.loop.Post(w.relieve)
	}
}

// relieve lets the starved be read again once there is room.
func (w *worker) relieve() {
	if len(w.starved) == 0 || w.heldBytes > heldBudget/2 {
		return
	}
	starved := w.starved
	w.starved = nil
	for _, c := range starved {
		c.starved = false
		if c.state != stateClosed && c.leaving != leavingAway {
			c.resume()
			c.flush()
			c.finishDrain()
		}
	}
}
