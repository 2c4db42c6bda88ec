package main

import "turnstile/netpoll"

const (
	// flushBytes of replies are written before more is read.
	flushBytes = 64 << 10
	// highWater is the backlog above which a client is no longer read. With
	// the replies of one more message it is the most that a client that does
	// not read can make the server hold.
	highWater = 64 << 10
)

// backedUp reports whether the client takes its replies too slowly to be given
// more of them.
func (c *Conn) backedUp() bool { return len(c.backlog) > highWater }

// flush sends what the callback has appended, in one write. What the socket
// does not take is kept. The connection may be closed on return.
func (c *Conn) flush() {
	w := c.worker
	if c.endpoint != nil && c.state != stateClosed {
		c.endpoint.commit(c)
	}
	out := w.out
	w.out = out[:0]
	if c.state == stateClosed {
		return
	}
	if len(c.backlog) == 0 {
		out = out[c.write(out):]
	}
	c.keep(out)
	if c.state == stateClosing && len(c.backlog) == 0 {
		c.linger()
	}
	c.watch()
}

// onWritable sends of the backlog what the socket takes, and goes on with what
// had to wait for that.
func (c *Conn) onWritable() {
	n := c.write(c.backlog)
	if c.state == stateClosed {
		return
	}
	c.worker.metrics.Backlog.Add(-int64(n))
	c.backlog = c.backlog[n:]
	c.owed -= int32(n)
	switch {
	case len(c.backlog) == 0:
		c.backlog = nil
	case c.owed <= 0:
		c.owe()
	}
	if len(c.backlog) == 0 && c.paused {
		c.paused = false
		c.spill = c.consume(c.spill, len(c.spill))
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

// keep adds to the backlog.
func (c *Conn) keep(rest []byte) {
	if len(rest) == 0 || c.state == stateClosed {
		return
	}
	c.worker.metrics.Backlog.Add(int64(len(rest)))
	c.backlog = append(c.backlog, rest...)
	if len(c.backlog) == len(rest) {
		c.owe()
	}
}

// owe sets the deadline by which all that is now in the backlog has to leave;
// what is added later gets its own after that.
func (c *Conn) owe() {
	c.owed = int32(len(c.backlog))
	c.deadline = c.worker.loop.Now() + c.worker.config.WriteTimeout
	c.schedule()
}
