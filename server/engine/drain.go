package engine

import (
	"slices"

	"turnstile/netpoll"
	"turnstile/proto"
)

// drainSlice is how many clients the worker says goodbye to before the loop handles
// other events.
const drainSlice = 256

// drain says goodbye on every connection; it runs on the loop. The worker first
// answers the messages that had arrived before. Messages that come later are answered
// as late, and new requests and those that wait for their session are refused. onEmpty
// is called on the loop when the last connection has closed.
func (w *worker) drain(onEmpty func()) {
	w.draining = true
	w.setHoldRequests(false)
	w.unread = make(map[*Conn]int)
	var idle []*Conn
	for _, c := range slices.Clone(w.conns) {
		switch {
		case c.leaving == leavingAway: // see takeBack
		case c.state == stateClaiming:
			c.refuseClaim(handshakeDraining)
		case c.state != stateOpen:
		case c.paused || netpoll.Unread(int(c.fd)) > 0:
			w.unread[c] = netpoll.Unread(int(c.fd))
		default:
			idle = append(idle, c)
		}
	}
	if w.upgraded == 0 {
		onEmpty()
		return
	}
	w.onEmpty = onEmpty
	w.sayGoodbye(idle)
}

func (w *worker) sayGoodbye(conns []*Conn) {
	n := min(len(conns), drainSlice)
	for _, c := range conns[:n] {
		c.goodbye()
	}
	if rest := conns[n:]; len(rest) > 0 {
		w.loop.Post(func() { w.sayGoodbye(rest) })
	}
}

func (c *Conn) goodbye() {
	if c.state == stateOpen && c.leaving == leavingNot {
		if !c.answer(c.endpoint.handler.OnDrain(c, c.worker.out)) {
			c.sendClose(closeShutdown, proto.StatusGoingAway, "Going away")
		}
		c.flush()
	}
}

// isLate reports whether a message of c came after the drain began.
func (w *worker) isLate(c *Conn) bool {
	if !w.draining {
		return false
	}
	_, early := w.unread[c]
	return !early
}

// mayRead is how many bytes of at most room a read of c's may be: in a drain,
// no more than had arrived when it began.
func (w *worker) mayRead(c *Conn, room int) int {
	if left, early := w.unread[c]; early && left > 0 {
		return min(room, left)
	}
	return room
}

// noteEarly notes that n bytes of c's were read, which may have arrived before the
// drain.
func (w *worker) noteEarly(c *Conn, n int) {
	if left, early := w.unread[c]; early {
		w.unread[c] = left - n
	}
}

// finishDrain says goodbye on a connection once everything is handled that had arrived
// before the drain began.
func (c *Conn) finishDrain() {
	w := c.worker
	if left, early := w.unread[c]; early && left <= 0 && !c.paused {
		delete(w.unread, c)
		c.goodbye()
	}
}

// cut closes all connections that are left, and returns how many were upgraded; it
// runs on the loop.
func (w *worker) cut() (upgraded int) {
	w.inbox.welcomeAll()
	upgraded = w.upgraded
	for _, c := range slices.Clone(w.conns) {
		if c.leaving != leavingAway { // it may be another process's
			c.close(closeShutdown)
		}
	}
	return upgraded
}
