package engine

import (
	"bytes"

	"turnstile/proto"
	"turnstile/server/session"
)

// A Handler is an application: what the messages of one endpoint mean. Each
// worker has its own, so its fields need no lock. Answers are appended to out,
// which is returned; the engine sends them, in one write, when what they say is
// stored: see Conn.Add. All methods run on the loop of the connection they are
// given, and must not wait.
//
// Embed Silent for what an application leaves out.
type Handler interface {
	// OnRequest says what a request wants, by its query and subprotocol. The
	// connection is not open yet, and may never be.
	OnRequest(c *Conn, r *proto.Request) Wish
	// OnOpen follows the upgrade, once the session is there that was wished for;
	// resumed says that it was known. First frames may be appended.
	OnOpen(c *Conn, resumed bool, out []byte) []byte
	// OnAdopt is told of an open connection that another process has handed over.
	OnAdopt(c *Conn)
	// OnMessage is given a whole text or binary message, valid until it
	// returns; text is UTF-8.
	OnMessage(c *Conn, m proto.Message, out []byte) []byte
	// OnHeartbeat may append what goes with the engine's ping.
	OnHeartbeat(c *Conn, out []byte) []byte
	// OnDrain may append a last word; the engine closes with 1001 behind it.
	OnDrain(c *Conn, out []byte) []byte
	// OnTakenOver may append a last word to who has lost its session; the engine
	// closes with 4001 behind it.
	OnTakenOver(c *Conn, out []byte) []byte
	// OnClosed is the end of a connection that OnOpen or OnAdopt was told of:
	// it is closed, or another process's.
	OnClosed(c *Conn)
}

// Silent is a Handler that takes every connection, needs no session and says
// nothing.
type Silent struct{}

func (Silent) OnRequest(*Conn, *proto.Request) Wish                  { return NoSession }
func (Silent) OnOpen(_ *Conn, _ bool, out []byte) []byte             { return out }
func (Silent) OnAdopt(*Conn)                                         {}
func (Silent) OnMessage(_ *Conn, _ proto.Message, out []byte) []byte { return out }
func (Silent) OnHeartbeat(_ *Conn, out []byte) []byte                { return out }
func (Silent) OnDrain(_ *Conn, out []byte) []byte                    { return out }
func (Silent) OnTakenOver(_ *Conn, out []byte) []byte                { return out }
func (Silent) OnClosed(*Conn)                                        {}

var _ Handler = Silent{}

// A Wish is what a Handler makes of a request.
type Wish struct {
	kind wishKind
	id   session.ID
}

type wishKind uint8

const (
	wishNothing wishKind = iota
	wishMint
	wishClaim
	wishBadSession
)

// The wishes that are always the same.
var (
	NoSession  = Wish{}                     // a connection
	NewSession = Wish{kind: wishMint}       // with a session of a random ID
	BadSession = Wish{kind: wishBadSession} // none: the session that is asked for cannot be, and the client gets 400
)

// Resume is the wish for a connection that holds the session.
func Resume(id session.ID) Wish { return Wish{kind: wishClaim, id: id} }

// An endpoint is an Endpoint with the Handler of one worker.
type endpoint struct {
	path    string
	handler Handler
}

func newEndpoints(all []Endpoint) (endpoints []*endpoint) {
	for _, e := range all {
		endpoints = append(endpoints, &endpoint{e.Path, e.New()})
	}
	return endpoints
}

// endpointAt is the endpoint at path, with or without its last slash; nil if
// there is none.
func (w *worker) endpointAt(path []byte) *endpoint {
	path = bytes.TrimSuffix(path, []byte("/"))
	for _, e := range w.endpoints {
		if string(path) == e.path {
			return e
		}
	}
	return nil
}

// What follows is for handlers.

// Subprotocol is what the client and the server have agreed on, "" if nothing.
func (c *Conn) Subprotocol() string {
	if c.v2 {
		return proto.Subprotocol
	}
	return ""
}

// SessionID is the session that the connection holds.
func (c *Conn) SessionID() session.ID { return c.session.ID() }

// Count is how many messages of the session have counted; those are in it that
// Add has counted and that are not stored yet.
func (c *Conn) Count() uint64 { return c.session.Count }

// Stored is how many of them are stored. What is not may yet be undone.
func (c *Conn) Stored() uint64 { return c.session.Committed() }

// Add counts one message of the session and returns its count. What is appended
// from this call of the handler on is sent when that is stored, and not at all if
// it cannot be. The connection must hold a session.
func (c *Conn) Add() uint64 {
	c.session.Count++
	return c.session.Count
}

// IsLate reports whether what the client sends now came after a drain had begun:
// it should not count any more.
func (c *Conn) IsLate() bool { return c.worker.isLate(c) }

// Close ends the connection behind what the running call of its handler appends;
// it is for that connection alone.
func (c *Conn) Close(reason CloseReason, code proto.StatusCode, text string) {
	c.worker.farewell = farewell{c, reason, code, text}
}

// Send sends a frame to a connection of the same worker other than the one whose
// handler runs. It reports false if the client takes its frames too slowly to be
// given more, or the connection is not open here.
func (c *Conn) Send(op proto.OpCode, payload []byte) bool {
	if c.state != stateOpen || c.leaving == leavingAway || c.backedUp() {
		return false
	}
	w := c.worker
	w.frame = proto.AppendFrame(w.frame[:0], op, payload)
	c.enqueue(w.frame)
	if len(w.dirty) == 0 {
		w.loop.Post(w.flushDirty)
	}
	if !c.dirty {
		c.dirty = true
		w.dirty = append(w.dirty, c)
	}
	return true
}

// A farewell is what Conn.Close asks for.
type farewell struct {
	conn   *Conn
	reason CloseReason
	code   proto.StatusCode
	text   string
}

// answer takes what a handler has appended, and closes if it has asked for that.
func (c *Conn) answer(out []byte) {
	w := c.worker
	w.out = out
	if f := w.farewell; f.conn != nil {
		w.farewell = farewell{}
		if f.conn != c {
			panic("BUG: a handler closes a connection that it was not called for")
		}
		c.sendClose(f.reason, f.code, f.text)
	}
}
