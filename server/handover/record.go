package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"
)

// Version is the version of the records and of the exchange. Only processes of the
// same version hand over to each other.
const Version = 2

// A Record is one connection without its file descriptor.
type Record struct {
	// The client, and what it asked for.
	Endpoint string   // the path of the upgrade; "" while the request is incomplete
	V2       bool     // the client speaks the second version of the protocol
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

	// Bytes, from the client and to it.
	Unparsed []byte // bytes that were read and not handled
	Paused   bool   // Unparsed holds whole frames, which wait until Backlog is sent
	Parser   Parser
	Backlog  []byte // answers that the socket did not take yet
	Due      int    // bytes of Backlog that must be sent before Deadline
}

// A Parser is the state of a connection's parser.
type Parser struct {
	Op      uint8  // the opcode of the message whose fragments are in Message, 0 if there is none
	Message []byte // the fragments so far
	Seen    int    // bytes of the frame at the front of Unparsed that are unmasked and checked
	Tail    []byte // the first bytes of a character whose last bytes are still to come
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
// differ.
func (r *Record) fields(c *codec) {
	c.duration(&r.Frozen)
	c.text(&r.Endpoint)
	c.flag(&r.V2)
	c.array(&r.IP)
	c.flag(&r.Charged)
	c.flag(&r.Paused)
	for _, d := range []*time.Duration{&r.Opened, &r.LastRead, &r.HeartbeatAt, &r.Deadline, &r.RateTAT} {
		c.duration(d)
	}
	c.bytes(&r.Unparsed)
	c.bytes(&r.Backlog)
	c.int(&r.Due)
	c.byte(&r.Parser.Op)
	c.bytes(&r.Parser.Message)
	c.int(&r.Parser.Seen)
	c.bytes(&r.Parser.Tail)
	r.Session.fields(c)
}

func (s *Session) fields(c *codec) {
	c.array(&s.ID)
	c.number(&s.Count)
	c.duration(&s.Idle)
	c.text(&s.Token)
	c.text(&s.Rival)
	c.flag(&s.Held)
	c.flag(&s.Known)
	c.flag(&s.Owned)
}

// check says what of a record that was read does not fit the rest of it. Without it, a
// process could panic when it goes on where the record says.
func (r *Record) check() error {
	p := &r.Parser
	switch seen := p.Seen; {
	case r.Due < 0 || r.Due > len(r.Backlog):
		return fmt.Errorf("%d bytes are due of a backlog of %d", r.Due, len(r.Backlog))
	case seen < 0 || seen > 0 && seen > len(r.Unparsed)-frameHeaderBytes(r.Unparsed):
		return fmt.Errorf("%d bytes of a frame are checked, and %d bytes of it and its header are there", seen, len(r.Unparsed))
	case p.Op > opBinary || p.Op == 0 && len(p.Message) > 0:
		return fmt.Errorf("fragments of %d bytes are of opcode %d", len(p.Message), p.Op)
	case len(p.Tail) >= utf8.UTFMax:
		return fmt.Errorf("%d bytes are the beginning of one character", len(p.Tail))
	}
	return nil
}

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

// A codec writes to data or reads from it.
type codec struct {
	data    []byte
	reading bool
	err     error // of reading
}

var (
	errCut   = errors.New("a record is cut off")
	errValue = errors.New("a record holds a value that its field cannot have")
)

// fail ends reading.
func (c *codec) fail(err error) { c.data, c.err = nil, err }

func (c *codec) number(n *uint64) {
	if !c.reading {
		c.data = binary.AppendUvarint(c.data, *n)
		return
	}
	value, size := binary.Uvarint(c.data)
	if size <= 0 {
		c.fail(errCut)
		return
	}
	*n, c.data = value, c.data[size:]
}

// signed is number in zigzag form.
func (c *codec) signed(n *int64) {
	folded := uint64(*n)<<1 ^ uint64(*n>>63)
	c.number(&folded)
	*n = int64(folded>>1) ^ -int64(folded&1)
}

func (c *codec) int(n *int) {
	wide := int64(*n)
	c.signed(&wide)
	*n = int(wide)
}

func (c *codec) duration(d *time.Duration) { c.signed((*int64)(d)) }

func (c *codec) byte(b *uint8) {
	wide := uint64(*b)
	c.number(&wide)
	if wide > math.MaxUint8 {
		c.fail(errValue)
	}
	*b = uint8(wide)
}

func (c *codec) flag(f *bool) {
	var b uint8
	if *f {
		b = 1
	}
	c.byte(&b)
	if b > 1 {
		c.fail(errValue)
	}
	*f = b == 1
}

func (c *codec) array(a *[16]byte) {
	b := a[:]
	c.bytes(&b)
	if len(b) != len(a) && c.err == nil {
		c.fail(errValue)
	}
	copy(a[:], b)
}

func (c *codec) text(s *string) {
	b := []byte(*s)
	c.bytes(&b)
	*s = string(b)
}

// bytes reads no bytes as nil. The bytes that it reads are a part of data.
func (c *codec) bytes(b *[]byte) {
	length := uint64(len(*b))
	c.number(&length)
	switch {
	case !c.reading:
		c.data = append(c.data, *b...)
	case length > uint64(len(c.data)):
		c.fail(errCut)
	case length == 0:
		*b = nil
	default:
		*b, c.data = c.data[:length:length], c.data[length:]
	}
}
