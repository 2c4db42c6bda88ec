package netpoll

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// ReservePort keeps a free TCP port of an address for a program that is to listen
// there, also again after it has ended: until release, nobody who asks for port 0
// is given it, and while nobody listens connections are refused. host is a number;
// addr is "host:port".
//
// The port is bound and not listened on. Whoever sets SO_REUSEADDR, as servers
// do, may bind and listen beside that: ip(7), socket(7).
func ReservePort(host string) (addr string, release func(), err error) {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", nil, fmt.Errorf("cannot reserve a port of %q: must be an IP address", host)
	}
	family, free := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()})
	if ip.Is4() {
		family, free = unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("cannot reserve a port of %s: %w", host, err)
	}
	port, err := bindReusably(fd, free)
	if err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("cannot reserve a port of %s: %w", host, err)
	}
	return net.JoinHostPort(host, fmt.Sprint(port)), sync.OnceFunc(func() { unix.Close(fd) }), nil
}

// bindReusably binds a socket to an address, and returns the port that it got.
func bindReusably(fd int, addr unix.Sockaddr) (port int, err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, addr); err != nil {
		return 0, err
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	if v4, ok := bound.(*unix.SockaddrInet4); ok {
		return v4.Port, nil
	}
	return bound.(*unix.SockaddrInet6).Port, nil
}
