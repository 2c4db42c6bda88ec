package netpoll

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadAndWrite(t *testing.T) {
	ours, peer := socketpair(t)
	f := func(what string, call func(int, []byte) (int, error), fd int, p []byte, wantN int, wantErr error) {
		t.Helper()
		if n, err := call(fd, p); n != wantN || err != wantErr {
			t.Errorf("%s: %d, %v; want %d, %v", what, n, err, wantN, wantErr)
		}
	}
	buf := make([]byte, 8)
	f("nothing to read", Read, ours, buf, 0, ErrAgain)
	f("write", Write, peer, []byte("hello"), 5, nil)
	f("read less than there is", Read, ours, buf[:2], 2, nil)
	f("read the rest", Read, ours, buf[2:], 3, nil)
	if string(buf[:5]) != "hello" {
		t.Errorf("read %q", buf[:5])
	}
	f("write nothing", Write, peer, nil, 0, nil)

	if err := ShutdownWrite(peer); err != nil {
		t.Error(err)
	}
	f("end of the stream", Read, ours, buf, 0, nil)
	f("write after the peer's end", Write, ours, []byte("still"), 5, nil)
	f("read after one's own end", Read, peer, buf, 5, nil)
	f("write after one's own end", Write, peer, []byte("x"), 0, unix.EPIPE)
	f("no such fd", Read, -1, buf, 0, unix.EBADF)
}

func TestWriteToAFullSocket(t *testing.T) {
	ours, peer := socketpair(t)
	text := bytes.Repeat([]byte("0123456789"), 1<<20) // more than a socket takes
	n, err := Write(ours, text)
	if err != nil || n == 0 || n >= len(text) {
		t.Fatalf("%d of %d bytes written: %v", n, len(text), err)
	}
	more, err := 0, error(nil)
	for err == nil {
		more, err = Write(ours, text[n:])
		n += more
	}
	if err != ErrAgain {
		t.Errorf("a full socket: %v", err)
	}
	got := make([]byte, len(text))
	read := 0
	for read < n {
		more, err := Read(peer, got[read:])
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", read, n, err)
		}
		read += more
	}
	if !bytes.Equal(got[:read], text[:n]) {
		t.Error("what was read is not what was written")
	}
}

// TestWriteToAPeerThatIsGone also shows that SIGPIPE does not end the process.
func TestWriteToAPeerThatIsGone(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fds[0])
	CloseFD(fds[1])
	if _, err := Write(fds[0], []byte("x")); err != unix.EPIPE {
		t.Errorf("got %v, want EPIPE", err)
	}
	if n, err := Read(fds[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d bytes: %v; want the end", n, err)
	}
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	ours, peer := socketpair(t)
	buf := make([]byte, 16)
	n := testing.AllocsPerRun(1000, func() {
		Write(peer, buf)
		Read(ours, buf)
		Read(ours, buf) // ErrAgain
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestNetConnTakesOver follows a plain HTTP request: its socket leaves a loop
// for the Go runtime.
func TestNetConnTakesOver(t *testing.T) {
	l := newLoop(t, Config{})
	listener := listen(t, "127.0.0.78:0")
	client := dial(t, listener)
	fd, _ := accept(t, listener)
	left := make(chan struct{})
	onLoop(t, l, func() {
		l.Add(fd, Readable, func(Woken) { l.Del(fd); close(left) })
	})
	io.WriteString(client, "request")
	wait(t, left, "the request")

	conn, err := NetConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the fd itself is still open: %v", err)
	}
	deadline := time.Now().Add(patience)
	conn.SetDeadline(deadline)
	client.SetDeadline(deadline)
	readText(t, conn, "request")
	io.WriteString(conn, "response")
	readText(t, client, "response")

	// Only what the runtime polls can time out.
	conn.SetReadDeadline(time.Unix(1, 0))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
}

func readText(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("read %q, want %q: %v", got, want, err)
	}
}

func TestNetConnOfAUnixSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(fds[1])
	conn, err := NetConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	send(t, fds[1], "hi")
	readText(t, conn, "hi")
}

func TestNetConnOfNoSocket(t *testing.T) {
	check := leakCheck(t)
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for _, fd := range pipe {
		if conn, err := NetConn(fd); err == nil {
			t.Errorf("a pipe is a %T", conn)
		}
	}
	check() // the fds are closed all the same
}

func TestRaiseFDLimit(t *testing.T) {
	var before, after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	lowered := unix.Rlimit{Cur: before.Max / 2, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lowered); err != nil {
		t.Fatal(err)
	}
	n, err := RaiseFDLimit()
	if err != nil {
		t.Fatal(err)
	}
	unix.Getrlimit(unix.RLIMIT_NOFILE, &after)
	if n != before.Max || after.Cur != before.Max || after.Max != before.Max {
		t.Errorf("raised to %d, of %d: %+v", n, before.Max, after)
	}
}

// Every process of a machine has the same Clock.
func TestClockIsTheKernels(t *testing.T) {
	before := readClock()
	now := Clock()
	if after := readClock(); now < before || now > after+time.Second {
		t.Errorf("Clock is %v between %v and %v", now, before, after)
	}
}
