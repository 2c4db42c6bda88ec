package handover

import (
	"encoding/binary"
	"errors"
	"time"
)

// Version is that of the records, and of what goes with them. Only processes
// of the same version hand over to each other.
const Version = 1

// A Record is one connection, but for its file descriptor. Times are relative
// to Frozen.
type Record struct {
	Frozen      time.Duration // when the old process stopped serving it, on CLOCK_MONOTONIC
	Endpoint    string        // the path it was upgraded at; "" while its request is not whole
	V2          bool          // it speaks the second version of the protocol
	IP          [16]byte      // of the client
	Charged     bool          // IP counts in the limit for each address
	Paused      bool          // Unparsed holds whole frames, which wait for Backlog to leave
	Opened      time.Duration
	LastRead    time.Duration
	HeartbeatAt time.Duration
	Deadline    time.Duration
	RateTAT     time.Duration // the theoretical arrival time of the limit on messages a second
	Unparsed    []byte        // bytes read of an unfinished request or frame
	Backlog     []byte        // what the socket did not take yet
	Due         int           // bytes of it that have to leave before Deadline
	Parser      Parser
	Session     Session
}

// A Parser is where a connection's parser stands.
type Parser struct {
	Op      uint8  // of the message whose fragments are in Message, 0 if there is none
	Message []byte // the fragments so far
	Seen    int    // bytes of the frame at the front of Unparsed that are unmasked and checked
	Tail    []byte // the start of a character that the text was cut in
}

// A Session is a session, held by a connection or waiting for the next.
type Session struct {
	ID    [16]byte // all zero for a connection without a session
	Count uint64
	Idle  time.Duration // since its last connection ended; 0 while it has one
	Token string        // the owner's in Redis, "" in the embedded store
	Rival string        // the owner's key there may still name this older one
	Held  bool          // Redis has the count under Token
	Known bool          // somebody had the session before
	Owned bool          // Token was the owner's once
}

// fields names all of a record for reading and for writing, so that the two
// cannot differ.
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

// A codec writes to, or reads from, data.
type codec struct {
	data    []byte
	reading bool
	err     error // of reading
}

var errCut = errors.New("a record is cut off")

func (c *codec) number(n *uint64) {
	if !c.reading {
		c.data = binary.AppendUvarint(c.data, *n)
		return
	}
	value, size := binary.Uvarint(c.data)
	if size <= 0 {
		c.data, c.err = nil, errCut
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
	*b = uint8(wide)
}

func (c *codec) flag(f *bool) {
	var b uint8
	if *f {
		b = 1
	}
	c.byte(&b)
	*f = b == 1
}

func (c *codec) array(a *[16]byte) {
	b := a[:]
	c.bytes(&b)
	copy(a[:], b)
}

func (c *codec) text(s *string) {
	b := []byte(*s)
	c.bytes(&b)
	*s = string(b)
}

// bytes gives no bytes as nil; what it reads is part of data.
func (c *codec) bytes(b *[]byte) {
	length := uint64(len(*b))
	c.number(&length)
	switch {
	case !c.reading:
		c.data = append(c.data, *b...)
	case length > uint64(len(c.data)):
		c.data, c.err = nil, errCut
	case length == 0:
		*b = nil
	default:
		*b, c.data = c.data[:length:length], c.data[length:]
	}
}
