package engine

import "turnstile/netpoll"

const (
	// flushBytes of answers are written before more is read.
	flushBytes = 64 << 10
	// highWater is the length of the backlog above which a client is no longer
	// read. A client that does not read, or a store that does not answer, can make
	// the server hold this much and the answers to one more message.
	highWater = 64 << 10
	// maxOut is how much memory for answers, or for a frame of Conn.Send, a worker keeps: the escaped text of
	// one long message can be six times as long.
	maxOut = 1 << 20
	// heldBudget is how many bytes of answers may wait for the store on all
	// connections of a worker before none of them is read.
	heldBudget = 32 << 20
)

// backedUp reports whether too many answers wait, for the client or for the store,
// to read more from the client.
func (c *Conn) backedUp() bool {
	return c.backlog.length() > highWater || c.worker.heldBytes > heldBudget
}

// flush sends the answers that the callback has appended, in one write. The backlog
// keeps what the socket does not take and what has to wait for the store. The
// connection may be closed on return.
func (c *Conn) flush() {
	w := c.worker
	commits := !c.storing && c.endpoint != nil && c.state != stateClosed && c.commit()
	out := w.out
	w.out = out[:0]
	if cap(out) > maxOut {
		w.out = nil
	}
	if c.state == stateClosed {
		return
	}
	sendable := len(out)
	switch {
	case c.storing:
		sendable = 0
	case commits:
		sendable = w.heldFrom
	}
	w.heldFrom = 0
	c.send(out, sendable, commits)
	if c.state == stateClosing && c.backlog == nil && !c.storing {
		c.linger()
	}
	c.watch()
}

// send writes the backlog, and out behind it, as far as they need not wait for the
// store: of out, these are the first sendable bytes. With commits, the rest waits for
// the commit or the claim that has just begun.
func (c *Conn) send(out []byte, sendable int, commits bool) {
	if c.backlog == nil {
		sent := c.write(out[:sendable])
		c.keep(out[sent:], sendable-sent)
	} else {
		c.keep(out, sendable)
		if netpoll.Events(c.watched)&netpoll.Writable == 0 {
			c.push()
		}
	}
	if commits && c.state != stateClosed {
		c.storing = true
		c.backlog.startCommit()
	}
}

// enqueue puts a frame behind all answers, for a later flush to send.
func (c *Conn) enqueue(frame []byte) {
	sendable := len(frame)
	if c.storing {
		sendable = 0
	}
	c.keep(frame, sendable)
}

// flushDirty sends what Conn.Send has queued: one write for each connection.
func (w *worker) flushDirty() {
	for i := 0; i < len(w.dirty); i++ { // a connection that closes may have its application send to more
		c := w.dirty[i]
		c.dirty = false
		if c.state != stateClosed && c.leaving != leavingAway {
			c.flush()
		}
	}
	clear(w.dirty)
	w.dirty = w.dirty[:0]
}

// onWritable sends as much of the backlog as the socket takes, and goes on with frames
// that waited for that.
func (c *Conn) onWritable() {
	c.push()
	if c.state == stateClosed {
		return
	}
	if b := c.backlog; len(b.ready()) > 0 && b.due == 0 {
		c.startWriteDeadline()
	}
	c.resume()
}

// push writes the part of the backlog that may be sent. The connection may be closed
// on return.
func (c *Conn) push() {
	n := c.write(c.backlog.ready())
	if c.state == stateClosed {
		return
	}
	c.worker.metrics.Backlog.Add(-int64(n))
	c.backlog = c.worker.free.sent(c.backlog, n)
}

// resume goes on with the frames that had to wait.
func (c *Conn) resume() {
	if c.paused && c.leaving == leavingNot && c.backlog == nil && !c.backedUp() && !c.storing {
		c.paused = false
		c.consume(c.spill(), len(c.spill()))
	}
}

// write returns how many bytes of p the socket took. The connection may be
// closed on return.
func (c *Conn) write(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	n, err := netpoll.Write(int(c.fd), p)
	c.worker.metrics.WriteCalls.Inc()
	c.worker.metrics.BytesOut.Add(uint64(n))
	if err != nil && err != netpoll.ErrAgain {
		c.close(closeReset)
	}
	return n
}

// keep puts p behind the backlog. The first sendable bytes of p need not wait for the
// store. If p's memory is longer than maxOut, it is the backlog's from then on, since
// copying it would need as much again.
func (c *Conn) keep(p []byte, sendable int) {
	if len(p) == 0 || c.state == stateClosed {
		return
	}
	w := c.worker
	blocked := len(c.backlog.ready()) > 0
	if c.backlog == nil && cap(p) > maxOut {
		c.backlog = &backlog{buf: p, sendable: sendable, committing: sendable}
	} else {
		c.backlog = w.free.add(c.backlog, p, sendable)
	}
	w.metrics.Backlog.Add(int64(len(p)))
	w.heldBytes += len(p) - sendable
	if !blocked && sendable > 0 {
		c.startWriteDeadline()
	}
}

// releaseHeld makes the answers sendable that waited for the commit under way.
func (c *Conn) releaseHeld() {
	blocked := len(c.backlog.ready()) > 0
	n := c.backlog.endCommit()
	c.worker.heldBytes -= n
	c.storing = false
	if !blocked && n > 0 {
		c.startWriteDeadline()
	}
}

// dropHeld drops the answers that wait for the store.
func (c *Conn) dropHeld() {
	w := c.worker
	n := c.backlog.held()
	w.heldBytes -= n
	w.metrics.Backlog.Add(-int64(n))
	c.backlog = w.free.dropHeld(c.backlog)
	c.storing = false
}

// startWriteDeadline makes all sendable bytes of the backlog due. Bytes that are added
// later get a deadline of their own after that. The last bytes have that of the client's
// close.
func (c *Conn) startWriteDeadline() {
	c.backlog.due = c.backlog.sendable
	deadline := &c.backlog.deadline
	if c.state != stateOpen {
		deadline = &c.dueAt
	}
	*deadline = c.worker.loop.Now() + c.worker.engine.config.WriteTimeout
	c.schedule()
}
