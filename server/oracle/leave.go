package oracle

import (
	"io"
	"net"
	"time"

	"turnstile/proto"
)

// Leave asks addr for the session and hangs up after a while, without a look at the
// answer. It returns when the server has noticed, or has died: from then on, nothing
// that was asked for takes the session from anybody. The error says that nobody took
// the connection.
func (s *Session) Leave(addr string, after time.Duration) error {
	conn, err := net.DialTimeout("tcp", addr, dialTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(proto.AppendRequest(nil, "turnstile", s.ask().target, proto.Subprotocol)); err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(after))
	if _, err := io.Copy(io.Discard, conn); err == nil {
		return nil // the server was faster
	}
	s.awaitEnd(conn)
	return nil
}

// awaitEnd hangs up, and waits until the server does so too.
func (s *Session) awaitEnd(conn net.Conn) {
	conn.(*net.TCPConn).CloseWrite()
	conn.SetDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, conn)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		s.findings.violation("session %s: a server has not noticed within %v that a client has left during its claim", s.ID(), patience)
	}
}
