package engine

import (
	"github.com/rs/zerolog"

	"turnstile/netpoll"
	"turnstile/proto"
)

// reportOpened counts and logs an upgrade.
func (c *Conn) reportOpened(requestID []byte) {
	w := c.worker
	w.upgraded++
	w.metrics.Active.Add(1)
	c.countHandshake(handshakeUpgraded, nil)
	e := c.event(w.engine.config.Log.Info())
	if len(requestID) > 0 {
		e = e.Bytes("request_id", fromClient(requestID))
	}
	e.Msg("websocket_connected")
}

// longestFromClient is how many bytes a field of the log has at the most whose text a
// client has chosen: a request may be 8 KiB long, and a client may send many.
const longestFromClient = 200

// fromClient is what the log shows of a text that a client has chosen.
func fromClient(text []byte) []byte { return text[:min(len(text), longestFromClient)] }

// reportClosed counts and logs the end of an upgraded connection.
func (c *Conn) reportClosed(reason CloseReason) {
	w := c.worker
	w.metrics.Active.Add(-1)
	w.metrics.Closes[reason].Inc()
	lived := netpoll.Monotonic() - c.opened
	w.engine.config.Metrics.Duration.Update(lived.Seconds())
	c.event(w.engine.config.Log.Info()).
		Uint16("close_code", uint16(c.loggedCode(reason))).
		Stringer("reason", reason).
		Int64("duration_ms", lived.Milliseconds()).
		Msg("websocket_disconnected")
	w.leave()
}

// leave counts one upgraded connection less.
func (w *worker) leave() {
	w.upgraded--
	if w.upgraded == 0 && w.onEmpty != nil {
		w.onEmpty()
		w.onEmpty = nil
	}
}

func (c *Conn) loggedCode(reason CloseReason) proto.StatusCode {
	switch {
	case c.code != 0:
		return c.code
	case reason == closePeer:
		return statusNone
	}
	return statusAbnormal
}

// event adds the connection's session and address to a log line.
func (c *Conn) event(e *zerolog.Event) *zerolog.Event {
	if !e.Enabled() {
		return e
	}
	w := c.worker
	if c.session.Held() {
		id := c.session.ID().Text()
		w.text = append(w.text[:0], id[:]...)
		e = e.Bytes("session_id", w.text).Uint64("message_count", c.session.Committed())
	}
	if ip := c.clientIP(); ip.IsValid() {
		w.text = ip.AppendTo(w.text[:0])
		e = e.Bytes("client_ip", w.text)
	}
	return e
}

// countHandshake counts the result of a request to upgrade. It logs a refusal with the
// answer that the client gets, nil if it gets none.
func (c *Conn) countHandshake(result handshakeResult, answer *proto.Refusal) {
	c.worker.metrics.Handshakes[result].Inc()
	outcome := handshakeOutcomes[result]
	if answer == nil && !outcome.isError {
		return
	}
	e := c.event(c.worker.engine.config.Log.Debug()).Str("reason", outcome.name)
	if answer != nil {
		e = e.Int("status", answer.Status).Str("answer", answer.Text)
	}
	e.Msg("websocket_refused")
}

// keepRequestID keeps the request ID for the log, while the request waits for its
// session.
func (w *worker) keepRequestID(c *Conn, id []byte) {
	if len(id) > 0 {
		w.requestIDs[c] = string(fromClient(id))
	}
}

func (w *worker) takeRequestID(c *Conn) []byte {
	id, ok := w.requestIDs[c]
	if !ok {
		return nil
	}
	delete(w.requestIDs, c)
	return []byte(id)
}
