package engine

import (
	"net/netip"
	"slices"
	"sync"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/handover"
	"turnstile/server/session"
)

// This file transfers connections to another process, and adopts those of another. The
// worker freezes a connection, makes a record of it, and later releases it or takes it
// back. Methods run on the worker's loop unless their comment says otherwise.

// leaving is how far the transfer of a connection to another process is.
type leaving uint8

const (
	leavingNot  leaving = iota
	leavingSoon         // the worker does not read it any more, and freezes it when its session's commit is done
	leavingAway         // it is frozen: the loop does not watch it
)

// A Batch is some connections of one worker that are frozen: nobody serves them until
// Release or TakeBack, which empty it. The zero Batch is empty. It belongs to one goroutine,
// and that is no loop's.
type Batch struct {
	Records []handover.Record
	FDs     []int // of the same connections, in the same order; still open

	worker *worker
	conns  []*Conn
}

// batchBytes is how many bytes, to and from clients, a batch may have. Its last connection
// may go beyond. All of it is copied while nobody serves the batch.
const batchBytes = 8 << 20

// Freeze fills b with at most n connections of the worker with this number, and with no more
// once it has batchBytes. It first releases those that b still has, which must be that
// worker's: that takes one turn of its loop instead of two. Those that the other process does
// not take, by their record, stay. A connection that waits for the store cannot be frozen
// yet: waiting is how many there are, and a later call may freeze them.
func (e *Engine) Freeze(b *Batch, number, n int, takes func(*handover.Record) bool) (waiting int) {
	w := e.workers[number]
	if len(b.conns) > 0 && b.worker != w {
		panic("BUG: a batch of another worker is to be released")
	}
	b.worker, b.FDs = w, b.FDs[:0] // it is empty also if the loop is closed
	w.loop.Call(func() {
		b.empty((*Conn).release)
		waiting = w.freeze(b, n, takes)
	})
	return waiting
}

// Release ends the connections here: another process owns them.
func (b *Batch) Release() { b.end((*Conn).release) }

// TakeBack goes on with the connections here.
func (b *Batch) TakeBack() { b.end((*Conn).takeBack) }

func (b *Batch) end(how func(*Conn)) {
	if len(b.conns) > 0 {
		b.worker.loop.Call(func() { b.empty(how) })
	}
}

// empty ends each connection of the batch in one way, on the worker's loop. It keeps the
// memory for the next ones: a handover makes no garbage.
func (b *Batch) empty(how func(*Conn)) {
	for _, c := range b.conns {
		how(c)
	}
	clear(b.conns)
	clear(b.Records)
	b.Records, b.FDs, b.conns = b.Records[:0], b.FDs[:0], b.conns[:0]
}

// HoldRequests makes new requests to upgrade wait for the process that takes over, or
// ends that. On return, every worker does so.
func (e *Engine) HoldRequests(hold bool) {
	for _, w := range e.workers {
		w.loop.Call(func() { w.setHoldRequests(hold) })
	}
}

// Adopt goes on with connections of another process. It returns when the workers have
// them, since a later request may claim one of their sessions.
func (e *Engine) Adopt(fds []int, records []handover.Record) {
	e.connections.Add(int64(len(records)))
	for i := range records {
		if r := &records[i]; r.Charged {
			e.peers.readmit(netip.AddrFrom16(r.IP).Unmap())
		}
	}
	shares := make(map[*worker][]int)
	for i := range records {
		w := e.assign()
		shares[w] = append(shares[w], i)
	}
	var adopting sync.WaitGroup
	for w, share := range shares {
		adopting.Go(func() {
			w.loop.Call(func() {
				for _, i := range share {
					w.arrive(fds[i], &records[i])
				}
			})
		})
	}
	adopting.Wait()
}

// freeze is Engine.Freeze, into b.
func (w *worker) freeze(b *Batch, n int, takes func(*handover.Record) bool) (waiting int) {
	w.inbox.welcomeAll() // they go too
	bytes := 0
	for i := len(w.conns) - 1; i >= 0 && len(b.conns) < n && bytes < batchBytes && w.holdRequests; i-- {
		c := w.conns[i]
		if !c.mayLeave() {
			continue
		}
		records := append(b.Records, c.record()) // those of the batch, if this one goes
		r := &records[len(records)-1]
		if !takes(r) {
			continue
		}
		if state, ok := c.lendSession(); ok {
			r.Session = handover.Session(state)
			c.freeze()
			b.conns, b.FDs, b.Records = append(b.conns, c), append(b.FDs, int(c.fd)), records
			bytes += len(r.Unparsed) + len(r.Backlog) + len(r.Parser.Message)
			continue
		}
		if waiting++; waiting <= n && c.state == stateOpen { // the others are served meanwhile
			c.leaving = leavingSoon
			c.watch()
		}
	}
	return waiting
}

// mayLeave reports whether the connection can go to another process. One that is
// closing ends here.
func (c *Conn) mayLeave() bool { return c.state <= stateOpen && c.leaving != leavingAway }

// lendSession lends the session's state to another process. It reports false while
// something of the connection waits for the store.
func (c *Conn) lendSession() (state session.State, ok bool) {
	switch {
	case c.state == stateClaiming || c.storing:
		return state, false
	case !c.session.Held():
		return state, true
	}
	return c.worker.engine.config.Store.Lend(&c.session)
}

// freeze stops serving the connection.
func (c *Conn) freeze() {
	w := c.worker
	w.loop.Del(int(c.fd)) // the other process's copy would keep it in this epoll set
	w.loop.Cancel(&c.timer)
	c.leaving, c.watched = leavingAway, 0
}

// record makes a record of the connection, without its session.
func (c *Conn) record() handover.Record {
	monotonic, parser, tats := netpoll.Monotonic(), c.parsed.State(), c.rates.times()
	now := c.worker.loop.At(monotonic)
	r := handover.Record{
		Frozen: netpoll.Clock(), V2: c.terms.v2(), Window: c.terms.window(), IP: c.ip, Charged: c.charged,
		Paused: c.paused && c.state == stateOpen,
		Opened: c.opened - monotonic, LastRead: c.lastRead - now,
		RateTAT: tats.messageTAT - now, FrameTAT: tats.frameTAT - now,
		Unparsed: c.spill(), Backlog: c.backlog.all(),
		Parser: handover.Parser{
			Op: uint8(parser.Op), Compressed: parser.Compressed, Message: parser.Message, Seen: parser.Seen, Tail: parser.Tail,
		},
	}
	if c.state == stateOpen {
		r.HeartbeatAt = c.dueAt - now
	} else {
		r.Deadline = c.dueAt - now
	}
	if c.backlog != nil {
		r.Due, r.Deadline = c.backlog.due, c.backlog.deadline-now
	}
	if c.input != nil && c.input.isBegun {
		r.Begun = c.input.began - now
	}
	if c.endpoint != nil {
		r.Endpoint = c.endpoint.path
	}
	return r
}

// takeBack goes on with a connection that was frozen or soon to be frozen.
func (c *Conn) takeBack() {
	w := c.worker
	frozen := c.leaving == leavingAway
	c.leaving = leavingNot
	if c.state == stateClosed {
		return
	}
	if frozen && !c.unfreeze() {
		return
	}
	if c.state == stateHandshake && c.paused {
		c.paused = false
		c.consume(c.spill(), 0)
	}
	c.flush()
	c.resume()
	c.flush()
	if w.draining {
		c.goodbye()
	}
}

// unfreeze makes the loop watch the connection again, and takes its session back. It
// reports false if the connection is closed.
func (c *Conn) unfreeze() bool {
	w := c.worker
	if c.session.Held() {
		w.engine.config.Store.TakeBack(&c.session)
	}
	if err := w.loop.Add(int(c.fd), netpoll.Readable, c.onEvent); err != nil {
		c.close(closeReset)
		return false
	}
	c.watched = uint16(netpoll.Readable)
	c.schedule()
	if c.session.IsRevoked() { // OnTakenOver found it frozen
		c.takenOver()
	}
	return true
}

// release ends the connection here: another process owns it.
func (c *Conn) release() {
	w := c.worker
	if c.state == stateClosed {
		return // a drain has cut it in the meantime
	}
	c.state = stateClosed
	if c.session.Held() {
		w.engine.config.Store.GiveAway(&c.session)
	}
	c.dispose()
	if c.endpoint != nil {
		c.endpoint.handler.OnClosed(c)
		w.metrics.HandedOver.Inc()
		w.metrics.Active.Add(-1)
		w.leave()
	}
}

// arrive goes on with a connection that another process had. Engine.arrive is another
// thing: it counts a socket that was accepted.
func (w *worker) arrive(fd int, r *handover.Record) {
	c := w.newArrived(fd, r)
	if !w.enrol(c) {
		return
	}
	if c.endpoint != nil {
		c.unpack(r)
	}
	c.schedule()
	if c.endpoint == nil && len(r.Unparsed) > 0 {
		c.consume(r.Unparsed, 0)
	}
	c.flush()
	c.resume()
	c.flush()
	if w.draining {
		c.goodbye()
	}
	w.engine.config.Metrics.HandoverPause.Update((netpoll.Clock() - r.Frozen).Seconds())
}

// newArrived makes a connection with the times, the address and the endpoint of its
// record.
func (w *worker) newArrived(fd int, r *handover.Record) *Conn {
	frozen := netpoll.Monotonic() - (netpoll.Clock() - r.Frozen)
	c := newConn(w, arrival{fd: fd, charged: r.Charged})
	c.ip, c.paused = r.IP, r.Paused
	c.terms = termsOf(r.V2, r.Window)
	c.opened = frozen + r.Opened
	frozen = w.loop.At(frozen)
	c.lastRead, c.dueAt = frozen+r.LastRead, frozen+r.Deadline
	if message, frame := frozen+r.RateTAT, frozen+r.FrameTAT; max(message, frame) > w.loop.Now() {
		c.rates = &rates{message, frame}
	}
	if r.Endpoint != "" {
		c.endpoint, c.dueAt = w.endpointAt([]byte(r.Endpoint)), frozen+r.HeartbeatAt
		if c.backlog = w.free.add(nil, r.Backlog, len(r.Backlog)); c.backlog != nil {
			c.backlog.due, c.backlog.deadline = min(r.Due, c.backlog.sendable), frozen+r.Deadline
		}
	}
	return c
}

// unpack restores an upgraded connection from its record.
func (c *Conn) unpack(r *handover.Record) {
	w := c.worker
	c.state = stateOpen
	c.parsed.Restore(proto.ParserState{
		Op: proto.OpCode(r.Parser.Op), Compressed: r.Parser.Compressed, Message: slices.Clone(r.Parser.Message),
		Seen: r.Parser.Seen, Tail: r.Parser.Tail,
	})
	c.keepRest(r.Unparsed)
	if c.input != nil && c.input.isBegun && r.Begun < 0 {
		w.unfinished.backdate(c.input, w.loop.Now()+r.Begun)
	}
	if r.Session.ID != [16]byte{} {
		w.engine.config.Store.Adopt(&c.session, session.State(r.Session), c)
	}
	w.upgraded++
	w.metrics.Adopted.Inc()
	w.metrics.Active.Add(1)
	w.metrics.Backlog.Add(int64(c.backlog.length()))
	c.endpoint.handler.OnAdopt(c)
	c.answer(w.out)
}

// setHoldRequests is Engine.HoldRequests for one worker. When it ends, the worker
// serves again the connections that waited or were soon to be frozen.
func (w *worker) setHoldRequests(hold bool) {
	w.holdRequests = hold
	if hold {
		return
	}
	for _, c := range slices.Clone(w.conns) {
		if c.leaving == leavingSoon || c.state == stateHandshake && c.paused {
			c.takeBack()
		}
	}
}
