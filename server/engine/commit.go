package engine

import (
	"time"

	"turnstile/proto"
	"turnstile/server/session"
)

// What was counted, and when the answers that say so may leave; what the store has
// to say to a connection runs on its loop.

// commit has the store keep what was counted; pending says that the answers from
// worker.heldFrom on wait for OnCommitted, or OnClaimed. When another connection has
// claimed the session meanwhile, nothing of it counts, and those answers are cut off.
func (c *Conn) commit() (pending bool) {
	w := c.worker
	if c.state == stateClaiming {
		w.heldFrom = 0
		return true
	}
	counted := c.session.Count - c.session.Committed()
	if counted == 0 {
		return false
	}
	switch w.engine.config.Store.Commit(&c.session) {
	case session.Pending:
		return true
	case session.Committed:
		w.metrics.Messages.Add(counted)
	default:
		w.out = w.out[:min(w.heldFrom, len(w.out))]
		c.undo()
		c.takenOver()
	}
	return false
}

// undo takes back what was counted and not stored.
func (c *Conn) undo() {
	c.dropHeld()
	c.session.Count = c.session.Committed()
}

// leaveSession lets the session wait for its next owner.
func (c *Conn) leaveSession() {
	if c.session.Held() {
		c.worker.engine.config.Store.Release(&c.session)
	}
}

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
	c.backlog.startCommit()
	c.releaseHeld()
	c.open(c.worker.takeRequestID(c), resumed)
	c.paused = len(c.spill) > 0
	c.flush()
	c.proceed()
}

// refuseClaim ends a claim without a connection.
func (c *Conn) refuseClaim(result handshakeResult) {
	c.worker.takeRequestID(c)
	c.dropHeld()
	c.leaveSession()
	c.endpoint = nil
	c.refuse(result)
	c.flush()
}

// OnCommitted implements session.Owner: answers were waiting for it.
func (c *Conn) OnCommitted(outcome session.Outcome, counted uint64, took time.Duration) {
	if c.state == stateClosed {
		return
	}
	w := c.worker
	switch outcome {
	case session.Committed:
		w.metrics.Messages.Add(counted)
		w.metrics.MessageLatency.Update(took.Seconds())
		if c.session.Count == c.session.Committed() {
			c.backlog.startCommit() // nothing waits for another one
		}
		c.releaseHeld()
	case session.Revoked:
		c.undo()
		c.takenOver()
	default:
		c.undo()
		c.sendClose(closeStoreUnavailable, proto.StatusTryAgainLater, "session store out of reach")
	}
	c.flush()
	c.proceed()
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
	c.answer(c.endpoint.handler.OnTakenOver(c, c.worker.out))
	c.sendClose(closeTakenOver, proto.StatusTakenOver, "session taken over")
}

// starve notes a connection that is not read because of others' held answers.
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
