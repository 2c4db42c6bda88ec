package handover

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// A Record is one connection without its file descriptor.
type Record struct {
	// The client, and what it asked for.
	Endpoint string   // the path of the upgrade; "" while the request is incomplete
	V2       bool     // the client speaks the second version of the protocol
	Window   uint8    // the window of compressed answers, in bits; 0 is a connection without compression
	IP       [16]byte // the client's address
	Charged  bool     // IP counts in the limit for each address
	Session  Session

	// Times: the others are relative to Frozen.
	Frozen      time.Duration // when the old process stopped serving it, on CLOCK_MONOTONIC
	Opened      time.Duration
	LastRead    time.Duration
	HeartbeatAt time.Duration
	Deadline    time.Duration
	RateTAT     time.Duration // the theoretical arrival time of the limit on messages a second
	FrameTAT    time.Duration // likewise, of the limit on frames
	Begun       time.Duration // when the message began whose end is still to come; 0 if there is none, or nobody knows

	// Bytes, from the client and to it.
	Unparsed []byte // bytes that were read and not handled
	Paused   bool   // Unparsed holds whole frames, which wait until Backlog is sent
	Parser   Parser
	Backlog  []byte // answers that the socket did not take yet
	Due      int    // bytes of Backlog that must be sent before Deadline
}

// A Parser is the state of a connection's parser.
type Parser struct {
	Op         uint8  // the opcode of the message whose fragments are in Message, 0 if there is none
	Compressed bool   // that message is
	Message    []byte // the fragments so far
	Seen       int    // bytes of the frame at the front of Unparsed that are unmasked and checked
	Tail       []byte // the first bytes of a character whose last bytes are still to come
}

// A Session is a session. A connection holds it, or it waits for the next one.
type Session struct {
	ID    [16]byte // all zero for a connection without a session
	Count uint64
	Idle  time.Duration // since its last connection ended; 0 while it has one
	Token string        // the owner's token in Redis, "" in the embedded store
	Rival string        // an older token, which the owner's key in Redis may still hold
	Held  bool          // Redis has the count under Token
	Known bool          // the session was known before Token claimed it
	Owned bool          // Token has owned the session in Redis
}

// fields reads or writes all fields of a record, so that reading and writing cannot
// differ. A number is a field's for ever. Version 1 knows no numbers: there, this is the
// order. Fields that are newer stand behind isTagged.
//
// A reader that does not know a field goes without it. A field without which a connection
// would be another one has mustKnow in its tag, if the first readers of tags do not know it.
func (r *Record) fields(c *codec) {
	c.duration(1, &r.Frozen)
	c.text(2, &r.Endpoint)
	c.flag(3, &r.V2)
	c.array(4, &r.IP)
	c.flag(5, &r.Charged)
	c.flag(6, &r.Paused)
	c.duration(7, &r.Opened)
	c.duration(8, &r.LastRead)
	c.duration(9, &r.HeartbeatAt)
	c.duration(10, &r.Deadline)
	c.duration(11, &r.RateTAT)
	c.bytes(12, &r.Unparsed)
	c.bytes(13, &r.Backlog)
	c.int(14, &r.Due)
	c.byte(15, &r.Parser.Op)
	c.bytes(16, &r.Parser.Message)
	c.int(17, &r.Parser.Seen)
	c.bytes(18, &r.Parser.Tail)
	r.Session.fields(c)
	if c.isTagged() {
		c.duration(27, &r.FrameTAT)
		c.mark = mustKnow
		c.byte(28, &r.Window)
		c.flag(29, &r.Parser.Compressed)
		c.mark = 0
		c.duration(30, &r.Begun)
	}
}

// LastField is the highest number of a field. Whoever adds a field with mustKnow also
// makes the old process keep the connections that need it, if the new one's
// Hello.LastField is lower, or says in another way that it does not know it.
const LastField = 30

func (s *Session) fields(c *codec) {
	c.array(19, &s.ID)
	c.number(20, &s.Count)
	c.duration(21, &s.Idle)
	c.text(22, &s.Token)
	c.text(23, &s.Rival)
	c.flag(24, &s.Held)
	c.flag(25, &s.Known)
	c.flag(26, &s.Owned)
}

// check puts right what an earlier version may write, and says what of a record that was
// read does not fit the rest of it. Without it, a process could panic when it goes on
// where the record says.
func (r *Record) check() error {
	r.Due = max(r.Due, 0) // a process of version 1 may write less than 0 for none
	p := &r.Parser
	switch seen := p.Seen; {
	case r.Due > len(r.Backlog):
		return fmt.Errorf("%d bytes are due of a backlog of %d", r.Due, len(r.Backlog))
	case seen < 0 || seen > 0 && seen > len(r.Unparsed)-frameHeaderBytes(r.Unparsed):
		return fmt.Errorf("%d bytes of a frame are checked, and %d bytes of it and its header are there", seen, len(r.Unparsed))
	case p.Op > opBinary || p.Op == 0 && len(p.Message) > 0:
		return fmt.Errorf("fragments of %d bytes are of opcode %d", len(p.Message), p.Op)
	case r.Window != 0 && (r.Window < leastWindow || r.Window > fullWindow):
		return fmt.Errorf("the window for compression has %d bits", r.Window)
	case p.Compressed && (r.Window == 0 || p.Op == 0):
		return errors.New("a compressed message is begun, and there is no compression, or no message")
	case len(p.Tail) >= utf8.UTFMax:
		return fmt.Errorf("%d bytes are the beginning of one character", len(p.Tail))
	}
	return nil
}

// The bounds of a window, in bits (RFC 7692 §7.1.2).
const (
	leastWindow = 8
	fullWindow  = 15
)

// opBinary is the highest opcode that a message can have (RFC 6455 §5.2).
const opBinary = 2

// frameHeaderBytes is how long the header of a client's frame is, whose first bytes
// these are (RFC 6455 §5.2).
func frameHeaderBytes(frame []byte) int {
	switch {
	case len(frame) < 2:
		return len(frame)
	case frame[1]&0x7f == 126:
		return 8
	case frame[1]&0x7f == 127:
		return 14
	}
	return 6
}
