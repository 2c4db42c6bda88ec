package netpoll

import (
	"time"

	"golang.org/x/sys/unix"
)

// An Alarm calls back on its loop at an exact time, for what a Tick is too
// coarse for. It is a timerfd of its own, which the kernel's slack for timers
// does not delay (timerfd_create(2)); a Timer of the wheel costs far less.
type Alarm struct {
	// Fixed after NewAlarm.
	loop     *Loop
	fd       int
	callback func()

	// Owned by the loop's goroutine.
	closed bool
}

// NewAlarm returns an Alarm that is not set. It may be called before anything
// else runs on the loop; the methods of an Alarm belong to the loop's callbacks.
func (l *Loop) NewAlarm(callback func()) (*Alarm, error) {
	fd, err := newTimerFD()
	if err != nil {
		return nil, err
	}
	a := &Alarm{loop: l, fd: fd, callback: callback}
	if err := l.Add(fd, Readable, a.onReadable); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return a, nil
}

// Set lets the Alarm call back once, when Monotonic is at, instead of whenever
// it was set for. A time that has passed is now: after the fds that are ready.
func (a *Alarm) Set(at time.Duration) {
	setTimerFD(a.fd, at-Monotonic())
}

// Close ends the Alarm: its callback does not run any more. Closing it twice
// does nothing.
func (a *Alarm) Close() {
	if a.closed {
		return
	}
	a.closed = true
	a.loop.Del(a.fd)
	unix.Close(a.fd)
}

// onReadable finds the timerfd empty if the Alarm was set anew after the loop
// was told of it.
func (a *Alarm) onReadable(w Woken) {
	a.loop.Awake(w)
	if a.closed {
		return
	}
	if _, expired := readCounter(a.fd); expired {
		a.callback()
	}
}
