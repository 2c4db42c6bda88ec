package engine

import (
	"slices"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

const (
	// readBufferBytes is what one read takes at the most; each worker has
	// one such buffer.
	readBufferBytes = 64 << 10
	// spillSmall is what of an unfinished frame is rather copied than read
	// behind in its own memory.
	spillSmall = 16 << 10
	// readBudget is how many full reads one client gets before the others'
	// turn.
	readBudget = 4
)

// onReadable reads what has come. A read that does not fill its buffer has
// taken all there was: no second one is spent to be told so.
func (c *Conn) onReadable() {
	for range readBudget {
		if c.state == stateOpen && c.backedUp() {
			return
		}
		buf, seen := c.readInto()
		n, err := netpoll.Read(int(c.fd), buf[seen:])
		c.worker.metrics.ReadCalls.Inc()
		if err == netpoll.ErrAgain {
			return
		}
		if err != nil {
			c.close(closeReset)
			return
		}
		if n == 0 {
			c.onEOF()
			return
		}
		c.worker.metrics.BytesIn.Add(uint64(n))
		c.lastRead = c.worker.loop.Now()
		c.consume(buf[:seen+n], seen)
		if c.worker.readLast(c, n) || seen+n < len(buf) || c.state == stateClosed || c.paused || c.backedUp() {
			return
		}
	}
}

// readInto is the memory for the next read, in which the spill stands in front:
// the buffer of the worker, so that an idle connection holds none, or where the
// spill is if it is large.
func (c *Conn) readInto() (buf []byte, seen int) {
	seen = len(c.spill)
	if seen < spillSmall {
		copy(c.worker.readBuffer, c.spill)
		buf = c.worker.readBuffer
	} else {
		c.spill = slices.Grow(c.spill, seen)
		buf = c.spill[:cap(c.spill)]
	}
	return buf[:seen+c.worker.mayRead(c, len(buf)-seen)], seen
}

// consume handles buf, whose first seen bytes are the spill, and makes what is
// unfinished of it the spill.
func (c *Conn) consume(buf []byte, seen int) {
	used := 0
	if c.state == stateHandshake {
		used = c.onRequest(buf, seen)
	}
	if c.state == stateOpen {
		used += c.onFrames(buf[used:])
	}
	rest := buf[used:]
	switch {
	case c.state >= stateClosing || len(rest) == 0:
		c.spill = nil
	case len(rest) <= cap(c.spill) && cap(c.spill) <= 2*len(rest)+spillSmall:
		c.spill = append(c.spill[:0], rest...)
	default:
		c.spill = slices.Clone(rest)
	}
}

// onFrames handles the frames in buf until one is unfinished, or the answers
// do not leave, and returns how many bytes it has used.
func (c *Conn) onFrames(buf []byte) (used int) {
	for c.state == stateOpen {
		if c.backedUp() {
			c.paused = true
			return used
		}
		m, n, err := c.parser.Next(buf[used:])
		used += n
		if err != nil {
			c.fail(err.(*proto.Error))
			return used
		}
		if m.Op == proto.OpContinuation {
			return used
		}
		c.onFrame(m)
		if len(c.worker.out) >= flushBytes {
			c.flush()
		}
	}
	return used
}

func (c *Conn) onFrame(m proto.Message) {
	switch m.Op {
	case proto.OpPing:
		c.worker.out = proto.AppendFrame(c.worker.out, proto.OpPong, m.Payload)
	case proto.OpPong:
		// lastRead has what it is for
	case proto.OpClose:
		c.sendClose(closePeer, proto.CloseCode(m.Payload), "")
	default:
		if c.overRate() {
			c.sendClose(closeRate, proto.StatusPolicyViolation, "too many messages")
			return
		}
		c.onMessage(m)
	}
}

// onMessage has the application answer a message. Where it has counted it, the
// answer is held until the count is stored.
func (c *Conn) onMessage(m proto.Message) {
	w := c.worker
	start, before := len(w.out), c.session.Count
	c.answer(c.endpoint.handler.OnMessage(c, m, w.out))
	if c.session.Count != before && before == c.session.Committed() {
		w.heldFrom = start
	}
}

// overRate counts a message against -message-rate: the generic cell rate
// algorithm (ITU-T I.371), with a second's worth of messages as its burst.
func (c *Conn) overRate() bool {
	rate := c.worker.engine.config.MessageRate
	if rate == 0 {
		return false
	}
	now := c.worker.loop.Now()
	c.rateTAT = max(c.rateTAT, now) + time.Second/time.Duration(rate)
	return c.rateTAT > now+time.Second
}

// onEOF follows the client's last byte. What it sent before is still answered.
func (c *Conn) onEOF() {
	c.eof = true
	switch c.state {
	case stateHandshake:
		c.countHandshake(handshakeAbandoned, nil)
		c.close(closeGone)
	case stateOpen:
		c.finish(closeGone)
	case stateLingering:
		c.close(c.reason)
	}
}
