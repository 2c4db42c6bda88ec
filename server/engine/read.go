package engine

import (
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

const (
	// readBufferBytes is how much one read returns at the most. Each worker has one
	// such buffer.
	readBufferBytes = 64 << 10
	// shortRead is how much one read returns of a client that sends short messages, or has
	// not sent much yet. They take some microseconds a KiB, and the others wait: 64 KiB of
	// messages of one byte would take 4 ms. Long messages take little, and more reads of
	// them would cost much.
	shortRead = 8 << 10
	// longMessage is the length in bytes from which on messages are long, on average.
	longMessage = 512
	// spillSmall is the longest spill that is copied into the worker's buffer before
	// a read. A longer one grows in its own memory, since copying it would cost more.
	spillSmall = 16 << 10
	// spillLeast is the shortest spill of a frame that gets memory of its own because the
	// frame is long.
	spillLeast = 1 << 10
	// spillAtOnce is how much memory a long frame gets at once: as much as one of the default
	// -max-message needs.
	spillAtOnce = 64<<10 + 2*spillSlack
	// mostSpares is how many spills of that size a worker keeps.
	mostSpares = 8
	// spillSlack is the room behind a long frame. The last read of it takes the next
	// frame's front as well, and shows that the socket is empty.
	spillSlack = 512
)

// onReadable reads once what the client has sent. What a full buffer leaves in the
// socket is read in the loop's next turn, after the other clients have had theirs.
func (c *Conn) onReadable() {
	if c.state == stateOpen && (c.backedUp() || c.worker.unfinished.isOver()) {
		return
	}
	buf, seen := c.readInto()
	if len(buf) == seen {
		return // it waits for room
	}
	n, err := netpoll.Read(int(c.fd), buf[seen:])
	frames := c.worker.frames
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
		if n == len(buf)-seen && c.state == stateOpen && !c.paused {
			c.sendsLong = (c.worker.frames-frames)*longMessage <= n
		}
	}
}

// readInto is the memory for the next read, with the spill at its front. It is the
// worker's buffer, so that an idle connection holds none, or the memory of a long
// spill itself. Without room for more it is the spill alone: the client waits.
func (c *Conn) readInto() (buf []byte, seen int) {
	spill := c.spill()
	seen = len(spill)
	size, isOwn := c.sizeOfRead(spill)
	if c.state == stateOpen {
		if held := c.mayHold(size, seen); held < size {
			size, isOwn = held, false
		}
	}
	switch {
	case size == seen:
		return spill, seen
	case isOwn:
		buf = c.growSpill(size)
	default:
		buf = c.worker.readBuffer[:size]
		copy(buf, spill)
	}
	return buf[:seen+c.worker.mayRead(c, size-seen)], seen
}

// sizeOfRead is how long the spill and the next read together may be, and whether they
// belong into the spill's own memory.
func (c *Conn) sizeOfRead(spill []byte) (size int, isOwn bool) {
	size = readBufferBytes
	if !c.sendsLong && c.state <= stateOpen {
		size = min(size, len(spill)+shortRead)
	}
	if c.state == stateOpen && c.needsOwnMemory(spill, size) {
		return c.spillSize(spill), true
	}
	return size, false
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
	inflated := 0
	for c.state == stateOpen {
		switch {
		case c.backedUp():
			c.paused = true
			return used
		case inflated >= inflateMost && used < len(buf):
			c.yield()
			return used
		}
		m, n, err := c.next(buf[used:])
		used += n
		if err != nil {
			c.fail(err.(*proto.Error))
			return used
		}
		c.worker.frames += 1 + m.Fragments
		if c.overFrameRate(m) {
			c.sendClose(closeRate, proto.StatusPolicyViolation, "too many frames")
			return used
		}
		if m.Op == proto.OpContinuation {
			return used
		}
		if c.input != nil && c.parsed.BetweenMessages() {
			c.input.isBegun = false // what is unfinished later is another message
		}
		c.onFrame(m)
		if m.Inflated {
			inflated += len(m.Payload)
		}
		if len(c.worker.out) >= flushBytes {
			c.flush()
		}
	}
	return used
}

// next takes the next message out of buf: see proto.Parser.
func (c *Conn) next(buf []byte) (m proto.Message, n int, err error) {
	p := proto.Parser{Rules: c.rules(), Unfinished: c.parsed}
	m, n, err = p.Next(buf)
	c.parsed = p.Unfinished
	return m, n, err
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

const (
	// framesForMessage is how many control frames and fragments go with a message of
	// -message-rate: they are cheaper, and libraries cut long messages up.
	framesForMessage = 10
	// leastFrameRate is how many of them a second every client may send.
	leastFrameRate = 100
)

// A rates has the theoretical arrival times of -message-rate: of messages, and of control
// frames and fragments.
type rates struct{ messageTAT, frameTAT time.Duration }

func (r *rates) times() rates {
	if r == nil {
		return rates{}
	}
	return *r
}

func (c *Conn) needRates() *rates {
	if c.rates == nil {
		c.rates = &rates{}
	}
	return c.rates
}

// overRate counts a message against -message-rate, and reports whether it is one too
// many.
func (c *Conn) overRate() bool {
	rate := c.worker.engine.config.MessageRate
	return rate > 0 && c.isOver(&c.needRates().messageTAT, rate, 1)
}

// overFrameRate counts the frames that are no whole message, and reports whether they are
// too many for -message-rate. Without that, they share the loop as messages do: one read
// of each client in a turn.
func (c *Conn) overFrameRate(m proto.Message) bool {
	rate := c.worker.engine.config.MessageRate
	if rate == 0 {
		return false
	}
	frames := m.Fragments
	if m.Op == proto.OpPing || m.Op == proto.OpPong {
		frames++
	}
	return frames > 0 && c.isOver(&c.needRates().frameTAT, max(framesForMessage*rate, leastFrameRate), frames)
}

// isOver counts n against a rate a second, and reports whether that is too many: the
// generic cell rate algorithm (ITU-T I.371), with a burst of one second.
func (c *Conn) isOver(tat *time.Duration, rate, n int) bool {
	now := c.worker.loop.Now()
	*tat = max(*tat, now) + time.Duration(n)*time.Second/time.Duration(rate)
	return *tat > now+time.Second
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
