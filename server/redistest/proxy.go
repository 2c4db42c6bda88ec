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
	// URL is for -redis, Addr its host:port.
	URL, Addr string

	t testing.TB

	mu      sync.Mutex
	changed *sync.Cond
	mode    Mode
	target  string
	links   map[*link]bool
	limits  [2]int // of links, -1 for none
	cuts    int    // links that have come to their limit
	onHash  func() // if set, is called once before a session's script by its hash goes on
}

// A link is a connection through a proxy.
type link struct {
	ends [2]net.Conn // by Side
	left [2]int      // how many bytes may still come from that end, -1 for all

	ended int // of its ends
}

func (l *link) close() {
	for _, conn := range l.ends {
		conn.Close()
	}
}

// A Side is one of the two that talk through a proxy.
type Side int

const (
	FromStore Side = iota // commands
	FromRedis             // answers
)

var unlimited = [2]int{-1, -1}

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
	return StartProxyTo(t, s.Addr)
}

// StartProxyTo runs a proxy to the port at addr, which may speak TLS.
func StartProxyTo(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", Host+":0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		t: t, target: addr, Addr: l.Addr().String(), URL: "redis://" + l.Addr().String(),
		links: make(map[*link]bool), limits: unlimited,
	}
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
	for l := range p.links {
		l.close()
	}
}

// CutAfter cuts each connection, also each new one, as soon as n more bytes have come
// from a side: in the middle of a pipeline, or of its answers. It returns when some
// connections were cut.
func (p *Proxy) CutAfter(n int, from Side, some int) {
	p.t.Helper()
	limits := unlimited
	limits[from] = n
	enough := p.limit(limits) + some
	until(p.t, patience, "connections come to their limit", "", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.cuts >= enough
	})
	p.limit(unlimited)
}

// BeforeHash calls f, once, when all has gone on that stands before a session's script which is
// sent by its hash: in the middle of a pipeline. The rest goes on when f has returned.
func (p *Proxy) BeforeHash(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onHash = f
}

// scriptByHash is the begin of such a command.
var scriptByHash = regexp.MustCompile(`\*\d+\r\n\$7\r\nevalsha\r\n`)

// write passes on what has come, and calls what BeforeHash was given on its way.
func (p *Proxy) write(to net.Conn, data []byte) {
	if at, f := p.takeOnHash(data); f != nil {
		to.Write(data[:at])
		f()
		data = data[at:]
	}
	to.Write(data)
}

// takeOnHash says where in what has come its func is to be called, if it is.
func (p *Proxy) takeOnHash(data []byte) (at int, f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.onHash == nil {
		return 0, nil
	}
	found := scriptByHash.FindIndex(data)
	if found == nil || !session.Match(data[found[0]:]) {
		return 0, nil
	}
	f, p.onHash = p.onHash, nil
	return found[0], f
}

// limit sets how much may still come through each connection, and returns how many were
// cut so far.
func (p *Proxy) limit(limits [2]int) (cuts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = limits
	for l := range p.links {
		l.left = limits
	}
	return p.cuts
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
	l := &link{ends: [2]net.Conn{client, server}, left: p.limits}
	p.links[l] = true
	p.mu.Unlock()
	var scripted atomic.Bool
	go p.copy(l, FromStore, func(mode Mode, data []byte) (wait, drop bool) {
		if bytes.Contains(data, []byte("\r\neval")) && session.Match(data) {
			scripted.Store(true)
		}
		return mode == Delay, false
	})
	go p.copy(l, FromRedis, func(mode Mode, data []byte) (wait, drop bool) {
		drop = mode == Swallow || mode == SwallowScripts && scripted.Load() ||
			mode == SwallowMessages && bytes.Contains(data, []byte("\r\nmessage\r\n"))
		return mode == DelayScripts && scripted.Load(), drop
	})
}

// copy passes on what comes from one side, as rule says of the mode.
func (p *Proxy) copy(l *link, side Side, rule func(Mode, []byte) (wait, drop bool)) {
	from, to := l.ends[side], l.ends[1-side]
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		wait, drop := rule(p.mode, buf[:n])
		for wait {
			p.changed.Wait()
			wait, drop = rule(p.mode, buf[:n])
		}
		n, isCut := p.take(l, side, n)
		p.mu.Unlock()
		if !drop && n > 0 {
			p.write(to, buf[:n])
		}
		if isCut {
			l.close()
		}
		if err != nil {
			p.onEnd(l, to, err)
			return
		}
	}
}

// take says how many of n bytes that have come from a side go on, and whether the link
// is cut behind them. Under mu.
func (p *Proxy) take(l *link, side Side, n int) (most int, isCut bool) {
	left := &l.left[side]
	switch {
	case *left < 0:
		return n, false
	case n < *left:
		*left -= n
		return n, false
	}
	p.cuts++
	most, *left = *left, -1
	return most, true
}

// onEnd passes on the end of what comes from one side.
func (p *Proxy) onEnd(l *link, to net.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.ended++
	if err == io.EOF && l.ended < len(l.ends) {
		to.(*net.TCPConn).CloseWrite()
		return
	}
	l.close()
	delete(p.links, l)
}
