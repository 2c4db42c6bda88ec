package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"
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

// Reserve implements engine.PlainServer.
func (p *plainHTTP) Reserve() bool {
	if p.active.Add(1) > maxPlainHTTP {
		p.active.Add(-1)
		return false
	}
	return true
}

// Unreserve implements engine.PlainServer.
func (p *plainHTTP) Unreserve() { p.active.Add(-1) }

// Serve implements engine.PlainServer. The queue never makes it wait: it holds as
// many as there are places.
func (p *plainHTTP) Serve(conn net.Conn) { p.queue <- conn }

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
