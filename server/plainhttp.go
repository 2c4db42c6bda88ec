package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"turnstile/server/admin"
)

// plainHTTP serves the requests that ask for no WebSocket: those of probes on the loop
// that has read them, the others with net/http. Each is the only one on its connection.
type plainHTTP struct {
	http   *http.Server
	probes func(out []byte, method, path string) []byte
	queue  chan net.Conn
	closed chan struct{}
}

// newPlainHTTP makes the server of these pages. net/http has no more than places
// connections at once.
func newPlainHTTP(pages admin.Config, places int, timeout time.Duration) *plainHTTP {
	p := &plainHTTP{probes: admin.Probes(pages), queue: make(chan net.Conn, places), closed: make(chan struct{})}
	p.http = &http.Server{
		Handler:      admin.Handler(pages),
		ReadTimeout:  timeout,
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
func (p *plainHTTP) Serve(conn net.Conn) { p.queue <- conn }

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
