package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"turnstile/netpoll"
)

// maxPlainHTTP bounds how many plain HTTP requests are served at once: each
// has a goroutine, which a WebSocket never has.
const maxPlainHTTP = 256

// plainHTTP serves the requests that ask for no WebSocket, with net/http. Each
// is the only one on its connection.
type plainHTTP struct {
	http   *http.Server
	queue  chan net.Conn
	closed chan struct{}
	active atomic.Int64
}

func newPlainHTTP(handler http.Handler, timeout time.Duration) *plainHTTP {
	p := &plainHTTP{queue: make(chan net.Conn, maxPlainHTTP), closed: make(chan struct{})}
	p.http = &http.Server{
		Handler:      handler,
		ReadTimeout:  timeout,
		WriteTimeout: 2 * timeout,
		ConnState:    p.onState,
		ErrorLog:     log.New(io.Discard, "", 0), // a client's failure is the client's
	}
	p.http.SetKeepAlivesEnabled(false)
	go p.http.Serve(p)
	return p
}

// handOff gives the connection, with what has been read of it, to net/http.
func (c *Conn) handOff(read []byte) {
	p := c.worker.server.plain
	if p.active.Add(1) > maxPlainHTTP {
		p.active.Add(-1)
		c.refuse(handshakeTooMany)
		return
	}
	read = slices.Clone(read)
	c.state = stateClosed
	c.worker.remove(c)
	conn, err := netpoll.NetConn(int(c.fd))
	if err != nil {
		p.active.Add(-1)
		return
	}
	p.queue <- &rewound{conn, read} // never waits: it holds as many as may be active
}

func (p *plainHTTP) onState(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		p.active.Add(-1)
	}
}

// stop lets the requests that run end, for as long as ctx allows.
func (p *plainHTTP) stop(ctx context.Context) {
	if p.http.Shutdown(ctx) != nil {
		p.http.Close()
	}
}

// Accept implements net.Listener.
func (p *plainHTTP) Accept() (net.Conn, error) {
	select {
	case conn := <-p.queue:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *plainHTTP) Close() error {
	close(p.closed)
	return nil
}

// Addr implements net.Listener.
func (p *plainHTTP) Addr() net.Addr { return &net.TCPAddr{} }

// A rewound connection gives first what has been read of it before.
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
