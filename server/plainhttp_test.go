package main

import (
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/server/admin"
)

// slowDialer connects clients whose kernel takes little, and makes the server's keep
// little: whoever writes to one has to wait until it reads.
func slowDialer(ip string) net.Dialer {
	return net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536)
		})
	}}
}

// dialSlowly connects a client of slowDialer's.
func (p *process) dialSlowly(ip string) *wire {
	p.t.Helper()
	dialer := slowDialer(ip)
	conn, err := dialer.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	p.t.Cleanup(func() { conn.Close() })
	return newWire(p.t, conn)
}

// takePlainPlaces asks for a long page from many addresses, and reads none, until no
// place for plain HTTP is left; it returns how many there were.
func (p *process) takePlainPlaces() (n int) {
	p.t.Helper()
	for p.takesPlainPlace(net.IPv4(127, 1, byte(n>>8), byte(n)).String()) == http.StatusOK {
		n++
	}
	return n
}

// takesPlainPlace is the status that a client gets which does not read its page.
func (p *process) takesPlainPlace(ip string) int {
	p.t.Helper()
	w := p.dialSlowly(ip)
	status := w.request("GET /uplot.js HTTP/1.1\r\nHost: x\r\n\r\n").StatusCode
	if status != http.StatusOK {
		w.conn.Close()
	}
	return status
}

// When clients that do not read have all places of plain HTTP, or others come in a
// burst, a probe is answered by what it means.
func TestProbesWhenPlacesAreTaken(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1m")
	check := bystander(p)
	if n := p.takePlainPlaces(); n != mostPlainHTTP {
		t.Errorf("%d places for plain HTTP, want %d", n, mostPlainHTTP)
	}
	wantAnswers(p, http.StatusSwitchingProtocols)
	if status, _, header := p.get("/"); status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("a page: %d, %v", status, header)
	}
	check()
}

func TestBurstOfProbes(t *testing.T) {
	p := startServer(t)
	const probes = 1000
	var asking sync.WaitGroup
	for range probes {
		conn := p.dial()
		asking.Go(func() {
			if response := newWire(t, conn).request("GET /healthz/ HTTP/1.1\r\nHost: x\r\n\r\n"); response.StatusCode != http.StatusOK {
				t.Errorf("one of %d gets %s", probes, response.Status)
			}
			conn.Close()
		})
	}
	asking.Wait()
}

// An address can take half of the places of plain HTTP at the most, and is charged for
// them.
func TestOneAddressTakesNotAllPlaces(t *testing.T) {
	f := func(want int, refusal int, flags ...string) {
		t.Helper()
		p := startServer(t, append(flags, "-handshake-timeout", "1m")...)
		n, status := 0, p.takesPlainPlace("127.0.0.5")
		for ; status == http.StatusOK; n++ {
			status = p.takesPlainPlace("127.0.0.5")
		}
		if status != refusal || n != want {
			t.Errorf("%q: place %d is refused with %d, want %d with %d", flags, n, status, want, refusal)
		}
		if status, _, _ := p.getOver(p.dialFrom("127.0.0.5"), "/healthz/"); status != http.StatusOK {
			t.Errorf("%q: a probe of this address: %d", flags, status)
		}
		if status, _, _ := p.get("/"); status != http.StatusOK {
			t.Errorf("%q: a page for another address: %d", flags, status)
		}
	}
	f(mostPlainHTTP/2, http.StatusServiceUnavailable)
	f(5, http.StatusTooManyRequests, "-max-connections-per-ip", "5")
}

// However many pages are asked for, few goroutines work on them at once; one that waits for
// its client leaves its turn to others.
func TestPagesTakeTurns(t *testing.T) {
	const pages = 20
	p := newPlainHTTP(admin.Config{}, pages, patience)
	var working atomic.Int64
	goOn := make(chan struct{})
	p.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		working.Add(1)
		<-goOn
		w.Write(make([]byte, 1<<20))
	})
	var clients []net.Conn
	for range pages {
		client, server := net.Pipe() // it takes nothing that is not read
		clients = append(clients, client)
		go io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		p.Serve(func() (net.Conn, error) { return server, nil })
	}
	const accepted = 1 // waits for its turn
	eventually(t, "all turns are taken", func() bool {
		return len(p.queue) <= pages-pageTurns-accepted && working.Load() >= pageTurns
	})
	if n := working.Load(); n > pageTurns {
		t.Errorf("%d goroutines work at once, want %d", n, pageTurns)
	}
	close(goOn)
	eventually(t, "all wait for their clients", func() bool { return working.Load() == pages })
	for _, client := range clients {
		if response, err := io.ReadAll(client); len(response) < 1<<20 {
			t.Errorf("%d bytes, %v", len(response), err)
		}
	}
	p.stop(t.Context())
	if n := len(p.turns); n != 0 {
		t.Errorf("%d turns are not given back", n)
	}
}
