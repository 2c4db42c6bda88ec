package engine

import (
	"bytes"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"turnstile/proto"
)

// A peers knows which proxies are believed, and how many connections each client
// address has. It is safe for concurrent use; it is touched when a connection
// opens and closes, never by a message.
type peers struct {
	trusted []netip.Prefix
	limit   int // connections for each address, 0 is no limit

	mu    sync.Mutex
	count census // Guarded by mu.
}

func newPeers(trusted []netip.Prefix, limit int) *peers {
	return &peers{trusted: trusted, limit: limit, count: make(census)}
}

// trusts reports whether a peer is a proxy that may name its client. The zero Addr is
// the peer of a unix socket: the permissions of its folder say who may connect.
func (p *peers) trusts(ip netip.Addr) bool {
	if !ip.IsValid() {
		return true
	}
	for _, prefix := range p.trusted {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// clientOf is the client that a trusted peer speaks for: the last address in the
// X-Forwarded-For headers, which are one list, that is not itself a trusted proxy; or
// X-Real-IP if they name nobody; or the peer.
func (p *peers) clientOf(r *proto.Request, peer netip.Addr) netip.Addr {
	named := false
	for _, line := range slices.Backward(r.ForwardedFor) {
		for hop := range lastToFirst(line) {
			ip, err := parseAddr(hop)
			if err != nil {
				return peer // addresses before it cannot be believed
			}
			if peer, named = ip, true; !p.trusts(ip) {
				return ip
			}
		}
	}
	if ip, err := parseAddr(r.RealIP); err == nil && !named {
		return ip
	}
	return peer
}

// lastToFirst are the elements of a comma-separated list that are not empty.
func lastToFirst(list []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for end := len(list); end >= 0; {
			start := bytes.LastIndexByte(list[:end], ',') + 1
			if element := bytes.Trim(list[start:end], " \t"); len(element) > 0 && !yield(element) {
				return
			}
			end = start - 1
		}
	}
}

var errUnspecified = errors.New("nobody's address")

// parseAddr reads an address, which may have a port, brackets and quotes.
func parseAddr(text []byte) (netip.Addr, error) {
	s := string(bytes.Trim(text, " \t"))
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	ip, err := netip.ParseAddr(s)
	if err != nil {
		ip, err = parseAddrPort(s)
	}
	if err == nil && ip.IsUnspecified() {
		err = errUnspecified
	}
	return ip.Unmap().WithZone(""), err
}

// parseAddrPort reads an address with a port, or an IPv6 address in brackets.
func parseAddrPort(s string) (netip.Addr, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		return netip.ParseAddr(strings.TrimSuffix(inner, "]"))
	}
	addrPort, err := netip.ParseAddrPort(s)
	return addrPort.Addr(), err
}

// charge counts a connection of ip. It reports false, and does not count, if that would
// be one too many. release undoes it.
func (p *peers) charge(ip netip.Addr) bool {
	if p.limit == 0 || !ip.IsValid() {
		return true
	}
	key := block(ip)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count[key] >= p.limit {
		return false
	}
	p.count[key]++
	return true
}

// readmit counts a connection of ip that was counted in another process, even
// beyond the limit.
func (p *peers) readmit(ip netip.Addr) {
	if p.limit == 0 || !ip.IsValid() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count[block(ip)]++
}

func (p *peers) release(ip netip.Addr) {
	if p.limit == 0 || !ip.IsValid() {
		return
	}
	key := block(ip)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count.remove(key)
}

// shrink gives up the memory that connections of the past have left.
func (p *peers) shrink() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count = maps.Collect(maps.All(p.count))
}

// A census is how many connections each client has. A client without any has no entry.
type census map[netip.Prefix]int

func (n census) remove(client netip.Prefix) {
	if n[client]--; n[client] == 0 {
		delete(n, client)
	}
}

// block is the addresses of one client: an IPv4 address, or the /64 that an IPv6 host
// picks its addresses from.
func block(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return prefix
}
