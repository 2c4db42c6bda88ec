package netpoll

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ringing returns an Alarm on l, closed when the test ends, that tells when it
// calls back.
func ringing(t *testing.T, l *Loop) (*Alarm, <-chan time.Duration) {
	t.Helper()
	rings := make(chan time.Duration, 100)
	a, err := l.NewAlarm(func() { rings <- Monotonic() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { onLoop(t, l, a.Close) })
	return a, rings
}

func waitForRing(t *testing.T, rings <-chan time.Duration) time.Duration {
	t.Helper()
	select {
	case at := <-rings:
		return at
	case <-time.After(patience):
		t.Fatal("the alarm does not call back")
		return 0
	}
}

func wantSilence(t *testing.T, rings <-chan time.Duration) {
	t.Helper()
	select {
	case <-rings:
		t.Error("the alarm calls back when it should not")
	default:
	}
}

func TestAlarmCallsBackOnceAndNotEarly(t *testing.T) {
	l := newLoop(t, Config{})
	a, rings := ringing(t, l)
	turns(t, l)
	wantSilence(t, rings) // it was not set
	for _, after := range []time.Duration{-time.Hour, 0, 300 * time.Microsecond, 3 * time.Millisecond} {
		var at time.Duration
		onLoop(t, l, func() { at = Monotonic() + after; a.Set(at) })
		if got := waitForRing(t, rings); got < at {
			t.Errorf("set for %v, it called back %v early", after, at-got)
		}
		turns(t, l)
		wantSilence(t, rings)
	}
}

func TestAlarmIsMovedByAnotherSet(t *testing.T) {
	l := newLoop(t, Config{})
	a, rings := ringing(t, l)
	onLoop(t, l, func() { a.Set(Monotonic() + time.Hour); a.Set(Monotonic()) })
	waitForRing(t, rings)
	// Set anew when the loop knows already that it is due, but has not come to it.
	onLoop(t, l, func() {
		for a.Set(Monotonic()); !isReady(a.fd); {
		}
		a.Set(Monotonic() + time.Hour)
		a.onReadable(Woken(Readable))
	})
	turns(t, l)
	wantSilence(t, rings)
}

func TestAlarmIsSetByItsCallback(t *testing.T) {
	l := newLoop(t, Config{})
	var a *Alarm
	left, done := 5, make(chan struct{})
	a, err := l.NewAlarm(func() {
		if left--; left == 0 {
			close(done)
			return
		}
		a.Set(Monotonic() + 100*time.Microsecond)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { onLoop(t, l, a.Close) })
	onLoop(t, l, func() { a.Set(0) })
	wait(t, done, "the alarm to be set by its own callback")
}

// TestClosedAlarmIsSilent: the loop may be told of an alarm before another
// callback of the same batch closes it, and its fd's number may be another
// timer's by then.
func TestClosedAlarmIsSilent(t *testing.T) {
	l := newLoop(t, Config{})
	a, rings := ringing(t, l)
	onLoop(t, l, func() {
		a.Close()
		other, err := newTimerFD()
		if err != nil || other != a.fd {
			t.Errorf("fd %d, want %d again, which is free: %v", other, a.fd, err)
		}
		defer unix.Close(other)
		unix.TimerfdSettime(other, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(1)}, nil)
		for !isReady(other) {
		}
		a.onReadable(Woken(Readable))
	})
	wantSilence(t, rings)
}

// isReady reports whether fd is readable now (poll(2)).
func isReady(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}
