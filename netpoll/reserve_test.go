package netpoll

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

const reserveHost = "127.0.0.75"

func reservePort(t *testing.T) (addr string, release func()) {
	t.Helper()
	addr, release, err := ReservePort(reserveHost)
	if err != nil {
		t.Fatal(err)
	}
	return addr, release
}

// TestReservedPort: refused, then listened on, twice, and refused again.
func TestReservedPort(t *testing.T) {
	addr, release := reservePort(t)
	defer release()
	testReservedPort(t, addr)
}

func TestReservedPortIPv6(t *testing.T) {
	addr, release, err := ReservePort("::1")
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Skip("no IPv6 here: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	testReservedPort(t, addr)
}

func testReservedPort(t *testing.T, addr string) {
	t.Helper()
	for range 2 {
		if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a connection while nobody listens: %v", err)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatalf("the program that it is kept for cannot listen: %v", err)
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
	}
}

// TestReservedPortIsGivenOnce: to whoever asks, in whichever way. Closing a
// listener and using its port later fails here within some hundred rounds.
func TestReservedPortIsGivenOnce(t *testing.T) {
	given := map[string]bool{}
	give := func(addr string) {
		if given[addr] {
			t.Fatalf("%s is given out twice, of %d", addr, len(given))
		}
		given[addr] = true
	}
	for range 1000 {
		addr, release := reservePort(t)
		defer release()
		give(addr)
		l, err := net.Listen("tcp", reserveHost+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		give(l.Addr().String())
	}
}

func TestReservePortOfNoAddress(t *testing.T) {
	for _, host := range []string{"", "localhost", "[::1]", "127.0.0.1:80"} {
		if addr, _, err := ReservePort(host); err == nil {
			t.Errorf("%q: reserved %s", host, addr)
		}
	}
}
