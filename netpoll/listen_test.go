package netpoll

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listen returns a Listener that is closed when the test ends.
func listen(t testing.TB, address string) *Listener {
	t.Helper()
	l, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects to l as its Addr says.
func dial(t testing.TB, l *Listener) net.Conn {
	t.Helper()
	network, address := "tcp", l.Addr
	if path, ok := strings.CutPrefix(l.Addr, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// accept waits for a connection. The caller owns the fd.
func accept(t testing.TB, l *Listener) (fd int, peer netip.AddrPort) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(l.FD), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for {
		fd, peer, err := l.Accept()
		if err == nil {
			return fd, peer
		}
		if err != ErrAgain || time.Now().After(deadline) {
			t.Fatalf("no connection on %s: %v", l.Addr, err)
		}
		unix.Poll(poll, 1000)
	}
}

// flagsOf are the file descriptor flags (FD_CLOEXEC) and the status flags
// (O_NONBLOCK) of fd.
func flagsOf(t testing.TB, fd int) (descriptor, status int) {
	t.Helper()
	descriptor, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	status, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return descriptor, status
}

func TestListenersAndWhatTheyAccept(t *testing.T) {
	f := func(address string) {
		t.Helper()
		l := listen(t, address)
		nobodyWaits := func() {
			t.Helper()
			if fd, peer, err := l.Accept(); fd != -1 || peer.IsValid() || err != ErrAgain {
				t.Errorf("nobody waits on %s, but: %d, %v, %v", l.Addr, fd, peer, err)
			}
		}
		nobodyWaits()
		client := dial(t, l)
		fd, peer := accept(t, l)
		defer CloseFD(fd)
		nobodyWaits()
		for _, fd := range []int{l.FD, fd} {
			if descriptor, status := flagsOf(t, fd); descriptor&unix.FD_CLOEXEC == 0 || status&unix.O_NONBLOCK == 0 {
				t.Errorf("fd %d of %s has the flags %#x and %#x", fd, address, descriptor, status)
			}
		}
		var want netip.AddrPort // none, of a unix socket
		if tcp, ok := client.LocalAddr().(*net.TCPAddr); ok {
			want = tcp.AddrPort()
			if noDelay, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); noDelay != 1 || err != nil {
				t.Errorf("TCP_NODELAY is %d: %v", noDelay, err)
			}
		}
		if peer != want {
			t.Errorf("the peer on %s is %v, want %v", address, peer, want)
		}
	}
	f("127.0.0.78:0")
	if probe, err := net.Listen("tcp6", "[::1]:0"); err == nil { // not every container has IPv6
		probe.Close()
		f("[::1]:0")
	}
	f("unix:" + filepath.Join(t.TempDir(), "s"))
}

func TestListenTellsTheFreePort(t *testing.T) {
	l := listen(t, "127.0.0.78:0")
	bound, err := netip.ParseAddrPort(l.Addr)
	if err != nil || bound.Addr() != netip.MustParseAddr("127.0.0.78") || bound.Port() == 0 {
		t.Errorf("listening on %q: %v", l.Addr, err)
	}
	if _, err := Listen(l.Addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening twice: %v", err)
	}
}

// TestPeerOverBothFamilies: limits by address and the log would else know each
// IPv4 client as ::ffff:a.b.c.d.
func TestPeerOverBothFamilies(t *testing.T) {
	l := listen(t, ":0")
	bound, err := netip.ParseAddrPort(l.Addr)
	if err != nil {
		t.Fatal(err)
	}
	client := dial(t, &Listener{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.78"), bound.Port()).String()})
	fd, peer := accept(t, l)
	defer CloseFD(fd)
	want := client.LocalAddr().(*net.TCPAddr).AddrPort()
	if !peer.Addr().Is4() || peer != netip.AddrPortFrom(want.Addr().Unmap(), want.Port()) {
		t.Errorf("the peer is %v, want %v", peer, want)
	}
}

func TestAddrPort(t *testing.T) {
	f := func(family uint16, bytes []byte, want string) {
		t.Helper()
		// The layout of sockaddr_in and sockaddr_in6 behind the family:
		// ip(7), ipv6(7).
		var address unix.RawSockaddrAny
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&address)), unsafe.Sizeof(address))[2:], bytes)
		address.Addr.Family = family
		if got := addrPort(&address).String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	f(unix.AF_INET, []byte{0x1f, 0x40, 192, 0, 2, 1}, "192.0.2.1:8000")
	f(unix.AF_INET6, []byte{0xff, 0xff, 0, 0, 0, 0, 0x20, 0x01, 0x0d, 0xb8, 21: 1}, "[2001:db8::1]:65535")
	f(unix.AF_INET6, []byte{0, 1, 0, 0, 0, 0, 16: 0xff, 17: 0xff, 18: 192, 19: 0, 20: 2, 21: 1}, "192.0.2.1:1")
	f(unix.AF_UNIX, []byte("/run/t.sock"), netip.AddrPort{}.String())
}

func TestListenSaysWhereItCannot(t *testing.T) {
	check := leakCheck(t)
	f := func(address string, want error) {
		t.Helper()
		l, err := Listen(address)
		if l != nil || err == nil {
			t.Errorf("listening on %q", address)
		} else if !strings.Contains(err.Error(), address) || want != nil && !errors.Is(err, want) {
			t.Errorf("%v; want %v, and the address", err, want)
		}
	}
	f("no-port", nil)
	f("127.0.0.78:no-such-service", nil)
	f("127.0.0.78:70000", nil)
	f("192.0.2.1:0", unix.EADDRNOTAVAIL)
	f("unix:", nil)
	f("unix:/no/such/folder/s", unix.ENOENT)
	f("unix:/"+strings.Repeat("a", 107), unix.EINVAL)
	check()
}

func TestLongestUnixPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	path += strings.Repeat("s", 107-len(path)) // sun_path of unix(7), with its final zero
	l := listen(t, "unix:"+path)
	dial(t, l)
	fd, _ := accept(t, l)
	CloseFD(fd)
}

func TestUnixSocketIsOpenToAll(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // whatever the process was started with
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, "unix:"+path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("mode %v", info.Mode())
	}
	l.Shared = true
	if err := l.Unlink(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("after Unlink of a shared listener: %v", err)
	}
	l.Shared = false
	if err := l.Unlink(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("after Unlink: %v", err)
	}
}

// A process that ends leaves the file of another one that has come to its path since.
func TestUnlinkLeavesTheFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := func(old *Listener) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		next := listen(t, "unix:"+path)
		if err := old.Unlink(); err != nil {
			t.Error(err)
		}
		dial(t, next)
		fd, _ := accept(t, next)
		CloseFD(fd)
	}
	made := listen(t, "unix:"+path)
	f(made)
	adopted, err := AdoptListener(made.FD, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	f(adopted)
	if err := made.Unlink(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("after Unlink of the first listener: %v", err)
	}
}

func TestUnlinkOfATCPListener(t *testing.T) {
	if err := listen(t, "127.0.0.78:0").Unlink(); err != nil {
		t.Error(err)
	}
}

func TestStaleUnixSocketIsReplaced(t *testing.T) {
	address := "unix:" + filepath.Join(t.TempDir(), "s")
	first, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	first.Close() // as a process ends that is killed: the file stays
	second := listen(t, address)
	dial(t, second)
	fd, _ := accept(t, second)
	CloseFD(fd)
}

func TestLiveUnixSocketIsRefused(t *testing.T) {
	l := listen(t, "unix:"+filepath.Join(t.TempDir(), "s"))
	if _, err := Listen(l.Addr); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("listening twice: %v", err)
	}
	dial(t, l) // the first is still there
}

// TestBusyUnixSocketIsRefused: whoever listens does not accept, and its queue
// is full. That is no reason to wait, nor to take its place.
func TestBusyUnixSocketIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	busy, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(busy)
	if err := errors.Join(unix.Bind(busy, &unix.SockaddrUnix{Name: path}), unix.Listen(busy, 0)); err != nil {
		t.Fatal(err)
	}
	dial(t, &Listener{Addr: "unix:" + path}) // all that a queue of 0 takes
	refused := make(chan error, 1)
	go func() {
		_, err := Listen("unix:" + path)
		refused <- err
	}()
	select {
	case err := <-refused:
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Error("Listen waits for the other to accept")
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	f := func(what string, create func(path string) error) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "s")
		if err := create(path); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := Listen("unix:" + path); err == nil {
			l.Close()
			t.Errorf("listening in the place of %s", what)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not say where: %v", err)
		}
		after, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if after.Mode() != before.Mode() {
			t.Errorf("in the place of %s there is now %v", what, after.Mode())
		}
	}
	f("a regular file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) })
	f("a folder", func(path string) error { return os.Mkdir(path, 0o700) })
	f("a datagram socket", func(path string) error {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		t.Cleanup(func() { conn.Close() })
		return err
	})
}

func TestExhausted(t *testing.T) {
	f := func(err error, want bool) {
		t.Helper()
		if IsExhausted(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
	f(unix.EMFILE, true)
	f(unix.ENFILE, true)
	f(unix.ENOBUFS, true)
	f(unix.ENOMEM, true)
	f(unix.EAGAIN, false)
	f(unix.EBADF, false)
	f(nil, false)
}

func TestAcceptWithoutFreeFDs(t *testing.T) {
	l := listen(t, "127.0.0.78:0")
	dial(t, l)
	fd, _ := accept(t, l) // the queue works
	CloseFD(fd)
	dial(t, l)
	var err error
	withFreeFDs(t, 0, func() { _, _, err = l.Accept() })
	if !IsExhausted(err) {
		t.Errorf("got %v", err)
	}
	fd, _ = accept(t, l) // it was not lost
	CloseFD(fd)
}

func TestAcceptAllocatesNothing(t *testing.T) {
	l := listen(t, "127.0.0.78:0")
	bound, err := netip.ParseAddrPort(l.Addr)
	if err != nil {
		t.Fatal(err)
	}
	to := &unix.SockaddrInet4{Addr: bound.Addr().As4(), Port: int(bound.Port())}
	const conns = 100
	var clients [conns + 1]int // one for the warm-up
	for i := range clients {
		clients[i], _ = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		defer CloseFD(clients[i])
		if err := unix.Connect(clients[i], to); err != nil {
			t.Fatal(err)
		}
	}
	n := testing.AllocsPerRun(conns, func() {
		fd, _, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		CloseFD(fd)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
