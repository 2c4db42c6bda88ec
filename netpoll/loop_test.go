package netpoll

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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

func TestClockIsOfTheCallbackThatRuns(t *testing.T) {
	l := newLoop(t, Config{})
	for range 3 {
		before := Monotonic()
		onLoop(t, l, func() {
			if now := l.Now(); now < before || now > Monotonic() {
				t.Errorf("the clock says %v after %v and before %v", now, before, Monotonic())
			}
		})
	}
}

// A loop without a timer that is due sleeps: the one tick comes for the timer.
func TestOnlyTimersTick(t *testing.T) {
	var ticks []time.Duration
	l := newLoop(t, Config{OnTick: func(late time.Duration) { ticks = append(ticks, late) }})
	done := make(chan struct{})
	var begin time.Duration
	far, near := newAlarm(nil), newAlarm(func() { close(done) })
	onLoop(t, l, func() {
		begin = l.Now()
		l.Schedule(&far.Timer, begin+time.Hour)
		l.Schedule(&near.Timer, begin+6*Tick) // and not when far is due
	})
	wait(t, done, "the timer")
	onLoop(t, l, func() {
		if len(ticks) != 1 || l.Now()-ticks[0] < begin+6*Tick-Tick {
			t.Errorf("%d ticks, late by %v", len(ticks), ticks)
		}
	})
}

// Timers that are due at once do not keep out what becomes ready meanwhile.
func TestManyTimersShareTheLoop(t *testing.T) {
	const timers = 10 * expireMost
	l := newLoop(t, Config{})
	rang, before := 0, 0
	done := make(chan struct{})
	var alarms [timers]*alarm
	for i := range alarms {
		alarms[i] = newAlarm(func() {
			if rang++; rang == 1 {
				l.Post(func() { before = rang })
			}
			if rang == timers {
				close(done)
			}
		})
	}
	onLoop(t, l, func() {
		for _, a := range alarms {
			l.Schedule(&a.Timer, l.Now()+Tick)
		}
	})
	wait(t, done, "the last timer")
	onLoop(t, l, func() {
		if before == 0 || before > 2*expireMost {
			t.Errorf("a task ran after %d of %d timers, want %d to %d", before, timers, expireMost, 2*expireMost)
		}
	})
}

// Before the first timer of an idle time, the wheel is where the clock is.
func TestWheelFollowsAfterASleep(t *testing.T) {
	l := newLoop(t, Config{})
	for begin := Monotonic() / Tick; Monotonic()/Tick == begin; {
		runtime.Gosched()
	}
	onLoop(t, l, func() {
		l.Schedule(&newAlarm(func() {}).Timer, l.Now()+Tick)
		if want := int64(l.Now() / Tick); l.wheel.tick != want {
			t.Errorf("the wheel is at tick %d, want %d", l.wheel.tick, want)
		}
	})
}

// TestGiveWayOnlyInTraffic makes up how long ago the last yield and the callback before were.
func TestGiveWayOnlyInTraffic(t *testing.T) {
	const begin = time.Hour
	for _, kind := range []struct {
		yields yields
		of     func(*Loop) *yields
	}{
		{goroutineYields(), func(l *Loop) *yields { return &l.goroutines }},
		{threadYields(), func(l *Loop) *yields { return &l.threads }},
	} {
		for _, c := range []struct {
			sinceYield, sinceCallback time.Duration
			want                      bool
		}{
			{kind.yields.every, 0, true},
			{kind.yields.every, kind.yields.gap - 1, true},
			{kind.yields.every, kind.yields.gap, false}, // there is no traffic: it would only cost
			{kind.yields.every - 1, 0, false},
			{time.Hour, time.Hour, false},
		} {
			l := Loop{now: begin - c.sinceCallback, goroutines: yields{at: never}, threads: yields{at: never}}
			*kind.of(&l) = kind.yields
			next := kind.yields.every - c.sinceYield + begin
			kind.of(&l).at = next
			if got := l.giveWay(begin); got != c.want {
				t.Errorf("%+v, %v after the last yield and %v after the last callback: %v", kind.yields, c.sinceYield, c.sinceCallback, got)
			}
			if moved := kind.of(&l).at != next; moved != c.want {
				t.Errorf("%+v, %v after the last yield: the next one has moved: %v", kind.yields, c.sinceYield, moved)
			}
		}
	}
}

// The others of the processor have to run, or the scheduler has not seen the loop.
func TestYieldLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var ran atomic.Bool
	go ran.Store(true)
	for range 100 { // far shorter than the scheduler lets a goroutine run
		yield()
	}
	if !ran.Load() {
		t.Error("nobody else ran")
	}
}

// TestClockStandsStillWithTheLoop keeps the loop from its ticks for longer than its
// clock may move at once.
func TestClockStandsStillWithTheLoop(t *testing.T) {
	l := newLoop(t, Config{})
	var before, after, absent, behind time.Duration
	done := make(chan struct{})
	second := newAlarm(func() { close(done) })
	first := newAlarm(func() {
		after, behind = l.Now(), l.lost
		l.Schedule(&second.Timer, after+Tick) // a tick of its own: time goes on
	})
	onLoop(t, l, func() {
		before = l.Now()
		began := Monotonic()
		l.Schedule(&first.Timer, before+Tick)
		for absent < 2*longestStep {
			runtime.Gosched()
			absent = Monotonic() - began
		}
	})
	wait(t, done, "a timer behind the standstill")
	if step := after - before; step > longestStep {
		t.Errorf("the clock moved by %v in one tick, want %v at the most", step, longestStep)
	}
	if least := absent - longestStep; behind < least {
		t.Errorf("the clock is behind by %v, want %v at least", behind, least)
	}
}

// TestOnTickTellsHowLate keeps the loop from its fds for three ticks.
func TestOnTickTellsHowLate(t *testing.T) {
	var worst time.Duration
	done := make(chan struct{})
	hogged := false
	l := newLoop(t, Config{OnTick: func(late time.Duration) {
		if hogged {
			hogged, worst = false, late
			close(done)
		}
	}})
	l.Post(func() {
		l.Schedule(&newAlarm(func() {}).Timer, l.Now())
		for until := Monotonic() + 3*Tick; Monotonic() < until; {
			runtime.Gosched()
		}
		hogged = true
	})
	wait(t, done, "the tick after the task")
	if worst < Tick { // two at least, less what it took to start the clock
		t.Errorf("told of %v", worst)
	}
}

func TestTimersOnALoop(t *testing.T) {
	l := newLoop(t, Config{})
	done := make(chan struct{})
	var begin, firstAt, movedAt time.Duration
	first := newAlarm(func() { firstAt = Monotonic() })
	moved := newAlarm(func() { movedAt = Monotonic() })
	cancelled := newAlarm(nil)
	last := newAlarm(func() { close(done) })
	onLoop(t, l, func() {
		begin = l.Now()
		for _, a := range []*alarm{first, moved, cancelled} {
			l.Schedule(&a.Timer, begin+2*Tick)
		}
		l.Schedule(&moved.Timer, begin+4*Tick)
		l.Schedule(&last.Timer, begin+6*Tick)
		l.Cancel(&cancelled.Timer)
	})
	wait(t, done, "the last timer")
	if first.rang != 1 || moved.rang != 1 || cancelled.rang != 0 {
		t.Errorf("expired %d, %d and %d times; want 1, 1 and 0", first.rang, moved.rang, cancelled.rang)
	}
	if firstAt < begin+2*Tick || movedAt < begin+4*Tick {
		t.Errorf("early: %v and %v after the start", firstAt-begin, movedAt-begin)
	}
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
