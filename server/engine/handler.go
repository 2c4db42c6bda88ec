package engine

import (
	"bytes"

	"turnstile/proto"
	"turnstile/server/session"
)

// A Handler is an application: it decides what the messages of one endpoint mean.
// Each worker has a Handler of its own, so its fields need no lock. A method appends
// answers to out and returns it; the engine sends them in one write, once the counts
// that they tell are stored: see Conn.Add. All methods run on the loop of their
// connection, and must not wait.
//
// Embed Silent to leave methods out.
type Handler interface {
	// OnRequest decides by a request's query and subprotocol which session its
	// connection gets. The connection is not open yet, and may never be.
	OnRequest(c *Conn, r *proto.Request) Wish
	// OnOpen is called after the upgrade, when the connection has its session;
	// resumed says that the store knew it. First frames may be appended.
	OnOpen(c *Conn, resumed bool, out []byte) []byte
	// OnAdopt is called for an open connection that another process has handed over.
	OnAdopt(c *Conn)
	// OnMessage is given a whole text or binary message, valid until it
	// returns; text is UTF-8.
	OnMessage(c *Conn, m proto.Message, out []byte) []byte
	// OnHeartbeat may append frames that are sent with the engine's ping.
	OnHeartbeat(c *Conn, out []byte) []byte
	// OnDrain may append last frames; the engine closes with 1001 behind them, or as
	// Conn.Close says.
	OnDrain(c *Conn, out []byte) []byte
	// OnTakenOver may append last frames to a client that has lost its session to
	// another connection; the engine closes with 4001 behind them, or as Conn.Close says.
	// It may be called twice, if the loss is found in two ways; the client gets one answer.
	OnTakenOver(c *Conn, out []byte) []byte
	// OnClosed is called when a connection has ended here after OnOpen or OnAdopt: it
	// is closed, or another process has it.
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

// A Wish is the session that a Handler wants for a request.
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
	NoSession  = Wish{}                     // a connection without a session
	NewSession = Wish{kind: wishMint}       // a session with a random ID
	BadSession = Wish{kind: wishBadSession} // no connection: the ID in the request is not valid, and the client gets 400
)

// Resume is the wish for the session with this ID.
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

// The methods below are for handlers.

// Subprotocol is the subprotocol that client and server have agreed on; "" is none.
func (c *Conn) Subprotocol() string {
	if c.terms.v2() {
		return proto.Subprotocol
	}
	return ""
}

// SessionID is the session of the connection, which must hold one.
func (c *Conn) SessionID() session.ID { return c.session.ID() }

// Count is how many messages of the session have counted, those included that are not
// stored yet.
func (c *Conn) Count() uint64 { return c.session.Count }

// Stored is how many of them are stored. The others may still be undone.
func (c *Conn) Stored() uint64 { return c.session.Committed() }

// Add counts one message of the session and returns the new count. Answers that the
// handler appends in this call or later are sent when the count is stored, and dropped
// if it cannot be stored. The connection must hold a session.
func (c *Conn) Add() uint64 {
	if w := c.worker; c.session.Count == c.session.Committed() {
		w.heldFrom = len(w.out) // what the running call appends is not in it yet
	}
	c.session.Count++
	return c.session.Count
}

// IsLate reports whether the message came after a drain had begun: then it should not
// count.
func (c *Conn) IsLate() bool { return c.worker.isLate(c) }

// Close ends the connection behind the frames that its handler appends in the running
// call. A handler may close only the connection that it was called for, and not from
// OnRequest or OnClosed.
func (c *Conn) Close(reason CloseReason, code proto.StatusCode, text string) {
	if c.state < stateOpen || c.state == stateClosed {
		panic("BUG: a handler closes a connection that is not open")
	}
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
	w.frame = c.compress(proto.AppendFrame(w.frame[:0], op, payload), 0)
	c.enqueue(w.frame)
	if cap(w.frame) > maxOut {
		w.frame = nil // it may be the backlog's now
	}
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

// answer takes the frames that a handler has appended to worker.out, and closes the
// connection if the handler has asked for that, which it reports.
func (c *Conn) answer(out []byte) (closed bool) {
	w := c.worker
	w.out = c.compress(out, len(w.out))
	f := w.farewell
	if f.conn == nil {
		return false
	}
	w.farewell = farewell{}
	if f.conn != c {
		panic("BUG: a handler closes a connection that it was not called for")
	}
	c.sendClose(f.reason, f.code, f.text)
	return true
}
