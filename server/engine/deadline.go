package engine

import (
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

// idleHeartbeats is how many heartbeats, in tenths, may pass without a byte
// from the client. A live one answers each heartbeat's ping.
const idleHeartbeats = 25

// nextDeadline is when the connection's timer must expire next. A connection has one
// timer, and reading a message does not move it, so OnTimer may find that nothing is
// due yet.
func (c *Conn) nextDeadline() time.Duration {
	if c.state != stateOpen {
		return c.dueAt
	}
	next := min(c.dueAt, c.idleAt())
	if len(c.backlog.ready()) > 0 {
		next = min(next, c.backlog.deadline)
	}
	return next
}

func (c *Conn) idleAt() time.Duration {
	return c.lastRead + c.worker.engine.config.Heartbeat*idleHeartbeats/10
}

func (c *Conn) schedule() { c.worker.loop.Schedule(&c.timer, c.nextDeadline()) }

// OnTimer implements netpoll.Expirer.
func (c *Conn) OnTimer() {
	now := c.worker.loop.Now()
	switch {
	case now < c.nextDeadline():
		// something was read since the timer was set
	case c.state == stateHandshake:
		c.countHandshake(handshakeTimeout, nil)
		c.close(closeGone)
	case c.storing && c.state != stateOpen:
		c.dueAt = now + c.worker.engine.config.WriteTimeout // the store has a timeout of its own, and will answer
	case c.state == stateClosing:
		c.close(closeSlowConsumer)
	case c.state == stateLingering:
		c.endLinger()
	default:
		c.onDue(now)
	}
	c.flush()
	if c.state != stateClosed {
		c.schedule()
	}
}

// onDue does what is due on an open connection.
func (c *Conn) onDue(now time.Duration) {
	if !c.isRead() {
		c.lastRead = now // the client is not silent: the worker does not read it
	}
	if now >= c.idleAt() {
		// If the loop is behind, the client's bytes may be in the socket and not
		// read yet.
		c.onReadable()
		if c.state == stateOpen && now >= c.idleAt() {
			c.close(closeIdle)
		}
	}
	if c.state == stateOpen && len(c.backlog.ready()) > 0 && now >= c.backlog.deadline {
		c.close(closeSlowConsumer)
	}
	if c.state == stateOpen && now >= c.dueAt {
		c.heartbeat(now)
	}
}

// heartbeat sends the application's heartbeat and a ping in one write. Heartbeats are
// due at multiples of -heartbeat after the connection opened; missed ones are skipped.
func (c *Conn) heartbeat(now time.Duration) {
	every := c.worker.engine.config.Heartbeat
	c.dueAt += every * (1 + (now-c.dueAt)/every)
	if c.answer(c.endpoint.handler.OnHeartbeat(c, c.worker.out)) {
		return
	}
	c.worker.out = proto.AppendFrame(c.worker.out, proto.OpPing, nil)
	c.worker.metrics.Heartbeats.Inc()
}

var _ netpoll.Expirer = (*Conn)(nil)
