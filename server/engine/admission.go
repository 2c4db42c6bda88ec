package engine

import (
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

// This file holds unfinished messages to their budget.
//
// A message holds a front, which is what one short read brings, or a body, which is more.
// These stay true:
//
//  1. Bodies hold at most bodyBudget together, and one message more: beyondBudget.
//  2. Fronts hold at most a quarter of unfinishedBudget, and leastFront for each beyond it.
//  3. A client that wants more waits, unread, until others have ended: TCP holds the rest.
//     The first that waits goes on first, if need be beyond the budget.
//  4. While somebody waits, a body ends that comes too slowly: as much has to come in 8 s as
//     it holds, and something every 2 s (see notePace). So a message of 64 KiB has to come at
//     8 KiB a second, and a client that sends single bytes keeps no place. Nor does one that
//     does not take its answers, so that the worker does not read it.
//
// So nobody waits for ever: the message beyond the budget ends, is too slow, or is overdue,
// and then the first that waits is the next. Any number of clients may send a long message
// at the same moment: none is closed that is fast enough once it is read.

const (
	// unfinishedBudget is how many bytes of unfinished messages a worker holds, beside one
	// message. With a long -max-message it is more: see bodyBudget.
	unfinishedBudget = 32 << 20
	// leastFront is how much a client may always send of a message.
	leastFront = 1 << 10
	// longestStandstill is for how long nothing may come of a body while others wait.
	longestStandstill = 2 * time.Second
	// standstillsToHold is in how many times that as much has to come as a body holds.
	standstillsToHold = 4
)

func (u *unfinished) bodyBudget() int { return max(unfinishedBudget/2, u.worker.longestMessage()) }

// most is how much all may hold, with the message beyond the budget, and a frame behind it
// that needs memory for both. Only so many fronts that even leastFront is too much reach it.
func (u *unfinished) most() int {
	return unfinishedBudget/2 + u.bodyBudget() + 2*u.worker.longestMessage()
}

// front is how much a message may hold now without asking.
func (u *unfinished) front() int {
	if u.fronts > unfinishedBudget/4 {
		return leastFront
	}
	return shortRead
}

// mayHold is how much of a client's unfinished bytes may be there after a read, if it wants
// size of them, and seen are there already. If that is no more than seen, the client waits.
func (c *Conn) mayHold(size, seen int) int {
	u := &c.worker.unfinished
	if u.isEmpty() && size <= readBufferBytes {
		return size
	}
	gathered := 2 * c.parsed.HeldBytes() // it may double
	if u.admits(c.input, gathered+spillMemory(size)) {
		return size
	}
	if most := min(size, u.front()-gathered); most > seen {
		return most
	}
	u.waitForRoom(c, gathered+spillMemory(size))
	return seen
}

func (u *unfinished) isEmpty() bool { return u.first == nil }

// admits reports whether a message may hold so many bytes. in is nil if none is begun. A
// body that is under way grows before a new one begins.
func (u *unfinished) admits(in *input, bytes int) bool {
	held := 0
	if in != nil {
		held = in.bytes
	}
	switch {
	case bytes <= max(held, u.front()), in != nil && in == u.beyondBudget:
		return true
	case held <= shortRead && len(u.waiting) > 0:
		return false
	}
	return u.fits(held, bytes)
}

// fits reports whether a message that holds so many bytes finds room for more.
func (u *unfinished) fits(held, bytes int) bool {
	others := u.bodies
	if held > shortRead {
		others -= held
	}
	return others+bytes <= u.bodyBudget()
}

// waitForRoom stops reading the client until serve lets it go on. wanted is how much its
// message would hold.
func (u *unfinished) waitForRoom(c *Conn, wanted int) {
	c.input.isWaiting, c.input.wanted = true, wanted
	u.waiting = append(u.waiting, c)
	if len(u.waiting) == 1 {
		u.waitedSince = u.worker.loop.Now()
		u.isDue = false // the timer has to be earlier
		u.schedule()
	}
	u.serveSoon()
}

// serveSoon calls serve after the running callback.
func (u *unfinished) serveSoon() {
	if len(u.waiting) > 0 && !u.isServing {
		u.isServing = u.worker.loop.Post(u.serve)
	}
}

// serve lets those go on that wait, as far as there is room.
func (u *unfinished) serve() {
	u.isServing = false
	for len(u.waiting) > 0 {
		c := u.waiting[0]
		if in := c.input; in != nil && in.isWaiting {
			if !u.grant(in) {
				return
			}
			in.isWaiting = false
			u.startPace(in) // nothing stood still but the worker
			c.watch()
		}
		u.waiting[0], u.waiting = nil, u.waiting[1:]
	}
	u.waiting = nil
}

// grant reserves what the first message that waits wants, if it may have it.
func (u *unfinished) grant(in *input) bool {
	if !u.fits(in.bytes, in.wanted) {
		if u.beyondBudget != nil {
			return false
		}
		u.weigh(in, -1)
		u.beyondBudget = in
		u.weigh(in, 1)
	}
	u.hold(in, max(in.bytes, in.wanted))
	return true
}

// startPace lets a message be slow from now on at the earliest.
func (u *unfinished) startPace(in *input) { in.slowAt = u.worker.loop.Now() + u.standstill }

// notePace notes that so much of a message is there. Each byte is a share of the time in
// which as much has to come as the message holds. Nobody is behind from before others wait.
func (u *unfinished) notePace(in *input, arrived int) {
	if n := arrived - in.arrived; n > 0 {
		share := float64(n) / float64(in.bytes)
		earned := time.Duration(share * standstillsToHold * float64(u.standstill))
		in.slowAt = min(max(in.slowAt, u.waitedSince)+earned, u.worker.loop.Now()+u.standstill)
	}
	in.arrived = arrived
}

// endSlow closes the connections with bodies that come too slowly.
func (u *unfinished) endSlow(now time.Duration) {
	if u.waitedSince+u.standstill > now {
		return
	}
	for in := u.first; in != nil; {
		slow := in
		in = in.younger
		if u.isSlow(slow, now) {
			slow.conn.endForMemory()
		}
	}
}

// isSlow reports whether a body comes too slowly. What the worker has not read is not the
// client's fault.
func (u *unfinished) isSlow(in *input, now time.Duration) bool {
	c := in.conn
	switch {
	case in.bytes <= shortRead && in != u.beyondBudget:
		return false
	case c.takesNothing():
		return in.slowAt <= now
	case !c.isRead():
		u.startPace(in)
		return false
	}
	return in.slowAt <= now && netpoll.Unread(int(c.fd)) == 0
}

// takesNothing reports whether the client is not read because its socket is full of answers.
func (c *Conn) takesNothing() bool {
	isStopped := c.paused || c.backlog.length() > highWater
	return c.leaving == leavingNot && isStopped && len(c.backlog.ready()) > 0
}

// shed closes the connections whose messages are the oldest, until the others hold no more
// than they may.
func (u *unfinished) shed() {
	u.isShedding = false
	for in := u.first; in != nil && u.bytes > u.most(); {
		c := in.conn
		in = in.younger
		if c.leaving != leavingAway { // it may be another process's
			c.endForMemory()
		}
	}
}

func (c *Conn) endForMemory() {
	c.sendClose(closeMessageMemory, proto.StatusTryAgainLater, "too many unfinished messages")
	c.flush()
}
