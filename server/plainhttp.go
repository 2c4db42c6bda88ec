package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"turnstile/server/admin"
)

// plainHTTP serves the requests that ask for no WebSocket: those of probes on the loop
// that has read them, the others with net/http. Each is the only one on its connection.
type plainHTTP struct {
	http   *http.Server
	probes func(out []byte, method, path string) []byte
	queue  chan func() (net.Conn, error)
	turns  chan struct{} // full while pageTurns goroutines work
	closed chan struct{}
}

// pageTurns is how many goroutines work on pages at once: beside the loops, Go has one
// processor for them. The others wait for their turn, or for their clients: hundreds would
// take the loops' processors, at the moment when their clients come, or go, together.
const pageTurns = 1

// newPlainHTTP makes the server of these pages. net/http has no more than places
// connections at once.
func newPlainHTTP(pages admin.Config, places int, timeout time.Duration) *plainHTTP {
	p := &plainHTTP{
		probes: admin.Probes(pages),
		queue:  make(chan func() (net.Conn, error), places), turns: make(chan struct{}, pageTurns), closed: make(chan struct{}),
	}
	p.http = &http.Server{
		Handler:      admin.Handler(pages),
		WriteTimeout: 2 * timeout,
		ErrorLog:     log.New(io.Discard, "", 0), // a client's failure is the client's
	}
	p.http.SetKeepAlivesEnabled(false)
	go p.http.Serve(p)
	return p
}

// AppendAnswer implements engine.PlainServer.
func (p *plainHTTP) AppendAnswer(out []byte, method, path string) []byte {
	return p.probes(out, method, path)
}

// Serve implements engine.PlainServer. The queue never makes it wait: it holds as
// many as there are places.
func (p *plainHTTP) Serve(open func() (net.Conn, error)) { p.queue <- open }

// stop lets the requests that run end, for as long as ctx allows.
func (p *plainHTTP) stop(ctx context.Context) {
	if p.http.Shutdown(ctx) != nil {
		p.http.Close()
	}
}

// Accept implements net.Listener. It returns when there is a turn for the connection.
func (p *plainHTTP) Accept() (net.Conn, error) {
	for {
		select {
		case open := <-p.queue:
			if conn, err := p.openInTurn(open); err == nil {
				return conn, nil
			}
		case <-p.closed:
			return nil, net.ErrClosed
		}
	}
}

func (p *plainHTTP) openInTurn(open func() (net.Conn, error)) (net.Conn, error) {
	c := &pageConn{turns: p.turns}
	c.takeTurn()
	var err error
	if c.Conn, err = open(); err != nil {
		c.giveTurnBack()
	}
	return c, err
}

// Close implements net.Listener.
func (p *plainHTTP) Close() error {
	close(p.closed)
	return nil
}

// Addr implements net.Listener.
func (p *plainHTTP) Addr() net.Addr { return &net.TCPAddr{} }

// A pageConn is a connection whose goroutine has a turn from Accept to Close, but not
// while it waits for the client.
type pageConn struct {
	net.Conn
	turns   chan struct{}
	hasTurn atomic.Bool
}

func (c *pageConn) takeTurn() {
	c.turns <- struct{}{}
	c.hasTurn.Store(true)
}

func (c *pageConn) giveTurnBack() {
	if c.hasTurn.CompareAndSwap(true, false) {
		<-c.turns
	}
}

// Write implements net.Conn.
func (c *pageConn) Write(p []byte) (int, error) {
	c.giveTurnBack()
	defer c.takeTurn()
	return c.Conn.Write(p)
}

// Close implements net.Conn. The goroutine's own call comes last, and gives back what it
// has taken since another one's.
func (c *pageConn) Close() error {
	defer c.giveTurnBack()
	return c.Conn.Close()
}
