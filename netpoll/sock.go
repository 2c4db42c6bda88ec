package netpoll

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrAgain says that a non-blocking call has nothing to do now: EAGAIN. It is
// a result more than an error.
const ErrAgain = unix.EAGAIN

// Read reads what fd, which must be non-blocking, has: at most len(p) bytes,
// where 0 with a nil error is the end of the stream. Interrupted calls are
// repeated. See read(2).
func Read(fd int, p []byte) (n int, err error) { return transfer(unix.SYS_READ, fd, p) }

// Write writes what fd, which must be non-blocking, takes of p. Interrupted
// calls are repeated. A peer that is gone is EPIPE or ECONNRESET; the SIGPIPE
// that goes with it is ignored by the Go runtime. See write(2).
func Write(fd int, p []byte) (n int, err error) { return transfer(unix.SYS_WRITE, fd, p) }

// transfer makes the call without telling Go's scheduler, which must know only of calls
// that block: these return at once.
func transfer(call uintptr, fd int, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Unread is how many bytes have arrived at a socket and not been read. See
// FIONREAD in tcp(7).
func Unread(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// HasHungUp reports whether the peer of a socket sends nothing any more, also while what
// it has sent is unread.
func HasHungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// ShutdownWrite tells the peer that nothing more comes. See shutdown(2).
func ShutdownWrite(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }

// CloseFD closes fd. It is not repeated: on Linux the fd is gone whatever
// close(2) says.
func CloseFD(fd int) { unix.Close(fd) }

// NetConn turns fd into a net.Conn of the Go runtime's own poller; fd itself
// is closed, also on an error. The fd must not be watched by a Loop any more.
func NetConn(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "accepted")
	defer file.Close()
	return net.FileConn(file)
}

// TakeFD takes the fd out of a net.Conn, for a Loop: the fd is non-blocking, and no longer the
// Go runtime's. The conn is closed, also on an error; then the fd is -1.
func TakeFD(conn net.Conn) (fd int, err error) {
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	failed := raw.Control(func(theirs uintptr) { fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(failed, err)
}

// Clock is CLOCK_MONOTONIC, which all processes of a machine share. See
// clock_gettime(2).
func Clock() time.Duration { return clockOrigin + Monotonic() }

// clockOrigin is the Clock when Monotonic was 0. A thread that waits between the two readings
// makes it too large, so the least of three is taken.
var clockOrigin = min(readOrigin(), readOrigin(), readOrigin())

func readOrigin() time.Duration {
	began := Monotonic()
	return readClock() - began
}

// readClock asks the kernel, in a system call.
func readClock() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic("BUG: " + err.Error())
	}
	return time.Duration(now.Nano())
}

// RaiseFDLimit raises the process's soft limit of open files to its hard limit
// and returns it. See getrlimit(2).
func RaiseFDLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = limit.Max
	return limit.Cur, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}
