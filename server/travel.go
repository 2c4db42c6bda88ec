package main

import (
	"slices"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/handover"
	"turnstile/server/session"
)

// How a connection goes to another process: frozen here, made a record of, and
// gone or taken back; and how one that comes goes on. All of it runs on the
// worker's loop.

// leaving is how far a connection is on its way to another process.
type leaving uint8

const (
	leavingNot  leaving = iota
	leavingSoon         // it is not read any more, and goes when its session's commit is done
	leavingAway         // it is frozen: the loop does not watch it
)

// A traveller is a frozen connection and its record.
type traveller struct {
	conn   *Conn
	record handover.Record
}

// freeze takes at most n connections out of the loop. staying is how many could
// not be frozen yet.
func (w *worker) freeze(n int) (travellers []traveller, staying int) {
	for i := len(w.conns) - 1; i >= 0 && len(travellers) < n && w.giving; i-- {
		c := w.conns[i]
		if !c.mayLeave() {
			continue
		}
		if state, ok := c.settled(); ok {
			travellers = append(travellers, traveller{c, c.freeze(state)})
			continue
		}
		if staying++; staying <= n && c.state == stateOpen { // the others are served meanwhile
			c.leaving = leavingSoon
			c.watch()
		}
	}
	return travellers, staying
}

// mayLeave reports whether a connection is worth another process's while: one
// that is closing ends here.
func (c *Conn) mayLeave() bool { return c.state <= stateOpen && c.leaving != leavingAway }

// settled reports whether nothing of the connection waits for the store; then
// its session is lent.
func (c *Conn) settled() (state session.State, ok bool) {
	switch {
	case c.state == stateClaiming || c.asked != 0:
		return state, false
	case !c.session.Held():
		return state, true
	}
	return c.worker.server.store.Lend(&c.session)
}

// freeze stops serving the connection, and makes a record of it.
func (c *Conn) freeze(state session.State) handover.Record {
	w := c.worker
	w.loop.Del(int(c.fd)) // or the other process's copy would still report here
	w.loop.Cancel(&c.timer)
	c.leaving, c.watched = leavingAway, 0
	now, parser := netpoll.Monotonic(), c.parser.State()
	r := handover.Record{
		Frozen: netpoll.Clock(), Second: c.v2, IP: c.ip, Charged: c.charged, Paused: c.paused && c.state == stateOpen,
		Opened: c.opened - now, LastRead: c.lastRead - now, HeartbeatAt: c.heartbeatAt - now,
		Deadline: c.deadline - now, PaidUntil: c.paidUntil - now,
		Unparsed: c.spill, Backlog: c.backlog, Owed: int(c.owed),
		Parser:  handover.Parser{Op: uint8(parser.Op), Message: parser.Message, Seen: parser.Seen, Tail: parser.Tail},
		Session: handover.Session(state),
	}
	if c.endpoint != nil {
		r.Endpoint = c.endpoint.path
	}
	return r
}

// thaw goes on with a connection that was frozen, or was about to be.
func (c *Conn) thaw() {
	w := c.worker
	frozen := c.leaving == leavingAway
	c.leaving = leavingNot
	if c.state == stateClosed {
		return
	}
	if frozen {
		if c.session.Held() {
			w.server.store.TakeBack(&c.session)
		}
		if err := w.loop.Add(int(c.fd), netpoll.Readable, c.onEvent); err != nil {
			c.close(closeReset)
			return
		}
		c.watched = uint8(netpoll.Readable)
		c.schedule()
		if c.session.IsRevoked() { // OnTakenOver found it frozen
			c.takenOver()
		}
	}
	if c.state == stateHandshake && c.paused {
		c.paused = false
		c.take(c.spill, 0)
	}
	c.resume()
	c.flush()
	if w.draining {
		c.goodbye()
	}
}

// depart ends the connection here: another process owns it.
func (c *Conn) depart() {
	w := c.worker
	if c.state == stateClosed {
		return // a drain has cut it in the meantime
	}
	c.state = stateClosed
	if c.session.Held() {
		w.server.store.GiveAway(&c.session)
	}
	w.metrics.Backlog.Add(-int64(len(c.backlog)))
	c.backlog, c.spill, c.parser = nil, nil, proto.Parser{}
	w.remove(c)
	netpoll.CloseFD(int(c.fd))
	if c.endpoint != nil {
		w.metrics.HandedOver.Inc()
		w.metrics.Active.Add(-1)
		w.leave()
	}
}

// arrive goes on with a connection that another process had.
func (w *worker) arrive(fd int, r *handover.Record) {
	c := w.newTraveller(fd, r)
	if !w.enrol(c) {
		return
	}
	if c.endpoint != nil {
		c.unpack(r)
	}
	c.schedule()
	if c.endpoint == nil && len(r.Unparsed) > 0 {
		c.take(r.Unparsed, 0)
	}
	c.flush()
	c.resume()
	c.flush()
	if w.draining {
		c.goodbye()
	}
	w.server.metrics.HandoverPause.Update((netpoll.Clock() - r.Frozen).Seconds())
}

// newTraveller is a connection that starts with what its record says of time
// and place.
func (w *worker) newTraveller(fd int, r *handover.Record) *Conn {
	frozen := netpoll.Monotonic() - (netpoll.Clock() - r.Frozen)
	c := newConn(w, arrival{fd: fd, charged: r.Charged})
	c.ip, c.v2, c.paused = r.IP, r.Second, r.Paused
	c.opened, c.lastRead, c.heartbeatAt = frozen+r.Opened, frozen+r.LastRead, frozen+r.HeartbeatAt
	c.deadline, c.paidUntil = frozen+r.Deadline, max(0, frozen+r.PaidUntil)
	if r.Endpoint != "" {
		c.endpoint = w.server.endpointOf([]byte(r.Endpoint))
	}
	return c
}

// unpack takes over what the record holds of an upgraded connection.
func (c *Conn) unpack(r *handover.Record) {
	w := c.worker
	c.state = stateOpen
	c.spill, c.backlog = slices.Clone(r.Unparsed), slices.Clone(r.Backlog)
	c.free, c.owed = int32(len(c.backlog)), int32(r.Owed)
	c.parser.Restore(proto.ParserState{
		Op: proto.OpCode(r.Parser.Op), Message: slices.Clone(r.Parser.Message), Seen: r.Parser.Seen, Tail: r.Parser.Tail,
	})
	if r.Session.ID != [16]byte{} {
		w.server.store.Adopt(&c.session, session.State(r.Session), c)
	}
	w.upgraded++
	w.metrics.Adopted.Inc()
	w.metrics.Active.Add(1)
	w.metrics.Backlog.Add(int64(len(c.backlog)))
}

// setGiving has requests to upgrade wait for another process, or no longer.
func (w *worker) setGiving(giving bool) {
	w.giving = giving
	if giving {
		return
	}
	for _, c := range slices.Clone(w.conns) {
		if c.leaving == leavingSoon || c.state == stateHandshake && c.paused {
			c.thaw()
		}
	}
}
