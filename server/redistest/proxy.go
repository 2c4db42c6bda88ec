package redistest

import (
	"bytes"
	"io"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
)

// A Proxy stands between a store and a redis-server, to lose and to delay what
// goes through it.
type Proxy struct {
	// URL is for -redis.
	URL string

	t testing.TB

	mu      sync.Mutex
	changed *sync.Cond
	mode    Mode
	target  string
	conns   []net.Conn
}

// A Mode is what a Proxy does with what it is given.
type Mode int

const (
	Pass            Mode = iota
	Swallow              // commands arrive, answers are lost
	SwallowScripts       // answers to scripts of sessions are lost, and all behind them
	DelayScripts         // answers to scripts of sessions wait, and all behind them
	Delay                // commands wait until the mode is another, even if their client has gone
	SwallowMessages      // what others have published is lost
)

// session is in the keys of sessions, and not in those of probes.
var session = regexp.MustCompile(`turnstile:\{[0-9a-f]{8}-`)

// StartProxy runs a proxy to s.
func StartProxy(t testing.TB, s *Server) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", Host+":0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, target: s.Addr, URL: "redis://" + l.Addr().String()}
	p.changed = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		l.Close()
		p.Set(Pass)
		p.Cut()
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.join(client)
		}
	}()
	return p
}

// Set changes the mode.
func (p *Proxy) Set(mode Mode) {
	p.mu.Lock()
	p.mode = mode
	p.mu.Unlock()
	p.changed.Broadcast()
}

// Redirect lets new connections go to s.
func (p *Proxy) Redirect(s *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = s.Addr
}

// Cut closes all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.Close()
	}
	p.conns = nil
}

func (p *Proxy) join(client net.Conn) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns = append(p.conns, client, server)
	p.mu.Unlock()
	var scripted atomic.Bool
	go p.copy(server, client, func(mode Mode, data []byte) (wait, drop bool) {
		if bytes.Contains(data, []byte("\r\neval")) && session.Match(data) {
			scripted.Store(true)
		}
		return mode == Delay, false
	})
	go p.copy(client, server, func(mode Mode, data []byte) (wait, drop bool) {
		drop = mode == Swallow || mode == SwallowScripts && scripted.Load() ||
			mode == SwallowMessages && bytes.Contains(data, []byte("\r\nmessage\r\n"))
		return mode == DelayScripts && scripted.Load(), drop
	})
}

// copy passes on what comes from one side, as rule says of the mode.
func (p *Proxy) copy(to, from net.Conn, rule func(Mode, []byte) (wait, drop bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		wait, drop := rule(p.mode, buf[:n])
		for wait {
			p.changed.Wait()
			wait, drop = rule(p.mode, buf[:n])
		}
		p.mu.Unlock()
		if !drop && n > 0 {
			to.Write(buf[:n])
		}
		if err != nil {
			if err == io.EOF {
				to.(*net.TCPConn).CloseWrite()
			} else {
				to.Close()
			}
			return
		}
	}
}
