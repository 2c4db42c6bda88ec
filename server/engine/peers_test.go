package engine

import (
	"net/netip"
	"testing"

	"turnstile/proto"
)

func TestClientOf(t *testing.T) {
	p := &peers{trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}
	f := func(realIP, want string, forwardedFor ...string) {
		t.Helper()
		r := &proto.Request{RealIP: []byte(realIP)}
		for _, line := range forwardedFor {
			r.ForwardedFor = append(r.ForwardedFor, []byte(line))
		}
		if got := p.clientOf(r, netip.MustParseAddr("10.0.0.1")); got.String() != want {
			t.Errorf("X-Forwarded-For %q, X-Real-IP %q: %s, want %s", forwardedFor, realIP, got, want)
		}
	}
	f("", "10.0.0.1")
	f("", "192.0.2.1", "192.0.2.1")
	f("", "192.0.2.1", "192.0.2.66, 192.0.2.1 , 10.1.1.1")
	f("192.0.2.9", "192.0.2.66", "192.0.2.66,10.2.2.2,10.1.1.1")
	f("", "10.2.2.2", "10.2.2.2")
	f("", "192.0.2.1", "::ffff:192.0.2.1")
	f("", "192.0.2.1", "192.0.2.1, ::ffff:10.1.1.1")
	f("", "2001:db8::1", "2001:db8::1")
	f("192.0.2.9", "192.0.2.9")
	f("nonsense", "10.0.0.1")

	// All lines are one list.
	f("", "192.0.2.1", "192.0.2.66", "192.0.2.1")
	f("", "192.0.2.1", "192.0.2.66, 192.0.2.1", "10.1.1.1, 10.2.2.2")
	f("", "10.2.2.2", "10.2.2.2", "10.1.1.1")

	// Nobody knows who stands before an element that is no address.
	f("", "10.1.1.1", "nonsense, 10.1.1.1")
	f("", "10.1.1.1", "192.0.2.1, unknown, 10.1.1.1")
	f("", "10.1.1.1", "192.0.2.1", "_hidden", "10.1.1.1")
	f("192.0.2.9", "10.0.0.1", "nonsense")
	f("", "10.0.0.1", "192.0.2.1, 0.0.0.0")

	// Elements that are empty are none.
	f("", "192.0.2.1", "192.0.2.1,, 10.1.1.1, ,", "", " , ")
	f("192.0.2.9", "192.0.2.9", "", ",")

	// Ports, brackets and quotes.
	f("", "192.0.2.1", "192.0.2.1:1234")
	f("", "192.0.2.1", `"192.0.2.1:1234"`)
	f("", "192.0.2.1", "192.0.2.66, 192.0.2.1:1234, 10.1.1.1:443")
	f("", "2001:db9::1", "[2001:db9::1]")
	f("", "2001:db9::1", `"[2001:db9::1]:1234", 10.1.1.1`)
	f("", "2001:db9::1", `"2001:db9::1"`)
	f("", "10.0.0.1", `"192.0.2.1`)
	f("", "10.0.0.1", "[2001:db9::1")
	f("[2001:db9::1]:443", "2001:db9::1")
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
