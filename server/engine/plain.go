package engine

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"turnstile/netpoll"
)

// A PlainServer serves the requests to all paths but the endpoints'. Its methods are
// called on loops, and must not wait.
type PlainServer interface {
	// AppendAnswer appends the whole answer to a request that is answered on the loop:
	// such an answer needs no place, and comes when all places are taken. It returns out
	// as it was if the request is for Serve.
	AppendAnswer(out []byte, method, path string) []byte
	// Serve serves the one request on a connection, and closes that. It calls open, on
	// another goroutine, to get the connection. No more than Config.PlainPlaces are there
	// at once.
	Serve(open func() (net.Conn, error))
}

// A plainPlaces shares out the places of plain HTTP. It is safe for concurrent use.
type plainPlaces struct {
	mu   sync.Mutex
	free int    // Guarded by mu.
	of   census // Guarded by mu.
}

func newPlainPlaces(n int) *plainPlaces {
	return &plainPlaces{free: n, of: make(census)}
}

// take takes a place for a client; giveBack undoes it. A client gets no more places than
// are free: one alone gets half, and one that has none gets the last. A client without
// an address is the proxy at a unix socket, and may take all.
func (p *plainPlaces) take(client netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == 0 || client.IsValid() && p.of[block(client)] >= p.free {
		return false
	}
	p.free--
	if client.IsValid() {
		p.of[block(client)]++
	}
	return true
}

func (p *plainPlaces) giveBack(client netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	if client.IsValid() {
		p.of.remove(block(client))
	}
}

// answerAtOnce answers a request that needs no place, and reports whether it was one.
func (c *Conn) answerAtOnce(method, path string) bool {
	w := c.worker
	before := len(w.out)
	if w.out = w.engine.config.Plain.AppendAnswer(w.out, method, path); len(w.out) == before {
		return false
	}
	c.finish(closeGone)
	return true
}

// handOff gives the connection, and the bytes that were read from it, to the plain
// server. It counts for its address until that has closed it.
func (c *Conn) handOff(read []byte) {
	w, e, client := c.worker, c.worker.engine, c.clientIP()
	if !e.plain.take(client) {
		c.refuse(handshakeTooMany)
		return
	}
	conn := &plainConn{engine: e, client: client, charged: c.charged, read: slices.Clone(read)}
	c.charged = false // conn is, from now on
	c.state = stateClosed
	w.remove(c)
	e.config.Plain.Serve(func() (net.Conn, error) { return conn.open(int(c.fd)) })
}

// A plainConn is a connection that the plain server has. It reads the bytes that were read
// from it before: the whole request, which has no body and is the only one.
type plainConn struct {
	net.Conn
	read []byte

	engine  *Engine
	client  netip.Addr
	charged bool // client counts in the limit for each address
	once    sync.Once
}

// open gives the file descriptor to Go's own poller, which takes a dozen system calls.
func (c *plainConn) open(fd int) (_ net.Conn, err error) {
	if c.Conn, err = netpoll.NetConn(fd); err != nil {
		c.giveBack()
		return nil, err
	}
	return c, nil
}

// Read implements net.Conn. Its end saves net/http a goroutine that waits for the client
// to say more.
func (c *plainConn) Read(p []byte) (int, error) {
	if len(c.read) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.read)
	c.read = c.read[n:]
	return n, nil
}

// Close implements net.Conn. The place is free once the file descriptor is.
func (c *plainConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.giveBack)
	return err
}

func (c *plainConn) giveBack() {
	c.engine.plain.giveBack(c.client)
	if c.charged {
		c.engine.peers.release(c.client)
	}
}
