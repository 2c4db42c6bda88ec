package session

import (
	"io"
	"net"

	"turnstile/netpoll"
)

// A laneConn is a connection of go-redis that a loop takes over once go-redis has logged in.
type laneConn struct {
	net.Conn // the socket, or TLS over it
	socket   *socket
	kept     bool
}

// Close leaves a connection that is kept.
func (c *laneConn) Close() error {
	if c.kept {
		return nil
	}
	return c.Conn.Close()
}

// keep takes the connection from go-redis and from Go's poller. What is written to it from
// now on waits in memory until the socket takes it, and a read that would wait ends with
// errWouldBlock.
func (c *laneConn) keep() error {
	c.kept = true
	fd, err := netpoll.TakeFD(c.socket.Conn)
	c.socket.fd = fd
	return err
}

// A socket is the lowest part of a laneConn.
type socket struct {
	net.Conn        // while Go's poller has it
	fd       int    // from then on, else -1
	out      []byte // what the kernel did not take yet
}

// errWouldBlock is a temporary error: TLS reads on after it.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read yet" }
func (wouldBlock) Timeout() bool   { return false }
func (wouldBlock) Temporary() bool { return true }

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	if s.fd < 0 {
		return s.Conn.Read(p)
	}
	n, err := netpoll.Read(s.fd, p)
	switch {
	case err == netpoll.ErrAgain:
		return 0, errWouldBlock
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (s *socket) Write(p []byte) (int, error) {
	if s.fd < 0 {
		return s.Conn.Write(p)
	}
	sent := 0
	if !s.hasMore() {
		n, err := netpoll.Write(s.fd, p)
		if err != nil && err != netpoll.ErrAgain {
			return 0, err
		}
		sent = n
	}
	s.out = append(s.out, p[sent:]...)
	return len(p), nil
}

// hasMore reports whether something waits until the kernel takes it.
func (s *socket) hasMore() bool { return len(s.out) > 0 }

// flush writes what waits.
func (s *socket) flush() error {
	n, err := netpoll.Write(s.fd, s.out)
	if err != nil && err != netpoll.ErrAgain {
		return err
	}
	s.out = s.out[:copy(s.out, s.out[n:])]
	return nil
}

// close ends a socket that has left Go's poller.
func (s *socket) close() { netpoll.CloseFD(s.fd) }
