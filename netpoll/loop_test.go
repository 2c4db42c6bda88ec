package netpoll

import (
	"errors"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadableIsReportedUntilAllIsRead(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	calls, done := 0, make(chan struct{})
	watch(t, l, ours, Readable, func(events Events) {
		if events != Readable {
			t.Errorf("called with %v", events)
		}
		calls++
		var b [1]byte
		if calls > 1 { // the first call leaves both bytes where they are
			Read(ours, b[:])
		}
		if calls == 3 {
			close(done)
		}
	})
	turns(t, l)
	send(t, peer, "ab")
	wait(t, done, "three calls for two bytes")
	turns(t, l)
	onLoop(t, l, func() {
		if calls != 3 {
			t.Errorf("%d calls; after the third there was nothing to read", calls)
		}
	})
}

func TestWritableIsReportedWhileThereIsRoom(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	for full := false; !full; { // until not a byte goes in
		_, err := Write(ours, make([]byte, 4096))
		full = err == ErrAgain
	}
	calls, done := 0, make(chan struct{})
	watch(t, l, ours, Writable, func(events Events) {
		if calls++; calls == 2 {
			close(done)
		}
		if events != Writable {
			t.Errorf("called with %v", events)
		}
	})
	turns(t, l)
	onLoop(t, l, func() {
		if calls > 0 {
			t.Errorf("%d calls for a socket that is full", calls)
		}
	})
	for empty := false; !empty; {
		_, err := Read(peer, make([]byte, 4096))
		empty = err == ErrAgain
	}
	wait(t, done, "the socket to be writable, and so again")
}

func TestModChangesWhatIsReported(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	var seen Events
	watch(t, l, ours, Readable, func(events Events) { seen |= events })
	f := func(events, want Events) {
		t.Helper()
		onLoop(t, l, func() {
			if err := l.Mod(ours, events); err != nil {
				t.Error(err)
			}
		})
		onLoop(t, l, func() { seen = 0 }) // a turn later: the events of the last one are handled
		turns(t, l)
		onLoop(t, l, func() {
			if seen != want {
				t.Errorf("watched for %v: %v reported, want %v", events, seen, want)
			}
		})
	}
	f(Readable, 0)
	f(Readable|Writable, Writable)
	f(0, 0)
	send(t, peer, "a")
	f(0, 0)
	f(Readable, Readable)
	f(Writable, Writable)
	f(Readable|Writable, Readable|Writable)
}

func TestHangUpIsReportedUnasked(t *testing.T) {
	l := newLoop(t, Config{})
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer CloseFD(pipe[0])
	done := make(chan struct{})
	watch(t, l, pipe[0], 0, func(events Events) {
		if events != unix.EPOLLHUP {
			t.Errorf("called with %v", events)
		}
		l.Del(pipe[0])
		close(done)
	})
	CloseFD(pipe[1])
	wait(t, done, "the end of a pipe")
}

func TestDelStopsTheCalls(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	calls, done := 0, make(chan struct{})
	watch(t, l, ours, Readable, func(Events) {
		if calls++; calls == 2 {
			if err := l.Del(ours); err != nil {
				t.Error(err)
			}
			close(done)
		}
	})
	send(t, peer, "a")
	wait(t, done, "two calls")
	turns(t, l)
	onLoop(t, l, func() {
		if calls != 2 {
			t.Errorf("%d calls after Del", calls-2)
		}
		if l.Del(ours) == nil || l.Mod(ours, Readable) == nil {
			t.Error("Del and Mod say nothing about an fd that is not watched")
		}
	})
}

// TestFailedAddLeavesNothing gives the number of an fd that could not be
// watched to one that can.
func TestFailedAddLeavesNothing(t *testing.T) {
	l := newLoop(t, Config{})
	f := func(what string, fd int, want error) {
		t.Helper()
		ours, peer := socketpair(t)
		err := l.Add(fd, Readable, func(Woken) { t.Errorf("the callback for %s was called", what) })
		if !errors.Is(err, want) || !strings.Contains(err.Error(), strconv.Itoa(fd)) {
			t.Errorf("watching %s: %v; want %v, and which fd", what, err, want)
		}
		if err := unix.Dup3(ours, fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer CloseFD(fd)
		done := make(chan struct{})
		watch(t, l, fd, Readable, func(Events) {
			l.Del(fd)
			close(done)
		})
		send(t, peer, "a")
		wait(t, done, "the fd that took the number of "+what)
	}
	file, err := unix.Open(filepath.Join(t.TempDir(), "file"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f("a regular file", file, unix.EPERM)

	// A number that nothing else takes meanwhile.
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 1000)
	if err != nil {
		t.Fatal(err)
	}
	CloseFD(free)
	f("a closed fd", free, unix.EBADF)
}

func TestTasksRunInTheOrderTheyWerePosted(t *testing.T) {
	const posters, tasks = 8, 1000
	l := newLoop(t, Config{})
	var next [posters]int // without a lock: only tasks touch it
	var wg sync.WaitGroup
	for p := range posters {
		wg.Go(func() {
			for i := range tasks {
				l.Post(func() {
					if next[p] != i {
						t.Errorf("task %d of goroutine %d ran instead of %d", i, p, next[p])
					}
					next[p] = i + 1
				})
			}
		})
	}
	wg.Wait()
	onLoop(t, l, func() {
		for p, n := range next {
			if n != tasks {
				t.Errorf("%d tasks of goroutine %d ran", n, p)
			}
		}
	})
}

func TestTaskPostedByATaskRunsAfterIt(t *testing.T) {
	l := newLoop(t, Config{})
	done := make(chan struct{})
	var order []string
	l.Post(func() {
		l.Post(func() {
			order = append(order, "inner")
			close(done)
		})
		order = append(order, "outer")
	})
	wait(t, done, "the inner task")
	if got := strings.Join(order, " "); got != "outer inner" {
		t.Errorf("order: %s", got)
	}
}

// TestTasksDoNotStarveSockets has a task post itself without end.
func TestTasksDoNotStarveSockets(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	stop, done := false, make(chan struct{})
	watch(t, l, ours, Readable, func(Events) {
		stop = true
		l.Del(ours)
		close(done)
	})
	var again func()
	again = func() {
		if !stop {
			l.Post(again)
		}
	}
	l.Post(again)
	send(t, peer, "a")
	wait(t, done, "a socket beside endless tasks")
}

// TestPostWhileTheLoopCloses relies on the race detector: were a task to run
// after Close, it would race with the last line.
func TestPostWhileTheLoopCloses(t *testing.T) {
	l, err := NewLoop(Config{Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	ran := 0
	l.Post(func() { close(started) })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for l.Post(func() { ran++ }) {
			}
		})
	}
	wait(t, started, "the first task")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	before := ran
	wg.Wait()
	if l.Post(func() { ran++ }) {
		t.Error("Post promises to run a task on a closed loop")
	}
	if ran != before {
		t.Errorf("%d tasks ran after Close", ran-before)
	}
}

// TestCallReturnsWhenTheLoopCloses closes a loop before it comes to a called task.
func TestCallReturnsWhenTheLoopCloses(t *testing.T) {
	l, err := NewLoop(Config{Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	busy, release := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(busy); <-release })
	wait(t, busy, "the loop to be busy")
	called, closed := make(chan struct{}), make(chan struct{})
	go func() {
		l.Call(func() { t.Error("a task ran after Close") })
		close(called)
	}()
	inMailbox := func(condition func(m *mailbox) bool) func() bool {
		return func() bool {
			l.mailbox.mu.Lock()
			defer l.mailbox.mu.Unlock()
			return condition(l.mailbox)
		}
	}
	eventually(t, "the task waits", inMailbox(func(m *mailbox) bool { return len(m.queue) == 1 }))
	go func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		close(closed)
	}()
	eventually(t, "the task is dropped", inMailbox(func(m *mailbox) bool { return m.closed }))
	close(release)
	wait(t, closed, "Close")
	wait(t, called, "Call")
}

// TestOneGoroutineRunsEverything holds the rule that nothing on a loop needs a
// lock, and that an fd costs no goroutine.
func TestOneGoroutineRunsEverything(t *testing.T) {
	const pairs = 200
	ids := make(chan string, pairs+3)
	see := func() { ids <- goroutineID() }
	ticked := sync.OnceFunc(see)
	l := newLoop(t, Config{OnTick: func(time.Duration) { ticked() }})
	before := runtime.NumGoroutine()
	for range pairs {
		ours, peer := socketpair(t)
		watch(t, l, ours, Readable, func(Events) { see(); l.Del(ours) })
		send(t, peer, "a")
	}
	onLoop(t, l, func() { see(); l.Schedule(&newAlarm(see).Timer, 0) })
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines more for %d fds", n-before, pairs)
	}
	want := <-ids
	for range cap(ids) - 1 { // the sockets, a tick, a task and a timer
		select {
		case id := <-ids:
			if id != want {
				t.Fatalf("callbacks run on goroutines %s and %s", want, id)
			}
		case <-time.After(patience):
			t.Fatal("a callback is missing")
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	ours, peer := socketpair(t)
	send(t, peer, "a")
	check := leakCheck(t)
	for range 10 {
		l, err := NewLoop(Config{Fatal: func(err error) { t.Errorf("closing is not fatal: %v", err) }})
		if err != nil {
			t.Fatal(err)
		}
		called := make(chan struct{})
		onLoop(t, l, func() {
			l.Schedule(&newAlarm(nil).Timer, 0)
			l.Add(ours, Readable, func(Woken) { l.Del(ours); close(called) })
		})
		wait(t, called, "a socket")
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if l.Close() == nil {
			t.Error("closing twice says nothing")
		}
		if l.Add(ours, Readable, nil) == nil {
			t.Error("a closed loop watches an fd")
		}
	}
	check()
}

// TestFatalIsToldWhenTheLoopCannotWait puts a socket in the place of the epoll
// instance.
func TestFatalIsToldWhenTheLoopCannotWait(t *testing.T) {
	before := openFDs(t)
	broke := make(chan error, 10)
	l := newLoop(t, Config{Fatal: func(err error) { broke <- err }})
	ours, _ := socketpair(t)
	for fd, target := range openFDs(t) {
		if before[fd] == "" && target == "anon_inode:[eventpoll]" {
			if err := unix.Dup3(ours, fd, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.Post(func() {}) // it waits for the old one
	select {
	case err := <-broke:
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "cannot wait") {
			t.Errorf("told: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Fatal was not called")
	}
}

// A second Add of an fd is refused, and the first callback still comes.
func TestSecondAddLeavesTheFirst(t *testing.T) {
	l := newLoop(t, Config{})
	ours, peer := socketpair(t)
	done := make(chan struct{})
	watch(t, l, ours, Readable, func(Events) { l.Del(ours); close(done) })
	onLoop(t, l, func() {
		if l.Add(ours, Readable, func(Woken) {}) == nil {
			t.Error("an fd is watched twice")
		}
	})
	send(t, peer, "a")
	wait(t, done, "the first callback")
}
