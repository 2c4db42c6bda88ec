package engine

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
)

const probeRequest = "GET /probe/ HTTP/1.1\r\nHost: x\r\n\r\n"

// wantAnswer reads until the end of the stream, and holds the beginning to what is
// wanted; "" is no answer.
func wantAnswer(t testing.TB, who string, fd int, want string) {
	t.Helper()
	var answer []byte
	for buf := make([]byte, 1024); ; {
		n, err := read(fd, buf)
		if err != nil {
			t.Errorf("%s: %v after %q", who, err, answer)
			return
		}
		if n == 0 {
			break
		}
		answer = append(answer, buf[:n]...)
	}
	if !strings.HasPrefix(string(answer), want) || want == "" && len(answer) > 0 {
		t.Errorf("%s gets %q, want %q", who, answer, want)
	}
}

// Beyond the limit the newest is always answered: the oldest goes, but with its answer if
// it has asked.
func TestOldestBeyondTheLimitGoes(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.MaxConnections, c.PlacesBeyondLimit = 1, 3 })
	h.connect("/count")
	var silent []int
	for range 3 {
		silent = append(silent, h.ask(""))
	}
	h.wantBeyondLimit(3)
	// While the acceptor stands still, a second request comes, and two more clients.
	h.engine.acceptor.loop.Call(func() {
		h.engine.acceptor.beyondLimit.conns[1].arrive(t, silent[1], []byte(probeRequest))
		silent = append(silent, h.ask(""), h.ask(""))
	})
	wantAnswer(t, "the oldest", silent[0], "")
	wantAnswer(t, "the second, which has asked", silent[1], "HTTP/1.1 200")
	wantAnswer(t, "a probe", h.ask(probeRequest), "HTTP/1.1 200")
	wantAnswer(t, "an upgrade", h.dial("/count"), "HTTP/1.1 503")
	for _, fd := range silent[2:] {
		unix.Close(fd)
	}
	h.wantBeyondLimit(0)
}

// wantBeyondLimit waits until so many sockets wait for a refusal.
func (h *harness) wantBeyondLimit(n int) {
	h.t.Helper()
	eventually(h.t, "the places beyond the limit", func() (ok bool) {
		b := h.engine.acceptor.beyondLimit
		b.worker.loop.Call(func() { ok = len(b.conns) == n && len(b.worker.conns) == n })
		return ok
	})
}

// Whose address has too many connections is refused its upgrade and its page, and
// answered its probe.
func TestBeyondTheLimitOfAnAddress(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.MaxConnectionsPerIP = 1 })
	h.connect("/count")
	wantAnswer(t, "an upgrade", h.dial("/count"), "HTTP/1.1 429")
	wantAnswer(t, "a page", h.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 429")
	wantAnswer(t, "a probe", h.ask(probeRequest), "HTTP/1.1 200")
}

// A connection counts for its address, and has its place, until the plain server has
// closed it.
func TestPlainConnectionsAreCharged(t *testing.T) {
	served := make(aPlain, 1)
	h := startEngine(t, func(c *Config) { c.MaxConnectionsPerIP, c.Plain, c.PlainPlaces = 1, served, 1 })
	for range 3 {
		h.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		conn := <-served
		wantAnswer(t, "another of the same address", h.dial("/count"), "HTTP/1.1 429")
		conn.Close()
		conn.Close() // a second time gives nothing back
	}
	h.engine.peers.mu.Lock()
	defer h.engine.peers.mu.Unlock()
	if len(h.engine.peers.count) > 0 || h.engine.plain.free != 1 {
		t.Errorf("left: %v, %d places", h.engine.peers.count, h.engine.plain.free)
	}
}

func TestPlacesOfPlainHTTP(t *testing.T) {
	a, b, proxy := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.Addr{}
	takeAll := func(p *plainPlaces, client netip.Addr) (n int) {
		for p.take(client) {
			n++
		}
		return n
	}
	p := newPlainPlaces(100)
	for _, f := range []struct {
		client netip.Addr
		want   int
	}{{a, 50}, {b, 25}, {netip.MustParseAddr("2001:db8::2"), 0}, {netip.MustParseAddr("192.0.2.2"), 13}, {proxy, 12}, {a, 0}} {
		if got := takeAll(p, f.client); got != f.want {
			t.Errorf("%v gets %d more places, want %d", f.client, got, f.want)
		}
	}
	for range 50 {
		p.giveBack(a)
	}
	if n := len(p.of); n != 2 || p.free != 50 {
		t.Errorf("%d clients have places, %d are free", n, p.free)
	}
}

// The worker beyond the limit ends with the others.
func TestCutBeyondTheLimit(t *testing.T) {
	h := startEngine(t, func(c *Config) { c.MaxConnections = 1 })
	h.connect("/count")
	fd := h.ask("")
	h.wantBeyondLimit(1)
	h.engine.Cut()
	if n, err := read(fd, make([]byte, 1)); n > 0 || err == netpoll.ErrAgain {
		t.Errorf("%d, %v after the end", n, err)
	}
}

// Behind a trusted proxy a page counts for the client that the proxy names.
func TestPageBehindAProxyIsCharged(t *testing.T) {
	served := make(aPlain, 1)
	h := startEngine(t, func(c *Config) {
		c.MaxConnectionsPerIP, c.Plain, c.TrustedProxies = 1, served, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	page := func(client string) string {
		return "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: " + client + "\r\n\r\n"
	}
	for range 3 {
		h.ask(page("192.0.2.1"))
		first := <-served
		wantAnswer(t, "a second page of the same client", h.ask(page("192.0.2.1")), "HTTP/1.1 429")
		h.ask(page("192.0.2.2"))
		(<-served).Close()
		first.Close()
	}
}
