package engine

import (
	"turnstile/netpoll"
	"turnstile/proto"
)

// unfinished are the messages that a worker's clients have begun and not ended, the
// oldest first. They have a deadline, and a budget in bytes: who begins messages and does
// not end them would hold memory for ever. It is used on the loop only.
//
// A message begins with its first byte, and ends with its last; a control frame that
// stands alone is one too. The time in which the worker does not read the client does not
// count.
type unfinished struct {
	worker      *worker
	first, last *input
	bytes       int // the memory of all
	timer       netpoll.Timer
	isDue       bool // the timer is scheduled
	isShedding  bool // shed is posted
}

// unfinishedBudget is how many bytes of unfinished messages a worker holds. With a
// -max-message above a half of it, the budget is twice that: a message of which a frame
// comes behind others needs memory for both.
const unfinishedBudget = 32 << 20

func (u *unfinished) budget() int {
	return max(unfinishedBudget, 2*u.worker.rules.MaxMessage)
}

// isOver reports whether the messages hold more than the budget. The worker reads no
// client before shed has run.
func (u *unfinished) isOver() bool { return u.isShedding }

// trackMessage notes what the client has begun and not ended, after the worker has
// handled what it can.
func (c *Conn) trackMessage() {
	in, u := c.input, &c.worker.unfinished
	switch {
	case in == nil:
		return
	case c.paused || c.state != stateOpen: // whole frames wait, or a request has its own deadline
		u.remove(in)
		return
	case !in.isBegun:
		u.begin(in, c)
	}
	u.hold(in, cap(in.spill)+c.parser.HeldBytes())
}

// begin makes a message the youngest.
func (u *unfinished) begin(in *input, c *Conn) {
	u.remove(in)
	in.conn, in.began, in.isBegun = c, u.worker.loop.Now(), true
	in.older = u.last
	if u.last != nil {
		u.last.younger = in
	} else {
		u.first = in
	}
	u.last = in
	u.schedule()
}

// hold notes how much memory a message has now.
func (u *unfinished) hold(in *input, bytes int) {
	u.bytes += bytes - in.bytes
	in.bytes = bytes
	if u.bytes > u.budget() && !u.isShedding {
		u.isShedding = u.worker.loop.Post(u.shed) // not now: worker.out may hold another connection's answers
	}
}

// remove forgets a message: it has ended, or its client does not wait for us.
func (u *unfinished) remove(in *input) {
	if in.conn == nil {
		return
	}
	if in.older != nil {
		in.older.younger = in.younger
	} else {
		u.first = in.younger
	}
	if in.younger != nil {
		in.younger.older = in.older
	} else {
		u.last = in.older
	}
	u.bytes -= in.bytes
	in.conn, in.older, in.younger, in.bytes, in.isBegun = nil, nil, nil, 0, false
}

func (u *unfinished) schedule() {
	if u.first != nil && !u.isDue {
		u.isDue = true
		u.worker.loop.Schedule(&u.timer, u.first.began+u.worker.engine.config.MessageTimeout)
	}
}

// OnTimer implements netpoll.Expirer. It closes the connections whose messages are
// overdue.
func (u *unfinished) OnTimer() {
	u.isDue = false
	now, timeout := u.worker.loop.Now(), u.worker.engine.config.MessageTimeout
	for u.first != nil && u.first.began+timeout <= now {
		in := u.first
		if c := in.conn; !c.isRead() {
			bytes := in.bytes
			u.begin(in, c) // the client cannot go on: the worker does not read it
			u.hold(in, bytes)
		} else {
			c.sendClose(closeMessageTimeout, proto.StatusPolicyViolation, "message not ended in time")
			c.flush()
		}
	}
	u.schedule()
}

// shed closes the connections whose messages are the oldest, until the others are within
// the budget.
func (u *unfinished) shed() {
	u.isShedding = false
	for in := u.first; in != nil && u.bytes > u.budget(); {
		c := in.conn
		in = in.younger
		if c.leaving != leavingAway { // it may be another process's
			c.sendClose(closeMessageMemory, proto.StatusTryAgainLater, "too many unfinished messages")
			c.flush()
		}
	}
}

var _ netpoll.Expirer = (*unfinished)(nil)

// isRead reports whether the worker reads what the client sends.
func (c *Conn) isRead() bool { return c.leaving == leavingNot && c.wantsInput() }
