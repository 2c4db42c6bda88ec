package netpoll

import (
	"errors"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen. Only a failure waits
// that long.
const patience = time.Minute

// newLoop returns a Loop that is closed when the test ends.
func newLoop(t testing.TB, config Config) *Loop {
	t.Helper()
	if config.Fatal == nil {
		config.Fatal = func(err error) { t.Errorf("the loop broke: %v", err) }
	}
	l, err := NewLoop(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// socketpair returns two connected non-blocking sockets, which are closed when
// the test ends.
func socketpair(t testing.TB) (ours, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		CloseFD(fds[0])
		CloseFD(fds[1])
	})
	return fds[0], fds[1]
}

// watch adds fd to l until the test ends.
func watch(t testing.TB, l *Loop, fd int, events Events, callback func(Events)) {
	t.Helper()
	onLoop(t, l, func() {
		if err := l.Add(fd, events, func(w Woken) { callback(l.Awake(w)) }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { onLoop(t, l, func() { l.Del(fd) }) })
}

// onLoop runs task on the loop and waits for it.
func onLoop(t testing.TB, l *Loop, task func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { task(); close(done) }) {
		t.Fatal("the loop is closed")
	}
	wait(t, done, "a posted task to run")
}

// turns lets the loop look for events at least once more, from the start: a
// fd that is ready now has been reported when turns returns.
func turns(t testing.TB, l *Loop) {
	t.Helper()
	onLoop(t, l, func() {})
	onLoop(t, l, func() {})
}

func wait(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func send(t testing.TB, fd int, text string) {
	t.Helper()
	if n, err := Write(fd, []byte(text)); err != nil || n != len(text) {
		t.Errorf("%d of %d bytes written: %v", n, len(text), err)
	}
}

// openFDs is what each file descriptor of the process refers to.
func openFDs(t testing.TB) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[int]string)
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil {
			continue // the folder's own, closed again
		}
		fd, _ := strconv.Atoi(entry.Name())
		open[fd] = target
	}
	return open
}

// leakCheck returns a func that waits until there are no other file
// descriptors, and no more goroutines, than there are now.
func leakCheck(t testing.TB) (check func()) {
	t.Helper()
	// The first file that it can poll has the Go runtime open some of its own, which stay.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	return func() {
		t.Helper()
		eventually(t, "nothing is left open", func() bool { return maps.Equal(openFDs(t), fds) })
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	}
}

// goroutineID tells the goroutine that calls it from every other.
func goroutineID() string {
	var buf [64]byte
	stack := string(buf[:runtime.Stack(buf[:], false)]) // "goroutine 7 [running]:…"
	return strings.Fields(stack)[1]
}
