package main

import (
	"bytes"
	"math/rand/v2"
	"time"

	"turnstile/proto"
	"turnstile/server/session"
)

// counter counts the messages of each session.
type counter struct {
	store session.Store
}

var goodbye = []byte("goodbye")

func (h *counter) onOpen(c *Conn, r *proto.Request) handshakeResult {
	c.v2 = r.Protocol == proto.Subprotocol
	var resumed bool
	var err error
	if text, asked := r.QueryValue("session_id"); asked {
		id, ok := session.ParseID(text)
		if !ok {
			return handshakeBadSession
		}
		resumed, err = h.store.Claim(&c.session, id, c)
	} else {
		err = h.store.Mint(&c.session, c)
	}
	switch err {
	case nil:
		c.greet(resumed)
		return handshakeUpgraded
	case session.ErrPending:
		return handshakePending
	case session.ErrFull:
		return handshakeStoreFull
	}
	return handshakeStoreUnavailable
}

// greet is the first frame of the second version.
func (c *Conn) greet(resumed bool) {
	if c.v2 {
		id := c.session.ID().Text()
		c.worker.out = proto.AppendSession(c.worker.out, id[:], c.session.Count, resumed)
	}
}

func (h *counter) onMessage(c *Conn, m proto.Message) {
	w := c.worker
	text := bytes.TrimSpace(m.Payload)
	switch {
	case m.Op != proto.OpText:
		c.sendClose(closeUnsupported, proto.StatusUnsupportedData, "only text messages are counted")
	case len(text) == 0:
		// does not count, and gets no answer
	case bytes.EqualFold(text, goodbye):
		w.out = proto.AppendGoodbye(w.out, c.session.Count)
		c.sendClose(closeGoodbye, proto.StatusNormalClosure, "Normal closure")
	case w.isLate(c):
		id := c.session.ID().Text()
		w.out = proto.AppendShuttingDown(w.out, id[:])
	default:
		if c.session.Count == c.session.Committed() {
			w.held = len(w.out)
		}
		c.session.Count++
		id := c.session.ID().Text()
		w.out = proto.AppendCount(w.out, c.session.Count, id[:], m.Payload)
	}
}

// commit stores what the held replies say. When another connection has claimed
// the session meanwhile, none of it counts, and the replies are not sent.
func (h *counter) commit(c *Conn) (pending bool) {
	w := c.worker
	if c.state == stateClaiming {
		w.held = 0
		return true
	}
	counted := c.session.Count - c.session.Committed()
	if counted == 0 {
		return false
	}
	switch h.store.Commit(&c.session) {
	case session.Pending:
		return true
	case session.Committed:
		w.metrics.Messages.Add(counted)
	default:
		w.out = w.out[:min(w.held, len(w.out))]
		c.takeBack()
		c.takenOver()
	}
	return false
}

func (h *counter) onHeartbeat(c *Conn) {
	c.worker.out = proto.AppendHeartbeat(c.worker.out, time.Now())
}

func (h *counter) onDrain(c *Conn) {
	retryAfter := time.Duration(-1)
	if c.v2 {
		retryAfter = rand.N(c.worker.config.DrainTimeout)
	}
	c.worker.out = proto.AppendShutdown(c.worker.out, c.session.Count, retryAfter)
}

func (h *counter) onClosed(c *Conn) { h.store.Release(&c.session) }
