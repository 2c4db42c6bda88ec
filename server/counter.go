package main

import (
	"bytes"
	"math/rand/v2"
	"time"

	"turnstile/proto"
	"turnstile/server/engine"
	"turnstile/server/session"
)

// counter counts the messages of each session.
type counter struct {
	drainTimeout time.Duration // clients of the second version are asked to come back within it
}

// OnRequest implements engine.Handler: the session of the query, or a new one.
func (h *counter) OnRequest(_ *engine.Conn, r *proto.Request) engine.Wish {
	text, asked := r.QueryValue("session_id")
	if !asked {
		return engine.NewSession
	}
	id, ok := session.ParseID(text)
	if !ok {
		return engine.BadSession
	}
	return engine.Resume(id)
}

// OnOpen implements engine.Handler: the first frame of the second version.
func (h *counter) OnOpen(c *engine.Conn, resumed bool, out []byte) []byte {
	if !speaksV2(c) {
		return out
	}
	id := c.SessionID().Text()
	return proto.AppendSession(out, id[:], c.Count(), resumed)
}

// OnAdopt implements engine.Handler.
func (h *counter) OnAdopt(*engine.Conn) {}

var goodbye = []byte("goodbye")

// OnMessage implements engine.Handler.
func (h *counter) OnMessage(c *engine.Conn, m proto.Message, out []byte) []byte {
	text := bytes.TrimSpace(m.Payload)
	switch {
	case m.Op != proto.OpText:
		c.Close(engine.CloseUnsupported, proto.StatusUnsupportedData, "only text messages are counted")
	case len(text) == 0:
		// does not count, and gets no answer
	case bytes.EqualFold(text, goodbye):
		c.Close(engine.CloseGoodbye, proto.StatusNormalClosure, "Normal closure")
		return proto.AppendGoodbye(out, c.Count())
	case c.IsLate():
		id := c.SessionID().Text()
		return proto.AppendShuttingDown(out, id[:])
	default:
		id := c.SessionID().Text()
		return proto.AppendCount(out, c.Add(), id[:], m.Payload)
	}
	return out
}

// OnHeartbeat implements engine.Handler.
func (h *counter) OnHeartbeat(_ *engine.Conn, out []byte) []byte {
	return proto.AppendHeartbeat(out, time.Now())
}

// OnDrain implements engine.Handler. Clients of the second version are told when
// to come back, each at a moment of its own.
func (h *counter) OnDrain(c *engine.Conn, out []byte) []byte {
	retryAfter := time.Duration(-1)
	if speaksV2(c) {
		retryAfter = rand.N(h.drainTimeout)
	}
	return proto.AppendShutdown(out, c.Count(), retryAfter)
}

// OnTakenOver implements engine.Handler.
func (h *counter) OnTakenOver(c *engine.Conn, out []byte) []byte {
	return proto.AppendTakenOver(out, c.Stored())
}

// OnClosed implements engine.Handler.
func (h *counter) OnClosed(*engine.Conn) {}

func speaksV2(c *engine.Conn) bool { return c.Subprotocol() == proto.Subprotocol }
