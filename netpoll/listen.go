package netpoll

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backlog is the length of the accept queue that is asked for; the kernel
// caps it at net.core.somaxconn.
const backlog = 65535

// A Listener is a listening socket: TCP, or unix if its address says so.
type Listener struct {
	// Fixed after Listen.
	FD    int
	Addr  string // as it can be dialled: "127.0.0.1:8000", "unix:/run/t.sock"
	Asked string // as it was asked for: ":8000"
	file  fileID // of a unix socket

	// Owned by the caller of Accept.
	Shared  bool                // another process may listen there too: Unlink leaves the file
	address unix.RawSockaddrAny // where the kernel writes addresses
}

// Listen opens a listening socket. The address is "host:port" (an empty host
// is every address of both families, port 0 a free port) or "unix:/path". The
// file of a unix socket gets mode 0666, since its folder is what guards it; one that
// nobody listens on any more is replaced.
func Listen(address string) (*Listener, error) {
	var l *Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		l, err = listenUnix(path)
	} else {
		l, err = listenTCP(address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w%s", address, err, advice(err))
	}
	l.Asked = address
	return l, nil
}

// AdoptListener makes a Listener of a listening socket of another process's,
// which had asked for this address.
func AdoptListener(fd int, asked string) (*Listener, error) {
	l := &Listener{FD: fd, Addr: asked, Asked: asked}
	if path, ok := strings.CutPrefix(asked, "unix:"); ok {
		l.file = fileAt(path)
		return l, nil
	}
	return l, l.readAddr()
}

// A fileID tells a file from another one that has taken its path: see inode(7).
type fileID struct{ device, inode uint64 }

// fileAt is the file at path, the zero fileID if there is none.
func fileAt(path string) fileID {
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) != nil {
		return fileID{}
	}
	return fileID{device: uint64(stat.Dev), inode: stat.Ino}
}

// readAddr asks the kernel for the address of a TCP socket.
func (l *Listener) readAddr() error {
	length := uint32(unsafe.Sizeof(l.address))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(l.FD), uintptr(unsafe.Pointer(&l.address)), uintptr(unsafe.Pointer(&length)))
	if errno != 0 {
		return errno
	}
	l.Addr = addrPort(&l.address).String()
	return nil
}

// advice is what an operator can do about a failed bind(2), where it is not
// plain.
func advice(err error) string {
	switch {
	case errors.Is(err, unix.EACCES):
		return ": ports below 1024 need CAP_NET_BIND_SERVICE, a socket's folder must be writable"
	case errors.Is(err, unix.EADDRINUSE):
		return ": end the program that listens there, or choose another address"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return ": it is no address of this machine"
	}
	return ""
}

// Close closes the socket; connections that wait to be accepted are reset.
func (l *Listener) Close() error { return unix.Close(l.FD) }

// Unlink removes the file of a unix socket, so that clients find nothing there
// rather than an end that nobody serves. A file that somebody else has put in its place
// stays.
func (l *Listener) Unlink() error {
	path, ok := strings.CutPrefix(l.Addr, "unix:")
	if !ok || l.Shared || fileAt(path) != l.file {
		return nil
	}
	return os.Remove(path)
}

func listenTCP(address string) (*Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	any := len(tcp.IP) == 0
	fd, err := listenOn(sockaddr(tcp), func(fd int) error { return setTCPOptions(fd, any) })
	if any && errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		tcp.IP = net.IPv4zero
		fd, err = listenOn(sockaddr(tcp), func(fd int) error { return setTCPOptions(fd, false) })
	}
	if err != nil {
		return nil, err
	}
	l := &Listener{FD: fd}
	if err := l.readAddr(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return l, nil
}

// setTCPOptions prepares a listening socket; what it accepts inherits
// TCP_NODELAY (replies are written whole: there is nothing to wait for).
func setTCPOptions(fd int, bothFamilies bool) error {
	if bothFamilies {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func listenUnix(path string) (*Listener, error) {
	address := &unix.SockaddrUnix{Name: path}
	none := func(int) error { return nil }
	fd, err := listenOn(address, none)
	if info, e := os.Lstat(path); e == nil && info.Mode().Type() != os.ModeSocket {
		return nil, errors.New("the path exists and is no socket")
	}
	if errors.Is(err, unix.EADDRINUSE) && abandoned(address) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		fd, err = listenOn(address, none)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Listener{FD: fd, Addr: "unix:" + path, file: fileAt(path)}, nil
}

// abandoned reports whether address is the file of a socket that nobody
// listens on. It does not wait: a full accept queue has somebody behind it.
func abandoned(address *unix.SockaddrUnix) bool {
	if info, err := os.Lstat(address.Name); err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return errors.Is(unix.Connect(fd, address), unix.ECONNREFUSED)
}

func listenOn(address unix.Sockaddr, prepare func(fd int) error) (int, error) {
	fd, err := unix.Socket(family(address), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = prepare(fd); err == nil {
		if err = unix.Bind(fd, address); err == nil {
			err = unix.Listen(fd, backlog)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func family(address unix.Sockaddr) int {
	switch address.(type) {
	case *unix.SockaddrUnix:
		return unix.AF_UNIX
	case *unix.SockaddrInet4:
		return unix.AF_INET
	default:
		return unix.AF_INET6
	}
}

func sockaddr(tcp *net.TCPAddr) unix.Sockaddr {
	if ip4 := tcp.IP.To4(); ip4 != nil {
		return &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(ip4)}
	}
	address := &unix.SockaddrInet6{Port: tcp.Port}
	copy(address.Addr[:], tcp.IP)
	if zone, err := net.InterfaceByName(tcp.Zone); err == nil {
		address.ZoneId = uint32(zone.Index)
	}
	return address
}

// Accept takes one connection off the queue: its fd, non-blocking and
// close-on-exec, and its peer, which is the zero AddrPort for a unix socket.
// The error is ErrAgain when nobody waits. It allocates nothing, and is not
// safe for concurrent use. See accept4(2).
func (l *Listener) Accept() (fd int, peer netip.AddrPort, err error) {
	for {
		length := uint32(unsafe.Sizeof(l.address))
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l.FD), uintptr(unsafe.Pointer(&l.address)),
			uintptr(unsafe.Pointer(&length)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			return int(n), addrPort(&l.address), nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return -1, netip.AddrPort{}, errno
		}
	}
}

func addrPort(address *unix.RawSockaddrAny) netip.AddrPort {
	switch address.Addr.Family {
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(address))
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), hostOrder(a.Port))
	case unix.AF_INET6:
		a := (*unix.RawSockaddrInet6)(unsafe.Pointer(address))
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), hostOrder(a.Port))
	}
	return netip.AddrPort{}
}

// hostOrder reads a port that the kernel wrote in network order.
func hostOrder(port uint16) uint16 {
	var network [2]byte
	binary.NativeEndian.PutUint16(network[:], port)
	return binary.BigEndian.Uint16(network[:])
}

// IsExhausted reports whether err says that the process or the machine has no
// more file descriptors or memory for sockets: a state that passes.
func IsExhausted(err error) bool {
	return err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM
}
