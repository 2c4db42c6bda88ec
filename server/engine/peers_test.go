package engine

import (
	"net/netip"
	"testing"

	"turnstile/proto"
)

func TestOriginAllowed(t *testing.T) {
	f := func(origin, host string, want bool, origins ...string) {
		t.Helper()
		if got := originAllowed([]byte(origin), []byte(host), origins); got != want {
			t.Errorf("origin %q at host %q with -origins %q: %v", origin, host, origins, got)
		}
	}
	f("", "example.com", true)
	f("http://example.com", "example.com", true)
	f("https://EXAMPLE.com", "example.COM", true)
	f("http://example.com:8000", "example.com:8000", true)
	f("http://example.com:8000", "example.com", false)
	f("http://example.com.evil", "example.com", false)
	f("http://evil.example", "example.com", false)
	f("null", "example.com", false)
	f("http://", "", false)
	f("http://[::1]:80", "[::1]:80", true)
	f("http://a.example:99", "b", true, "a.example")
	f("http://a.example:99", "b", true, "a.example:99")
	f("http://a.example:98", "b", false, "a.example:99")
	f("http://[::1]", "b", true, "[::1]")
	f("http://[::1]:99", "b", true, "[::1]")
	f("null", "b", true, "*")
}

func TestClientOf(t *testing.T) {
	p := &peers{trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}
	f := func(forwardedFor, realIP, want string) {
		t.Helper()
		r := &proto.Request{ForwardedFor: []byte(forwardedFor), RealIP: []byte(realIP)}
		if got := p.clientOf(r, netip.MustParseAddr("10.0.0.1")); got.String() != want {
			t.Errorf("X-Forwarded-For %q, X-Real-IP %q: %s, want %s", forwardedFor, realIP, got, want)
		}
	}
	f("", "", "10.0.0.1")
	f("192.0.2.1", "", "192.0.2.1")
	f("192.0.2.66, 192.0.2.1 , 10.1.1.1", "", "192.0.2.1")
	f("192.0.2.66,10.2.2.2,10.1.1.1", "192.0.2.9", "192.0.2.66")
	f("10.2.2.2", "", "10.2.2.2")
	f("::ffff:192.0.2.1", "", "192.0.2.1")
	f("2001:db8::1", "", "2001:db8::1")
	f("nonsense, 10.1.1.1", "", "10.1.1.1")
	f("nonsense", "192.0.2.9", "10.0.0.1")
	f("", "192.0.2.9", "192.0.2.9")
	f("", "nonsense", "10.0.0.1")
}

func TestPeersCountBlocks(t *testing.T) {
	p := &peers{limit: 2, count: make(map[netip.Prefix]int)}
	ip := netip.MustParseAddr
	f := func(address string, want bool) {
		t.Helper()
		if got := p.charge(ip(address)); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	f("192.0.2.1", true)
	f("192.0.2.1", true)
	f("192.0.2.1", false)
	f("192.0.2.2", true)
	f("2001:db8::1", true)
	f("2001:db8::2", true)
	f("2001:db8::3", false) // the same /64
	f("2001:db8:0:1::1", true)
	p.release(ip("192.0.2.1"))
	f("192.0.2.1", true)
	for _, address := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"} {
		p.release(ip(address))
	}
	if len(p.count) != 0 {
		t.Errorf("still counted: %v", p.count)
	}
}
