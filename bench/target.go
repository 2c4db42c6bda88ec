package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A target is the server that is measured.
type target struct {
	url     string
	host    string // of the request's Host
	path    string
	address unix.Sockaddr
	family  int
	counted bool // it answers with counts, which are checked
}

// parseTarget reads ws://HOST:PORT/PATH or unix:SOCKET[:PATH].
func parseTarget(text string, counted bool) (*target, error) {
	t := &target{url: text, counted: counted}
	if rest, ok := strings.CutPrefix(text, "unix:"); ok {
		socket, path, found := strings.Cut(rest, ":")
		if !found {
			path = defaultPath
		}
		if socket == "" || !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("-url must be unix:SOCKET:PATH, with a path that begins with /, got %q", text)
		}
		t.host, t.path, t.family, t.address = "localhost", path, unix.AF_UNIX, &unix.SockaddrUnix{Name: socket}
		return t, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ws" || u.Host == "" {
		return nil, fmt.Errorf("-url must be ws://HOST:PORT/PATH or unix:SOCKET:PATH, got %q", text)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "80")
	}
	tcp, err := net.ResolveTCPAddr("tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("-url: %w", err)
	}
	t.host, t.path = u.Host, u.RequestURI()
	addr := tcp.AddrPort().Addr().Unmap()
	if addr.Is4() {
		t.family, t.address = unix.AF_INET, &unix.SockaddrInet4{Port: tcp.Port, Addr: addr.As4()}
	} else {
		t.family, t.address = unix.AF_INET6, &unix.SockaddrInet6{Port: tcp.Port, Addr: addr.As16()}
	}
	return t, nil
}

const defaultPath = "/ws/chat/"

// portsEach is how many connections to one server a local address is used for:
// Linux's default range of ports has 28,232.
const portsEach = 25_000

// loopbackAddresses is how many local addresses localAddress has, the usual one
// included.
const loopbackAddresses = 256

// mostClients is how many connections to the target this machine has ports for.
func (t *target) mostClients() int {
	switch to := t.address.(type) {
	case *unix.SockaddrUnix:
		return math.MaxInt
	case *unix.SockaddrInet4:
		if netip.AddrFrom4(to.Addr).IsLoopback() {
			return loopbackAddresses * portsEach
		}
	}
	return localPorts()
}

// localPorts is how many ports the kernel gives to those who do not ask for one.
func localPorts() int {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var low, high int
	if n, _ := fmt.Sscan(string(data), &low, &high); err != nil || n != 2 {
		return 1 << 16
	}
	return high - low + 1
}

// dial begins to connect, without waiting. To a server on this machine, each
// portsEach clients come from another loopback address, so that ports do not
// run out.
func (t *target) dial(index int) (fd int, err error) {
	fd, err = unix.Socket(t.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if t.family != unix.AF_UNIX {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if from, ok := t.localAddress(index); ok {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(fd, from); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	if err := unix.Connect(fd, t.sockaddr()); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sockaddr is a copy of the address: a call writes to what it is given, and the
// loops must not share it.
func (t *target) sockaddr() unix.Sockaddr {
	switch a := t.address.(type) {
	case *unix.SockaddrInet4:
		return &unix.SockaddrInet4{Port: a.Port, Addr: a.Addr}
	case *unix.SockaddrInet6:
		return &unix.SockaddrInet6{Port: a.Port, Addr: a.Addr}
	}
	return &unix.SockaddrUnix{Name: t.address.(*unix.SockaddrUnix).Name}
}

func (t *target) localAddress(index int) (unix.Sockaddr, bool) {
	to, ok := t.address.(*unix.SockaddrInet4)
	if !ok || !netip.AddrFrom4(to.Addr).IsLoopback() || index < portsEach {
		return nil, false
	}
	return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(index / portsEach)}}, true
}
