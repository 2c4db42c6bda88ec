package engine

import (
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

// unfinished are the messages that a worker's clients have begun and not ended, the
// oldest first. They have a deadline, and a budget in bytes (see admits): who begins
// messages and does not end them would hold memory for ever. It is used on the loop only.
//
// A message begins with its first byte, and ends with its last; a control frame that
// stands alone is one too. The time in which the worker does not read the client does not
// count. What a paused client has sent is in the budget too, although it may be whole
// frames: such a client, and a fragment of it, could stay paused for ever.
type unfinished struct {
	// Fixed after newWorker.
	worker     *worker
	standstill time.Duration // for how long nothing may come of a body while others wait

	// Owned by the worker's loop.
	first, last  *input
	bytes        int           // the memory of all
	fronts       int           // the memory of those that hold no more than a short read
	bodies       int           // the memory of the others, without beyondBudget's
	beyondBudget *input        // the one that may grow although the budget is full; nil if none has to
	waiting      []*Conn       // clients that are not read until others have ended, the first first; some no longer wait
	waitedSince  time.Duration // when somebody last began to wait while nobody did
	timer        netpoll.Timer
	isDue        bool // the timer is scheduled
	isShedding   bool // shed is posted
	isServing    bool // serve is posted
}

// isOver reports whether the messages hold more than they may. The worker reads no
// client before shed has run.
func (u *unfinished) isOver() bool { return u.isShedding }

// trackMessage notes what the client has begun and not ended, after the worker has
// handled what it can.
func (c *Conn) trackMessage() {
	in, u := c.input, &c.worker.unfinished
	switch {
	case in == nil:
		return
	case c.state != stateOpen: // a request has its own deadline
		u.remove(in)
		return
	case !in.isBegun:
		u.begin(in, c)
	}
	u.hold(in, cap(in.spill)+c.parsed.HeldBytes())
	u.notePace(in, len(in.spill)+c.parsed.Gathered())
}

// begin makes a message the youngest.
func (u *unfinished) begin(in *input, c *Conn) {
	u.remove(in)
	in.conn, in.isBegun, in.arrived = c, true, 0
	u.append(in)
	u.startPace(in)
	u.schedule()
}

// hold notes how much memory a message has now.
func (u *unfinished) hold(in *input, bytes int) {
	u.weigh(in, -1)
	if bytes < in.bytes {
		u.serveSoon()
	}
	in.bytes = bytes
	u.weigh(in, 1)
	if u.bytes > u.most() && !u.isShedding {
		u.isShedding = u.worker.loop.Post(u.shed) // not now: worker.out may hold another connection's answers
	}
}

// weigh adds the memory of a message to the sums, or takes it away.
func (u *unfinished) weigh(in *input, sign int) {
	u.bytes += sign * in.bytes
	switch {
	case in.bytes <= shortRead:
		u.fronts += sign * in.bytes
	case in != u.beyondBudget:
		u.bodies += sign * in.bytes
	}
}

// remove forgets a message: it has ended, or its client does not wait for us.
func (u *unfinished) remove(in *input) {
	if in.conn == nil {
		return
	}
	u.unlink(in)
	u.weigh(in, -1)
	if u.beyondBudget == in {
		u.beyondBudget = nil
	}
	in.conn, in.bytes, in.isBegun, in.isWaiting = nil, 0, false, false
	u.serveSoon()
}

// append makes a message the last of the list, with a deadline that begins now.
func (u *unfinished) append(in *input) {
	in.began = u.worker.loop.Now()
	u.insert(in, u.last)
}

// insert puts a message behind an older one, or first if there is none.
func (u *unfinished) insert(in, older *input) {
	in.older, in.younger = older, u.first
	if older != nil {
		in.younger, older.younger = older.younger, in
	} else {
		u.first = in
	}
	if in.younger != nil {
		in.younger.older = in
	} else {
		u.last = in
	}
}

// backdate puts a message where it belongs that has begun in another process: a handover
// gives a client no more time. The time of the handover itself does not count.
func (u *unfinished) backdate(in *input, began time.Duration) {
	older := in.older
	for older != nil && older.began > began {
		older = older.older
	}
	u.unlink(in)
	in.began = began
	u.insert(in, older)
	u.isDue = false // the timer may have to be earlier
	u.schedule()
}

func (u *unfinished) unlink(in *input) {
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
	in.older, in.younger = nil, nil
}

// schedule sets the timer for the oldest message, and for those that are slow while others
// wait.
func (u *unfinished) schedule() {
	if u.first == nil || u.isDue {
		return
	}
	at := u.first.began + u.worker.engine.config.MessageTimeout
	if len(u.waiting) > 0 {
		at = min(at, u.worker.loop.Now()+u.standstill/2)
	}
	u.isDue = true
	u.worker.loop.Schedule(&u.timer, at)
}

// OnTimer implements netpoll.Expirer. It closes the connections whose messages are
// overdue, or too slow while others wait.
func (u *unfinished) OnTimer() {
	u.isDue = false
	now, timeout := u.worker.loop.Now(), u.worker.engine.config.MessageTimeout
	for u.first != nil && u.first.began+timeout <= now {
		in := u.first
		if c := in.conn; !c.isRead() { // the client cannot go on: the worker does not read it
			u.unlink(in)
			u.append(in)
		} else {
			c.sendClose(closeMessageTimeout, proto.StatusPolicyViolation, "message not ended in time")
			c.flush()
		}
	}
	if len(u.waiting) > 0 {
		u.endSlow(now)
	}
	u.schedule()
}

var _ netpoll.Expirer = (*unfinished)(nil)

// isRead reports whether the worker reads what the client sends.
func (c *Conn) isRead() bool { return c.leaving == leavingNot && c.wantsInput() }
