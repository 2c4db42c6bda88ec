package netpoll

import (
	"time"

	"golang.org/x/sys/unix"
)

// yields says when a loop in traffic lets others run: once in every, if the callback
// before began less than gap ago. A loop that waits for its fds lets them run anyway.
type yields struct {
	every, gap time.Duration
	at         time.Duration // when the next one is, on the loop's clock
}

func (y *yields) isDue(now, before time.Duration) bool { return now >= y.at && now-before < y.gap }

// goroutineYields are of this processor's other goroutines: see yield. threadYields are of
// this processor's other threads: see yieldThread.
func goroutineYields() yields { return yields{every: 8 * time.Millisecond, gap: 5 * time.Millisecond} }
func threadYields() yields    { return yields{every: time.Millisecond, gap: 100 * time.Microsecond} }

// giveWay lets those run for whom it is time, and reports whether it was time for any.
func (l *Loop) giveWay(now time.Duration) bool {
	goroutines, threads := l.goroutines.isDue(now, l.now), l.threads.isDue(now, l.now)
	if goroutines {
		yield()
		l.goroutines.at = l.At(Monotonic()) + l.goroutines.every
	}
	if threads {
		yieldThread()
		l.threads.at = l.At(Monotonic()) + l.threads.every
	}
	return goroutines || threads
}

// yieldThread puts the thread behind the others that wait for its processor: see
// sched_yield(2), which returns at once if there are none.
//
// Without it a loop that is busy keeps its processor for a whole slice of time (3 ms),
// while another loop, or the peer of its connections, waits. When that one runs at last, the
// loop has nothing left to do, and sleeps and wakes for each few messages: a change of
// threads costs as much as a message. The kernel knows only the threads of one scheduling
// group (a session, a container) as others: see sched(7), autogroup.
func yieldThread() { unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
