package engine

import (
	"slices"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

const (
	// readBufferBytes is how much one read returns at the most. Each worker has one
	// such buffer.
	readBufferBytes = 64 << 10
	// spillSmall is the longest spill that is copied into the worker's buffer before
	// a read. A longer one grows in its own memory, since copying it would cost more.
	spillSmall = 16 << 10
)

// onReadable reads once what the client has sent. What a full buffer leaves in the
// socket is read in the loop's next turn, after the other clients have had theirs.
func (c *Conn) onReadable() {
	if c.state == stateOpen && c.backedUp() {
		return
	}
	buf, seen := c.readInto()
	n, err := netpoll.Read(int(c.fd), buf[seen:])
	c.worker.metrics.ReadCalls.Inc()
	switch {
	case err == netpoll.ErrAgain:
	case err != nil:
		c.onReset()
	case n == 0:
		c.onEOF()
	default:
		c.worker.metrics.BytesIn.Add(uint64(n))
		c.lastRead = c.worker.loop.Now()
		c.worker.noteEarly(c, n)
		c.consume(buf[:seen+n], seen)
	}
}

// readInto is the memory for the next read, with the spill at its front. It is the
// worker's buffer, so that an idle connection holds none, or the memory of a long
// spill itself.
func (c *Conn) readInto() (buf []byte, seen int) {
	spill := c.spill()
	seen = len(spill)
	if seen < spillSmall {
		copy(c.worker.readBuffer, spill)
		buf = c.worker.readBuffer
	} else {
		c.input.spill = slices.Grow(spill, seen)
		buf = c.input.spill[:cap(c.input.spill)]
	}
	return buf[:seen+c.worker.mayRead(c, len(buf)-seen)], seen
}

// consume handles buf, whose first seen bytes are the spill. What it cannot handle
// yet becomes the spill.
func (c *Conn) consume(buf []byte, seen int) {
	c.takeSpill()
	used := 0
	if c.state == stateHandshake {
		used = c.onRequest(buf, seen)
	}
	if c.state == stateOpen {
		used += c.onFrames(buf[used:])
	}
	if rest := buf[used:]; c.state >= stateClosing {
		c.skip(rest)
	} else {
		c.keepRest(rest)
	}
}

// onFrames handles the frames in buf until one is unfinished, or too many answers
// wait. It returns how many bytes it has used.
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
		// lastRead says that the client lives
	case proto.OpClose:
		c.sendClose(closePeer, proto.CloseCode(m.Payload), "")
	default:
		if c.overRate() {
			c.sendClose(closeRate, proto.StatusPolicyViolation, "too many messages")
			return
		}
		c.answer(c.endpoint.handler.OnMessage(c, m, c.worker.out))
	}
}

// overRate counts a message against -message-rate, and reports whether it is one too
// many: the generic cell rate algorithm (ITU-T I.371), with a burst of one second.
func (c *Conn) overRate() bool {
	rate := c.worker.engine.config.MessageRate
	if rate == 0 {
		return false
	}
	now := c.worker.loop.Now()
	c.rateTAT = max(c.rateTAT, now) + time.Second/time.Duration(rate)
	return c.rateTAT > now+time.Second
}

// onEOF is called after the client's last byte. What the client sent before is still
// answered.
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
