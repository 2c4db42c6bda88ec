package engine

import (
	"net"
	"slices"

	"turnstile/netpoll"
)

// A PlainServer serves the requests to all paths but the endpoints'. Its methods are
// called on loops, and must not wait.
type PlainServer interface {
	// Reserve takes a place for one request; false if all are taken.
	Reserve() bool
	// Serve serves the request at the start of conn in a reserved place, and
	// closes conn.
	Serve(conn net.Conn)
	// Unreserve gives back a reserved place that no Serve will use.
	Unreserve()
}

// handOff gives the connection, and the bytes that were read from it, to the plain
// server.
func (c *Conn) handOff(read []byte) {
	plain := c.worker.engine.config.Plain
	if !plain.Reserve() {
		c.refuse(handshakeTooMany)
		return
	}
	read = slices.Clone(read)
	c.state = stateClosed
	c.worker.remove(c)
	conn, err := netpoll.NetConn(int(c.fd))
	if err != nil {
		plain.Unreserve()
		return
	}
	plain.Serve(&rewound{conn, read})
}

// A rewound connection returns first the bytes that were read from it before.
type rewound struct {
	net.Conn
	read []byte
}

func (r *rewound) Read(p []byte) (int, error) {
	if len(r.read) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.read)
	r.read = r.read[n:]
	return n, nil
}
