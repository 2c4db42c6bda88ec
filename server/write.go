package main

import "turnstile/netpoll"

const (
	// flushBytes of replies are written before more is read.
	flushBytes = 64 << 10
	// highWater is the backlog above which a client is no longer read. With
	// the replies of one more message it is the most that a client that does
	// not read, or a store that does not answer, can make the server hold.
	highWater = 64 << 10
	// outMost is how much memory for replies a worker keeps: the escaped text
	// of one long message can be six times as long.
	outMost = 1 << 20
	// heldBudget is how many bytes of replies may wait for the store on all
	// connections of a worker before none of them is read.
	heldBudget = 32 << 20
)

// backedUp reports whether the client takes its replies too slowly, or the
// store stores them too slowly, to be given more of them.
func (c *Conn) backedUp() bool { return len(c.backlog) > highWater || c.worker.heldBytes > heldBudget }

// flush sends what the callback has appended, in one write. What the socket
// does not take, or what has to wait for the store, is kept. The connection may
// be closed on return.
func (c *Conn) flush() {
	w := c.worker
	asks := c.asked == 0 && c.endpoint != nil && c.state != stateClosed && c.endpoint.commit(c)
	out := w.out
	w.out = out[:0]
	if cap(out) > outMost {
		w.out = nil
	}
	if c.state == stateClosed {
		return
	}
	free := len(out)
	switch {
	case c.asked != 0:
		free = 0
	case asks:
		free = w.held
	}
	w.held = 0
	c.send(out, free, asks)
	if c.state == stateClosing && len(c.backlog) == 0 {
		c.linger()
	}
	c.watch()
}

// send writes, of the backlog and out behind it, what need not wait for the
// store: free bytes of out. With asks, the rest waits for what was just asked.
func (c *Conn) send(out []byte, free int, asks bool) {
	if len(c.backlog) == 0 {
		sent := c.write(out[:free])
		c.keep(out[sent:], free-sent)
	} else {
		c.keep(out, free)
		if netpoll.Events(c.watched)&netpoll.Writable == 0 {
			c.push()
		}
	}
	if asks {
		c.asked = int32(len(c.backlog))
	}
}

// onWritable sends of the backlog what the socket takes, and goes on with what
// had to wait for that.
func (c *Conn) onWritable() {
	c.push()
	if c.state == stateClosed {
		return
	}
	if c.free > 0 && c.owed <= 0 {
		c.owe()
	}
	c.resume()
}

// push writes of the backlog what may be sent. The connection may be closed on
// return.
func (c *Conn) push() {
	n := c.write(c.backlog[:c.free])
	if c.state == stateClosed {
		return
	}
	c.worker.metrics.Backlog.Add(-int64(n))
	c.backlog = c.backlog[n:]
	c.free -= int32(n)
	c.owed -= int32(n)
	c.asked = max(0, c.asked-int32(n))
	if len(c.backlog) == 0 {
		c.backlog = nil
	}
}

// resume goes on with the frames that had to wait.
func (c *Conn) resume() {
	if c.paused && c.leaving == leavingNot && len(c.backlog) == 0 && !c.backedUp() {
		c.paused = false
		c.take(c.spill, len(c.spill))
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

// keep adds to the backlog; free bytes of rest need not wait for the store.
func (c *Conn) keep(rest []byte, free int) {
	if len(rest) == 0 || c.state == stateClosed {
		return
	}
	c.worker.metrics.Backlog.Add(int64(len(rest)))
	c.worker.heldBytes += len(rest)
	c.backlog = append(c.backlog, rest...)
	c.release(free)
}

// release lets the next n bytes of the backlog be sent.
func (c *Conn) release(n int) {
	if n == 0 {
		return
	}
	c.worker.heldBytes -= n
	c.free += int32(n)
	if int(c.free) == n {
		c.owe()
	}
}

// dropHeld takes back what waits for the store.
func (c *Conn) dropHeld() {
	n := len(c.backlog) - int(c.free)
	c.worker.heldBytes -= n
	c.worker.metrics.Backlog.Add(-int64(n))
	c.backlog = c.backlog[:c.free]
	c.asked = 0
}

// owe sets the deadline by which all of the backlog that may be sent now has to
// leave; what is added later gets its own after that.
func (c *Conn) owe() {
	c.owed = c.free
	c.deadline = c.worker.loop.Now() + c.worker.config.WriteTimeout
	c.schedule()
}
