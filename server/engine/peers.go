package engine

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
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
	count map[netip.Prefix]int // Guarded by mu.
}

func newPeers(trusted []netip.Prefix, limit int) *peers {
	return &peers{trusted: trusted, limit: limit, count: make(map[netip.Prefix]int)}
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

// clientOf is the client that a trusted peer speaks for: the last address in
// X-Forwarded-For that is not itself a trusted proxy, or X-Real-IP, or the peer.
func (p *peers) clientOf(r *proto.Request, peer netip.Addr) netip.Addr {
	for rest := r.ForwardedFor; len(rest) > 0; {
		hop := rest
		if i := bytes.LastIndexByte(rest, ','); i >= 0 {
			rest, hop = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		ip, err := parseAddr(hop)
		if err != nil {
			break // addresses before it cannot be believed
		}
		peer = ip
		if !p.trusts(ip) {
			return ip
		}
	}
	if ip, err := parseAddr(r.RealIP); err == nil && len(r.ForwardedFor) == 0 {
		return ip
	}
	return peer
}

var errUnspecified = errors.New("nobody's address")

func parseAddr(text []byte) (netip.Addr, error) {
	ip, err := netip.ParseAddr(string(bytes.TrimSpace(text)))
	if err == nil && ip.IsUnspecified() {
		err = errUnspecified
	}
	return ip.Unmap().WithZone(""), err
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
	if p.count[key]--; p.count[key] == 0 {
		delete(p.count, key)
	}
}

// shrink gives up the memory that connections of the past have left.
func (p *peers) shrink() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count = maps.Collect(maps.All(p.count))
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
