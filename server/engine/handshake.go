package engine

import (
	"net/http"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/session"
)

// A handshakeResult is how a request to upgrade ended: a label of the metrics and a
// word of the log.
type handshakeResult uint8

const (
	handshakeUpgraded handshakeResult = iota
	handshakeAbandoned
	handshakeTimeout
	handshakeBadRequest
	handshakeNotHTTP
	handshakeTLS
	handshakeBody
	handshakeTooLong
	handshakeBadOrigin
	handshakeBadSession
	handshakeDraining
	handshakeTooMany
	handshakeTooManyOfIP
	handshakeStoreFull
	handshakeStoreUnavailable
	handshakeResults // how many there are

	handshakePending = handshakeResults  // it waits for its session
	withinLimits     = handshakeUpgraded // of an arrival: no limit refuses it
)

// handshakeOutcomes are the labels, which of them count as an error, and the
// answers of those that the engine refuses.
var handshakeOutcomes = [handshakeResults]struct {
	name    string
	isError bool
	refusal *proto.Refusal
}{
	handshakeUpgraded:    {"upgraded", false, nil},
	handshakeAbandoned:   {"abandoned", false, nil},
	handshakeTimeout:     {"handshake_timeout", true, nil},
	handshakeBadRequest:  {"bad_request", true, nil},
	handshakeNotHTTP:     {"not_http", true, nil},
	handshakeTLS:         {"tls", true, nil},
	handshakeBody:        {"body", true, nil},
	handshakeTooLong:     {"header_too_long", true, nil},
	handshakeBadOrigin:   {"forbidden_origin", true, refusal(http.StatusForbidden, "origin not allowed: see -origins")},
	handshakeBadSession:  {"invalid_session_id", true, refusal(http.StatusBadRequest, invalidSession)},
	handshakeDraining:    {"draining", false, retryLater(http.StatusServiceUnavailable, "server is shutting down")},
	handshakeTooMany:     {"max_connections", true, retryLater(http.StatusServiceUnavailable, "too many connections")},
	handshakeTooManyOfIP: {"max_connections_per_ip", true, retryLater(http.StatusTooManyRequests, "too many connections from this address")},
	handshakeStoreFull:   {"store_full", true, retryLater(http.StatusServiceUnavailable, "too many sessions")},

	handshakeStoreUnavailable: {"store_unavailable", true, retryLater(http.StatusServiceUnavailable, "session store out of reach")},
}

const invalidSession = "invalid session_id: it must be the 36 characters of a UUID, " +
	"hexadecimal digits in groups of 8-4-4-4-12; leave it out to get a new one"

func refusal(status int, text string) *proto.Refusal {
	return &proto.Refusal{Status: status, Text: text}
}

// retryLater is a refusal that asks the client to try again in a second.
func retryLater(status int, text string) *proto.Refusal {
	return &proto.Refusal{Status: status, Header: "Retry-After: 1\r\n", Text: text}
}

// onRequest answers the request at the front of buf once it is complete; used is its
// length, 0 before that. The first seen bytes of buf were there at the last call.
func (c *Conn) onRequest(buf []byte, seen int) (used int) {
	w := c.worker
	r := &w.request
	defer r.Reset() // what it has is valid for as long as buf is
	used, refusal := r.Read(buf, seen)
	if refusal != nil {
		c.sendRefusal(resultOf(refusal), refusal)
		return 0
	}
	if used == 0 {
		return 0
	}
	e := w.endpointAt(r.Path)
	switch {
	case e == nil:
		return c.onPlainRequest(buf, used)
	case w.holdRequests:
		c.paused = true // the process that takes over answers it
		return 0
	}
	c.upgrade(e)
	return used
}

// resultOf is the result of a request that proto has refused.
func resultOf(refusal *proto.Refusal) handshakeResult {
	switch refusal {
	case proto.ErrTLS:
		return handshakeTLS
	case proto.ErrNotHTTP:
		return handshakeNotHTTP
	case proto.ErrBody:
		return handshakeBody
	case proto.ErrHeaderTooLong:
		return handshakeTooLong
	}
	return handshakeBadRequest
}

// onPlainRequest gives net/http the request at the front of buf, and all bytes behind
// it, unless the answer is short and made on the loop.
func (c *Conn) onPlainRequest(buf []byte, end int) (used int) {
	r := &c.worker.request
	switch {
	case c.answerAtOnce(string(r.Method), string(r.Path)):
		return end
	case c.beyond == handshakeTooManyOfIP || !c.chargeClient(r):
		c.refuse(handshakeTooManyOfIP)
		return end
	}
	c.handOff(buf[r.Skipped:])
	return len(buf)
}

// upgrade answers a request to an endpoint. Frames may follow at once.
func (c *Conn) upgrade(e *endpoint) {
	w := c.worker
	request, start := &w.request, len(w.out)
	out, refusal := w.upgrader.Upgrade(w.out, request)
	if refusal != nil {
		c.sendRefusal(handshakeBadRequest, refusal)
		return
	}
	w.out = out
	c.terms = termsOf(request.Protocol == proto.Subprotocol, request.Window)
	resumed, result := false, c.admit(request)
	if result == handshakeUpgraded {
		resumed, result = c.ask(e.handler.OnRequest(c, request))
	}
	switch result {
	case handshakeUpgraded:
		c.endpoint = e
		c.open(request.RequestID, resumed)
	case handshakePending:
		c.endpoint, c.state, c.paused = e, stateClaiming, true
		w.keepRequestID(c, request.RequestID)
	case handshakeAbandoned:
		w.out = out[:start]
		c.countHandshake(handshakeAbandoned, nil)
		c.close(closeGone)
	default:
		w.out = out[:start]
		c.refuse(result)
	}
}

// ask asks the store for the session that the application wants.
func (c *Conn) ask(wish Wish) (resumed bool, result handshakeResult) {
	store, err := c.worker.engine.config.Store, error(nil)
	switch wish.kind {
	case wishBadSession:
		return false, handshakeBadSession
	case wishMint:
		err = store.Mint(&c.session, c)
	case wishClaim:
		if netpoll.HasHungUp(int(c.fd)) {
			return false, handshakeAbandoned // whoever resumed the session meanwhile has come later
		}
		resumed, err = store.Claim(&c.session, wish.id, c)
	}
	switch err {
	case nil:
		return resumed, handshakeUpgraded
	case session.ErrPending:
		return false, handshakePending
	case session.ErrFull:
		return false, handshakeStoreFull
	}
	return false, handshakeStoreUnavailable
}

// open begins the exchange of frames.
func (c *Conn) open(requestID []byte, resumed bool) {
	w := c.worker
	c.state = stateOpen
	c.opened = netpoll.Monotonic()
	c.dueAt = w.loop.At(c.opened) + w.engine.config.Heartbeat
	c.schedule()
	c.reportOpened(requestID)
	c.answer(c.endpoint.handler.OnOpen(c, resumed, w.out))
}

// admit checks a request against the rules of all endpoints.
func (c *Conn) admit(r *proto.Request) handshakeResult {
	e := c.worker.engine
	switch {
	case c.worker.draining:
		return handshakeDraining
	case c.isBeyondLimit():
		return c.beyond
	case !originAllowed(r.Origin, r.Host, e.origins):
		e.config.Log.Debug().Bytes("origin", fromClient(r.Origin)).Bytes("host", fromClient(r.Host)).
			Strs("origins", e.config.Origins).Msg("origin_not_allowed")
		return handshakeBadOrigin
	}
	if !c.chargeClient(r) {
		return handshakeTooManyOfIP
	}
	return handshakeUpgraded
}

// chargeClient counts the connection for the client that a trusted peer speaks for, and
// reports false if that has too many. Others were counted at the accept.
func (c *Conn) chargeClient(r *proto.Request) bool {
	peers, peer := c.worker.engine.peers, c.clientIP()
	if !peers.trusts(peer) {
		return true
	}
	client := peers.clientOf(r, peer)
	c.ip = client.As16()
	c.charged = peers.charge(client)
	return c.charged
}

func (c *Conn) refuse(result handshakeResult) {
	c.sendRefusal(result, handshakeOutcomes[result].refusal)
}

func (c *Conn) sendRefusal(result handshakeResult, r *proto.Refusal) {
	w := c.worker
	w.out = proto.AppendRefusal(w.out, r, &w.request, w.date.now())
	c.countHandshake(result, r)
	c.finish(closeGone)
}
