package main

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
	// spillRoom is what a read takes at least behind an unfinished frame.
	spillRoom = 4 << 10
	// readBudget is how many full reads one client gets before the others'
	// turn.
	readBudget = 4
)

// onReadable reads what has come. A read that does not fill its buffer has
// taken all there was: no second one is spent to be told so.
func (c *Conn) onReadable() {
	for range readBudget {
		room := c.room()
		n, err := netpoll.Read(int(c.fd), room)
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
		c.take(room[:n])
		if n < len(room) || c.state == stateClosed || c.paused || c.backedUp() {
			return
		}
	}
}

// room is where the next bytes go: behind the spill, or into the buffer of the
// worker, so that an idle connection holds none.
func (c *Conn) room() []byte {
	if len(c.spill) == 0 {
		return c.worker.in
	}
	c.spill = slices.Grow(c.spill, spillRoom)
	return c.spill[len(c.spill):cap(c.spill)]
}

// take handles what was read into room.
func (c *Conn) take(fresh []byte) {
	if len(c.spill) == 0 {
		c.spill = c.consume(fresh, 0)
		return
	}
	before := len(c.spill)
	c.spill = c.consume(c.spill[:before+len(fresh)], before)
}

// consume handles buf, whose first seen bytes were there before, and returns
// what is to be kept of it in memory of its own.
func (c *Conn) consume(buf []byte, seen int) (rest []byte) {
	used := 0
	if c.state == stateHandshake {
		used = c.onRequest(buf, seen)
	}
	if c.state == stateOpen {
		used += c.onFrames(buf[used:])
	}
	rest = buf[used:]
	switch {
	case c.state >= stateClosing || len(rest) == 0:
		return nil
	case seen > 0 && cap(buf) <= 2*len(rest)+spillRoom:
		return buf[:copy(buf, rest)]
	}
	return slices.Clone(rest)
}

// onFrames handles the frames in buf until one is unfinished, or the replies
// no longer go out, and returns how many bytes it has used.
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
		c.endpoint.onMessage(c, m)
	}
}

// overRate counts a message against -message-rate: the generic cell rate
// algorithm (ITU-T I.371), with a second's worth of messages as its burst.
func (c *Conn) overRate() bool {
	rate := c.worker.config.MessageRate
	if rate == 0 {
		return false
	}
	now := c.worker.loop.Now()
	c.paidUntil = max(c.paidUntil, now) + time.Second/time.Duration(rate)
	return c.paidUntil > now+time.Second
}

// onEOF follows the client's last byte. What it sent before is still answered.
func (c *Conn) onEOF() {
	c.eof = true
	switch c.state {
	case stateHandshake:
		c.countHandshake(handshakeAbandoned)
		c.close(closeGone)
	case stateOpen:
		c.finish(closeGone)
	case stateLingering:
		c.close(c.reason)
	}
}
