package engine

import (
	"time"

	"turnstile/proto"
)

// An input is what a client has sent and the worker has not handled. A connection
// without such bytes has none.
type input struct {
	// spill is bytes that were read and not handled: an unfinished request or frame, or
	// frames that wait.
	spill []byte

	// The message that the client has begun and not ended, if there is one.
	conn           *Conn // nil while it is not one of worker.unfinished
	older, younger *input
	began          time.Duration // when its first byte was read
	slowAt         time.Duration // when it is too slow, unless more of it comes: see notePace
	arrived        int           // how much of it is there
	bytes          int           // the memory that counts
	wanted         int           // how much it will be, if isWaiting
	isBegun        bool
	isWaiting      bool // its client is not read: see waitForRoom

	// What came behind the server's close frame: see Conn.skip.
	skipper proto.Skipper
	skipped int  // how many bytes
	closed  bool // with the client's close frame among them
}

func (c *Conn) needInput() *input {
	if c.input == nil {
		c.input = &input{}
	}
	return c.input
}

// spill is valid until more is read.
func (c *Conn) spill() []byte {
	if c.input == nil {
		return nil
	}
	return c.input.spill
}

// takeSpill empties the spill. Its bytes are valid until more is read.
func (c *Conn) takeSpill() (spill []byte) {
	if c.input == nil {
		return nil
	}
	spill = c.input.spill
	c.input.spill = spill[:0]
	return spill
}

// keepRest makes rest the spill. It may be a part of the old spill's memory.
func (c *Conn) keepRest(rest []byte) {
	if len(rest) == 0 && c.parsed.BetweenMessages() {
		c.dropInput()
		return
	}
	in := c.needInput()
	switch {
	case len(rest) == 0:
		c.worker.keepSpare(in.spill)
		in.spill = nil
	case cap(in.spill) > 0 && &rest[0] == &in.spill[:1][0]: // it is there already
		in.spill = in.spill[:len(rest)]
	case len(rest) <= cap(in.spill) && cap(in.spill) <= 2*len(rest)+spillSmall:
		in.spill = append(in.spill[:0], rest...)
	default:
		before := in.spill
		in.spill = append(c.worker.newSpill(len(rest)), rest...)
		c.worker.keepSpare(before)
	}
	c.trackMessage()
}

func (c *Conn) dropInput() {
	if c.input != nil {
		c.worker.unfinished.remove(c.input)
		c.worker.keepSpare(c.input.spill)
		c.input = nil
	}
}

// needsOwnMemory reports whether the client's next bytes go behind a spill, and not into
// the worker's buffer, of which size bytes would be used: if copying the spill would cost
// more, or if they are no more than a part of a long frame.
func (c *Conn) needsOwnMemory(spill []byte, size int) bool {
	return len(spill) >= spillSmall || len(spill) >= spillLeast && c.frameEnd(spill) > int64(size)
}

// frameEnd is where the frame at the front of a spill ends; 0 while that is not known.
func (c *Conn) frameEnd(spill []byte) int64 {
	p := proto.Parser{Rules: c.rules()}
	return p.FrameEnd(spill)
}

// spillSize is how much memory a spill needs for what comes next of its frame: as much as a
// read brings, or as much as is there already, but not more than the frame. So a header
// that announces a long frame costs little, and a frame that comes takes no more than its
// own length, and as much garbage.
func (c *Conn) spillSize(spill []byte) int {
	room := max(spillAtOnce, 2*len(spill))
	if end := c.frameEnd(spill); end > 0 {
		room = int(min(int64(room), max(end, int64(len(spill)))+spillSlack))
	}
	return max(room, cap(spill))
}

// growSpill makes room for size bytes in a spill.
func (c *Conn) growSpill(size int) []byte {
	spill := c.input.spill
	if size > cap(spill) {
		spill = append(c.worker.newSpill(size), spill...)
		c.input.spill = spill
	}
	return spill[:size]
}

// spillMemory is how much memory a spill of size bytes takes. Long messages of the default
// -max-message all take the same, so that one can have what another has left.
func spillMemory(size int) int {
	if spillAtOnce/2 < size && size <= spillAtOnce {
		return spillAtOnce
	}
	return size
}

// newSpill returns memory for size bytes.
func (w *worker) newSpill(size int) []byte {
	size = spillMemory(size)
	if n := len(w.spares) - 1; size == spillAtOnce && n >= 0 {
		spare := w.spares[n]
		w.spares = w.spares[:n]
		return spare
	}
	return make([]byte, 0, size)
}

// keepSpare keeps a spill's memory that nobody needs any more.
func (w *worker) keepSpare(spill []byte) {
	if cap(spill) == spillAtOnce && len(w.spares) < mostSpares {
		w.spares = append(w.spares, spill[:0])
	}
}
