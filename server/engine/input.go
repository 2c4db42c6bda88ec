package engine

import "turnstile/proto"

// An input is what a client has sent and the worker has not handled. A connection
// without such bytes has none.
type input struct {
	// spill is bytes that were read and not handled: an unfinished request or frame, or
	// frames that wait.
	spill []byte

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
	if len(rest) == 0 {
		c.input = nil
		return
	}
	in := c.needInput()
	if len(rest) > cap(in.spill) || cap(in.spill) > 2*len(rest)+spillSmall {
		in.spill = make([]byte, 0, len(rest))
	}
	in.spill = append(in.spill[:0], rest...)
}
