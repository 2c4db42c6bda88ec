package engine

import (
	"net/netip"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/session"
)

// A Conn is one client's socket, from its accept to its close. It belongs to
// one worker for ever; all its methods but Loop and OnTakenOver run on that
// worker's loop. Its memory is never reused, since a late event may still name it.
//
// Its fields are grouped by what they are about; the small ones come first, so that
// the struct has no holes: see TestSizeOfAConnection.
type Conn struct {
	// Fixed after newConn.
	worker *worker
	opened time.Duration // netpoll.Monotonic at the upgrade

	// Owned by the worker's loop.

	// Its place, and how it ends.
	fd      int32
	index   int32            // in worker.conns
	watched uint16           // the netpoll.Events that the loop watches for
	code    proto.StatusCode // of the close frame that was sent, or else received
	state   state
	reason  CloseReason
	leaving leaving // whether it is on its way to another process

	// The client, and what it asked for.
	ip      [16]byte        // see clientIP
	beyond  handshakeResult // why it will be refused; withinLimits if it will not
	charged bool            // ip counts in the limit for each address
	terms   terms           // what the upgrade has agreed on

	// What it waits for.
	eof     bool // the client has sent its last byte
	paused  bool // spill holds whole frames, which wait for the backlog or for the store
	starved bool // it is in worker.starved
	storing bool // a commit or a claim is under way
	dirty   bool // it is in worker.dirty

	sendsLong bool // its messages are long: see shortRead

	// The application, and its session.
	endpoint *endpoint // nil until the request is upgraded, or its session is asked for
	session  session.Lease

	// Bytes, from the client and to it.
	parsed  proto.Unfinished // see Conn.next
	input   *input
	backlog *backlog

	// Deadlines, on the loop's clock, which stands still while the process does.
	timer    netpoll.Timer
	lastRead time.Duration // when the client's last bytes were read
	dueAt    time.Duration // while it is open, the next heartbeat; before, the request; after, the client's close
	rates    *rates        // nil until something counts against -message-rate
}

// A state is where a connection stands. It only goes forward.
type state uint8

const (
	stateHandshake state = iota // the request is not all there
	stateClaiming               // the 101 waits for the session
	stateOpen                   // frames go both ways
	stateClosing                // the last bytes are on their way out, what comes in is dropped
	stateLingering              // all is sent, the client has to close; what comes in is dropped
	stateClosed                 // the fd is gone
)

// A CloseReason is why an upgraded connection ended: a label of the metrics
// and a word of the log.
type CloseReason uint8

const (
	closePeer CloseReason = iota
	closeGone
	closeReset
	CloseGoodbye
	closeShutdown
	closeTakenOver
	closeIdle
	closeSlowConsumer
	closeMessageTimeout
	closeMessageMemory
	closeProtocol
	closeNotUTF8
	closeNotDeflate
	closeTooBig
	CloseUnsupported
	closeRate
	closeStoreUnavailable
	closeReasons // how many there are
)

// closeReasonNames are the labels, and which of them count as an error.
var closeReasonNames = [closeReasons]struct {
	name    string
	isError bool
}{
	closePeer:         {"peer_closed", false},
	closeGone:         {"peer_gone", false},
	closeReset:        {"connection_reset", true},
	CloseGoodbye:      {"goodbye", false},
	closeShutdown:     {"server_shutdown", false},
	closeTakenOver:    {"session_taken_over", false},
	closeIdle:         {"idle_timeout", true},
	closeSlowConsumer: {"slow_consumer", true},

	closeMessageTimeout: {"message_timeout", true},
	closeMessageMemory:  {"message_memory", true},

	closeProtocol:    {"protocol_error", true},
	closeNotUTF8:     {"invalid_utf8", true},
	closeNotDeflate:  {"invalid_compression", true},
	closeTooBig:      {"message_too_big", true},
	CloseUnsupported: {"unsupported_data", true},
	closeRate:        {"rate_limited", true},

	closeStoreUnavailable: {"store_unavailable", true},
}

func (r CloseReason) String() string { return closeReasonNames[r].name }

// The codes that stand in the log for a close frame without a code, and for a
// close without a close frame (RFC 6455 §7.4.1).
const (
	statusNone     = proto.StatusCode(1005)
	statusAbnormal = proto.StatusCode(1006)
)

func newConn(w *worker, a arrival) *Conn {
	now := w.loop.Now()
	c := &Conn{
		worker: w, fd: int32(a.fd), lastRead: now,
		dueAt: now + w.engine.config.HandshakeTimeout,
		ip:    a.ip.As16(), beyond: a.beyond, charged: a.charged,
	}
	c.timer.Owner = c
	return c
}

// isBeyondLimit reports whether the connection came when a limit was reached.
func (c *Conn) isBeyondLimit() bool { return c.beyond != withinLimits }

// clientIP is the client's address, as far as it is known: zero behind a unix
// socket whose peer does not say. It is kept without its zone, in 16 bytes.
func (c *Conn) clientIP() netip.Addr {
	if c.ip == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(c.ip).Unmap()
}

// onEvent is called by the loop when the socket is ready. All answers are appended
// to the worker's out; the flush at the end is the one write.
func (c *Conn) onEvent(woken netpoll.Woken) {
	events := c.worker.loop.Awake(woken)
	if c.state == stateClosed || c.leaving == leavingAway {
		return // it was closed or frozen by an event of the same batch
	}
	began, before := c.worker.loop.Now(), c.session.Count
	if events&netpoll.Writable != 0 {
		c.onWritable()
	}
	switch {
	case events&^netpoll.Writable == 0 || c.state == stateClosed:
	case c.state == stateClaiming && events&netpoll.HungUp != 0:
		c.close(closeGone) // the claim ends with its client: a later one may have the session
	case netpoll.Events(c.watched)&netpoll.Readable != 0:
		c.onReadable()
	case events&netpoll.Failed != 0:
		c.onReset() // the loop would report it again and again
	}
	c.flush()
	c.finishDrain()
	if c.session.Count != before && !c.storing {
		c.worker.metrics.MessageLatency.Update((netpoll.Monotonic() - began).Seconds())
	}
}

// watch asks the loop for the events that the connection waits for.
func (c *Conn) watch() {
	var events netpoll.Events
	if !c.eof && c.leaving == leavingNot && c.wantsInput() {
		events |= netpoll.Readable
	}
	if len(c.backlog.ready()) > 0 {
		events |= netpoll.Writable
	}
	if c.state == stateClaiming && c.leaving == leavingNot {
		events |= netpoll.HungUp
	}
	if events == 0 && c.leaving == leavingNot && c.state == stateOpen && c.backlog == nil && !c.eof && !c.isWaiting() {
		c.worker.starve(c)
	}
	if c.state == stateClosed || events == netpoll.Events(c.watched) {
		return
	}
	c.watched = uint16(events)
	if err := c.worker.loop.Mod(int(c.fd), events); err != nil {
		c.close(closeReset)
	}
}

// wantsInput reports whether the worker has a use for the client's next bytes.
func (c *Conn) wantsInput() bool {
	if c.state >= stateClosing {
		return !c.hasSkippedEnough()
	}
	return !c.paused && !c.backedUp() && !c.isWaiting()
}

// isWaiting reports whether the client is not read because too much of others' messages is
// under way.
func (c *Conn) isWaiting() bool { return c.input != nil && c.input.isWaiting }

// close ends the connection now, and drops what is unsent. A second call does
// nothing. A connection ends otherwise only by handOff, to net/http, or by release, to
// another process.
func (c *Conn) close(reason CloseReason) {
	if c.state == stateClosed {
		return
	}
	before := c.state
	c.state = stateClosed
	c.leaveSession()
	switch {
	case before == stateClaiming:
		c.countHandshake(handshakeAbandoned, nil)
	case c.endpoint != nil:
		c.endpoint.handler.OnClosed(c)
		c.reportClosed(reason)
	}
	c.dropHeld()
	c.worker.relieveSoon()
	c.dispose()
}

// dispose frees everything that the connection has, its fd last.
func (c *Conn) dispose() {
	w := c.worker
	w.metrics.Backlog.Add(-int64(c.backlog.length()))
	c.backlog = w.free.sent(c.backlog, c.backlog.length())
	c.dropInput()
	c.parsed = proto.Unfinished{}
	w.remove(c)
	netpoll.CloseFD(int(c.fd))
}
