package engine

import (
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

// This file ends a connection in order: the close frame, the wait for the client's, and
// what the client sends meanwhile.

const (
	// lingerTime is how long a client may take to close after everything was sent. No
	// byte that it sends prolongs it.
	lingerTime = 2 * time.Second
	// skipMost is how many bytes of a client the worker reads and drops at the most,
	// after its own close frame, or -max-message if that is more. It does not read what
	// comes behind them. So much can be on its way, in the buffers of both kernels and in
	// one long message: a client that writes all of that before it reads would get a RST
	// otherwise, and not the close frame.
	skipMost = 16 << 20
	// skipFlood is the same for a client that has sent too many messages or frames. It
	// costs a millisecond of CPU then, and not as much as it likes.
	skipFlood = 1 << 20
)

// fail ends the connection because the client broke the protocol.
func (c *Conn) fail(err *proto.Error) {
	reason := closeProtocol
	switch err {
	case proto.ErrNotUTF8, proto.ErrCloseReason:
		reason = closeNotUTF8
	case proto.ErrNotDeflate:
		reason = closeNotDeflate
	case proto.ErrTooBig:
		reason = closeTooBig
	}
	c.sendClose(reason, err.Code, err.Text)
}

// sendClose appends a close frame. The worker drops what the client sends after
// that. The connection closes once everything is sent and the client has closed too,
// or at the deadline for that.
func (c *Conn) sendClose(reason CloseReason, code proto.StatusCode, text string) {
	c.worker.out = proto.AppendClose(c.worker.out, code, text)
	c.code = code
	c.finish(reason)
}

// finish makes the connection close once everything is sent.
func (c *Conn) finish(reason CloseReason) {
	c.reason = reason
	c.state = stateClosing
	if c.input != nil {
		c.worker.unfinished.remove(c.input)
	}
	c.parsed = proto.Unfinished{} // it has the fragments of a message
	c.skip(c.takeSpill())
	c.dueAt = c.worker.loop.Now() + c.worker.engine.config.WriteTimeout
	c.schedule()
}

// linger is called after the last byte was sent. It waits for the client's close:
// closing at once could destroy the last bytes on their way, if bytes of the client are
// still unread (RFC 9112 §9.6). A client that has sent its close frame sends nothing more.
//
// A WebSocket's own side stays open meanwhile. A proxy that sees our end would close the
// client's socket, also while the client still sends, and the client would get a RST
// instead of the close frame.
func (c *Conn) linger() {
	upgraded := c.endpoint != nil
	if c.hasClosed() || !upgraded && netpoll.ShutdownWrite(int(c.fd)) != nil {
		c.close(c.reason)
		return
	}
	c.state = stateLingering
	c.dueAt = c.worker.loop.Now() + lingerTime
	c.schedule()
}

// hasClosed reports whether the client has nothing more to say.
func (c *Conn) hasClosed() bool {
	return c.eof || c.reason == closePeer || c.input != nil && c.input.closed
}

// endLinger closes a connection whose client had its time to close. If the loop is behind,
// the client's close may be in the socket and not read yet: to close over it would be a RST.
func (c *Conn) endLinger() {
	if c.isRead() {
		c.onReadable()
	}
	c.close(c.reason)
}

// skip drops p, which came after the server's last word was known. The client's close
// frame in it ends the connection, once everything is sent.
func (c *Conn) skip(p []byte) {
	if len(p) == 0 || c.state == stateClosed {
		return
	}
	in := c.needInput()
	in.spill = nil // p may be its memory
	in.skipped += len(p)
	in.closed = in.closed || c.endpoint != nil && in.skipper.Skip(p) // a refused request has no frames behind it
	if c.state == stateLingering && in.closed {
		c.close(c.reason)
	}
}

func (c *Conn) hasSkippedEnough() bool {
	most := skipMost
	if c.reason == closeRate {
		most = skipFlood
	}
	return c.input != nil && c.input.skipped >= max(most, c.worker.rules.MaxMessage)
}

// onReset is called when the socket has an error.
func (c *Conn) onReset() {
	if c.state == stateLingering { // that was the client's way to close
		c.close(c.reason)
		return
	}
	c.close(closeReset)
}
