// Package netpoll is the event loop: raw file descriptors, wake-ups and time,
// and nothing of what travels over them.
//
// A Loop is one easygo Epoll and the one goroutine that Epoll starts. All
// callbacks of a Loop (of its fds, its timers and its posted tasks) run on that
// goroutine, one at a time, so what they share needs no lock. Any goroutine may
// call Post; every other method of a Loop belongs to its own callbacks, except
// that the first fds may be added before anything else runs, and Close must
// come from outside.
//
// The package neither logs nor reads flags. A loop that cannot go on calls
// Config.Fatal.
//
// easygo's Epoll asks this of its caller; the package does it, or states it here:
//   - The callbacks of one batch of events are looked up before the first of
//     them runs, so a callback can still come after Del. An owner of an fd
//     returns at once when it has closed it, and its memory is never reused.
//   - A failed Add leaves its entry behind; Add deletes it again.
//   - Close runs the remaining callbacks on the caller's goroutine, and
//     deadlocks inside a callback: only a Loop without fds is closed.
//   - It waits without a timeout and has no hooks: time comes from a timerfd,
//     wake-ups from an eventfd.
//   - Its own two fds lack close-on-exec: the process must not fork.
//   - It waits in a system call of which Go's scheduler knows nothing: Awake keeps
//     the scheduler from taking the processor away again and again.
package netpoll

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

// Events is a set of readiness bits, as epoll_ctl(2) names them.
type Events uint32

// A Woken is what a callback is called with. Only Awake makes Events of it, so a
// callback that wants to know what is ready cannot forget Awake.
type Woken = netpoll.EpollEvent

// The readiness that callers ask for. HungUp says that the peer sends nothing any more,
// also while what it has sent is unread. Failed is reported always; a read or a write then
// returns the error.
const (
	Readable = Events(netpoll.EPOLLIN)
	Writable = Events(netpoll.EPOLLOUT)
	HungUp   = Events(netpoll.EPOLLRDHUP)
	Failed   = Events(netpoll.EPOLLERR | netpoll.EPOLLHUP)
)

// Tick is the resolution of a Loop's timers.
const Tick = 50 * time.Millisecond

// longestStep is by how much a tick may come late. If it comes later, the loop was not
// there (a stopped process, a paused machine), and could not see what others did in
// that time.
const longestStep = 500 * time.Millisecond

// Config is the callbacks of a Loop, and how it shares its processor.
type Config struct {
	// Fatal is called when the loop cannot go on. It must not return to
	// normal work: nothing of this Loop runs any more.
	Fatal func(error)
	// OnTick, if set, is called on the loop at every tick for which a timer was set,
	// with the time by which the tick came late: how long a ready fd may have waited.
	OnTick func(late time.Duration)
	// KeepProcessor lets a busy loop run for as long as the kernel does, though other
	// threads wait: for a client that stands for machines of its own.
	KeepProcessor bool
}

// A Loop is an epoll set with its goroutine, mailbox, timer wheel and clock.
type Loop struct {
	// Fixed after NewLoop.
	config  Config
	epoll   *netpoll.Epoll
	mailbox *mailbox
	timerFD int
	ended   chan struct{} // closed when no task runs any more

	// Owned by the loop's goroutine.
	wheel      Wheel
	armed      int64         // the tick that the timerfd waits for; never, while nothing is on the wheel
	due        time.Duration // when the timerfd expires, on Monotonic
	now        time.Duration // when the callback that runs has begun
	lost       time.Duration // by how much the clock is behind Monotonic
	goroutines yields        // when Awake lets other goroutines run
	threads    yields        // when Awake lets other threads run
}

// never is a tick, or a time, that does not come, and always one that has.
const never, always = math.MaxInt64, math.MinInt64

var clockBase = time.Now()

// Monotonic is the time since the process started, on the monotonic clock.
func Monotonic() time.Duration { return time.Since(clockBase) }

// NewLoop starts a Loop.
func NewLoop(config Config) (*Loop, error) {
	epoll, err := netpoll.EpollCreate(&netpoll.EpollConfig{
		OnWaitError: func(err error) { config.Fatal(fmt.Errorf("cannot wait for events: %w", err)) },
	})
	if err != nil {
		return nil, fmt.Errorf("cannot create an epoll instance: %w", err)
	}
	l := &Loop{
		config: config, epoll: epoll, timerFD: -1, ended: make(chan struct{}),
		goroutines: goroutineYields(), threads: threadYields(),
	}
	if config.KeepProcessor {
		l.threads.at = never
	}
	if err := l.start(); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

func (l *Loop) start() (err error) {
	if l.mailbox, err = newMailbox(); err != nil {
		return err
	}
	if l.timerFD, err = newTimerFD(); err != nil {
		return err
	}
	l.now, l.armed, l.due = Monotonic(), never, never
	l.wheel.init(l.now)
	if err := l.Add(l.mailbox.fd, Readable, l.onMail); err != nil {
		return err
	}
	return l.Add(l.timerFD, Readable, l.onTimerFD)
}

// Add calls back on the loop whenever fd is ready for one of events
// (level-triggered), until Del. The fd must be non-blocking, and not watched
// yet: a second Add is an error that leaves the first as it was.
//
// The callback calls Awake first.
func (l *Loop) Add(fd int, events Events, callback func(Woken)) error {
	if err := l.epoll.Add(fd, netpoll.EpollEvent(events), callback); err != nil {
		if !errors.Is(err, netpoll.ErrRegistered) {
			l.epoll.Del(fd) // a failed Add leaves its entry behind
		}
		return fmt.Errorf("cannot watch fd %d: %w", fd, err)
	}
	return nil
}

// Mod changes the events that fd is watched for.
func (l *Loop) Mod(fd int, events Events) error { return l.epoll.Mod(fd, netpoll.EpollEvent(events)) }

// Del stops watching fd. A callback for it may still come in the batch of
// events that is being handled.
func (l *Loop) Del(fd int) error { return l.epoll.Del(fd) }

// Post runs task on the loop, after what runs there now; tasks keep their
// order. It may be called from any goroutine, the loop's own included. It
// reports false when the loop is closed and the task will never run.
func (l *Loop) Post(task func()) bool { return l.mailbox.post(task) }

// Call runs task on the loop and waits until it has returned. It must not be
// called from the loop itself. On a closed loop it returns at once. Close drops a
// task that has not begun, and Call returns then too.
func (l *Loop) Call(task func()) {
	done := make(chan struct{})
	if !l.Post(func() { task(); close(done) }) {
		return
	}
	select {
	case <-done:
	case <-l.ended:
	}
}

// Awake is the first call of every callback, and tells what its fd is ready for. It
// moves the loop's clock. It lets others run when it is time for that: see giveWay.
func (l *Loop) Awake(w Woken) Events {
	monotonic := Monotonic()
	if l.giveWay(l.At(monotonic)) {
		monotonic = Monotonic()
	}
	l.moveClock(monotonic)
	return Events(w)
}

// moveClock moves the clock to what Monotonic says. A timerfd that is handled too late
// shows that the loop was not there; since when is not known, so the clock moves by
// longestStep at the most since the callback before.
func (l *Loop) moveClock(monotonic time.Duration) {
	if monotonic-l.due > longestStep {
		l.lost += max(0, l.At(monotonic)-l.now-longestStep)
	}
	l.now = l.At(monotonic)
}

// Now is the loop's clock as of the begin of the callback that runs. Reading it costs
// nothing. It goes with Monotonic, but it stands still while the process does: what is
// due in 10 s is due when the loop has been there for 10 s.
func (l *Loop) Now() time.Duration { return l.now }

// At is what the loop's clock shows when Monotonic is t.
func (l *Loop) At(t time.Duration) time.Duration { return t - l.lost }

// Schedule lets t expire at the first tick that is not before at, instead of
// whatever it was scheduled for.
func (l *Loop) Schedule(t *Timer, at time.Duration) {
	if l.wheel.Len() == 0 {
		l.wheel.Advance(l.now) // it stood still meanwhile
	}
	if tick := l.wheel.Schedule(t, at); tick < l.armed {
		l.arm(tick)
	}
}

// Cancel takes t off the wheel. A timer that is not on it is left alone.
func (l *Loop) Cancel(t *Timer) { l.wheel.Cancel(t) }

// Close ends the loop's goroutine. No fd may be watched any more, and it must
// not be called from a callback. Posted tasks that have not run are dropped.
func (l *Loop) Close() error {
	l.mailbox.close()
	if err := l.epoll.Close(); err != nil {
		return fmt.Errorf("cannot close an epoll instance: %w", err)
	}
	close(l.ended)
	unix.Close(l.mailbox.fd)
	return unix.Close(l.timerFD)
}

// release undoes a start that failed half-way.
func (l *Loop) release() {
	l.epoll.Close()
	if l.mailbox != nil {
		unix.Close(l.mailbox.fd)
	}
	if l.timerFD >= 0 {
		unix.Close(l.timerFD)
	}
}

func (l *Loop) onMail(w Woken) {
	if l.Awake(w)&Readable != 0 {
		l.mailbox.run()
	}
}

// arm lets the timerfd expire at a tick, or never.
func (l *Loop) arm(tick int64) {
	l.armed, l.due = tick, never
	if tick == never {
		return // it has expired, and does so once
	}
	now := Monotonic()
	l.due = max(time.Duration(tick)*Tick+l.lost, now)
	setTimerFD(l.timerFD, l.due-now)
}

// onTimerFD finds the timerfd empty if it was armed anew after the loop was told of
// it.
func (l *Loop) onTimerFD(w Woken) {
	events := l.Awake(w)
	if _, expired := readCounter(l.timerFD); events&Readable == 0 || !expired {
		return
	}
	if l.config.OnTick != nil {
		l.config.OnTick(max(0, l.now-l.At(l.due)))
	}
	l.armed = always // so that no timer that is set meanwhile arms it
	if l.wheel.Advance(l.now) {
		l.arm(l.wheel.next())
	} else {
		l.arm(l.wheel.tick) // at once, behind the fds that are ready
	}
}
