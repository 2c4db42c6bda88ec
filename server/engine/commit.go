package engine

import (
	"time"

	"turnstile/proto"
	"turnstile/server/session"
)

// This file stores counts, and decides when the answers that tell them may be sent. The
// store's results come back on the connection's loop.

// commit asks the store to store the count. If it returns pending, the answers from
// worker.heldFrom on wait for OnCommitted or OnClaimed. If another connection has
// claimed the session meanwhile, the new messages do not count and their answers are
// dropped.
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

// undo takes back the messages that were counted and not stored, and their answers.
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

// Holding implements session.Owner.
func (c *Conn) Holding() *session.Lease { return &c.session }

// OnClaimed implements session.Owner. The 101 was waiting for it.
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
	c.paused = len(c.spill()) > 0
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

// OnCommitted implements session.Owner. Answers were waiting for it.
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
			c.backlog.startCommit() // all answers may be sent: no other commit follows
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

// proceed goes on with the frames that waited for the store.
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

// takenOver says goodbye on a connection whose session another connection has claimed, or
// another process has. In that one, the client finds it when it comes back.
func (c *Conn) takenOver() {
	if c.session.HasMoved() {
		c.sendClose(closeShutdown, proto.StatusGoingAway, "Going away")
		return
	}
	if !c.answer(c.endpoint.handler.OnTakenOver(c, c.worker.out)) {
		c.sendClose(closeTakenOver, proto.StatusTakenOver, "session taken over")
	}
}

// starve notes a connection that is not read because answers of others wait for the
// store.
func (w *worker) starve(c *Conn) {
	if !c.starved {
		c.starved = true
		w.starved = append(w.starved, c)
	}
}

// relieveSoon calls relieve after the running callback.
func (w *worker) relieveSoon() {
	if len(w.starved) > 0 {
		w.loop.Post(w.relieve)
	}
}

// relieve makes the starved connections be read again once fewer answers wait.
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
