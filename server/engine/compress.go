package engine

import "turnstile/proto"

// This file is what the engine does about compressed messages (RFC 7692). Parsers and
// answers of all connections of a worker share one inflater and one deflater, so that a
// connection has no memory for that.

// terms are what client and server have agreed on in the upgrade: one byte of a Conn.
type terms uint8

const (
	termV2     terms = 0x80 // the client speaks proto.Subprotocol
	termWindow terms = 0x0f // the window of compressed answers, in bits; 0 is no compression
)

func termsOf(v2 bool, window uint8) terms {
	t := terms(window) & termWindow
	if v2 {
		t |= termV2
	}
	return t
}

func (t terms) v2() bool { return t&termV2 != 0 }

func (t terms) window() uint8 { return uint8(t & termWindow) }

// rules are those that the upgrade has agreed on.
func (c *Conn) rules() *proto.Rules {
	if c.terms.window() > 0 {
		return &c.worker.inflatingRules
	}
	return &c.worker.rules
}

// compress compresses the frames in out[from:], if the client takes that and they are long
// enough.
func (c *Conn) compress(out []byte, from int) []byte {
	w := c.worker
	window, size := c.terms.window(), w.engine.config.Compress
	if window == 0 || len(out)-from < size {
		return out
	}
	before := len(out)
	out = w.deflater.Compress(out, from, size, window)
	w.metrics.CompressSaved.Add(uint64(before - len(out)))
	return out
}

// inflateMost is how many bytes of messages are inflated before the other clients have
// their turn: a read may have a hundred messages that become as long as they may be.
const inflateMost = readBufferBytes

// yield makes the frames that are left wait until the loop has handled other events.
func (c *Conn) yield() {
	c.paused = true
	c.worker.starve(c)
	c.worker.relieveSoon()
}

// longestMessage is how long a message may be as it comes.
func (w *worker) longestMessage() int {
	if w.engine.config.Compress > 0 {
		return proto.CompressedBound(w.rules.MaxMessage)
	}
	return w.rules.MaxMessage
}
