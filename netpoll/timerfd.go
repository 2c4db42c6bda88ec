package netpoll

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// newTimerFD returns a timerfd that is not armed (timerfd_create(2)).
func newTimerFD() (int, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("cannot create a timerfd: %w", err)
	}
	return fd, nil
}

// setTimerFD lets a timerfd expire once after a time, now if that is not positive,
// instead of whenever it was set for (timerfd_settime(2)).
func setTimerFD(fd int, after time.Duration) {
	after = max(1, after) // 0 would disarm it
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}, nil); err != nil {
		panic(fmt.Sprintf("BUG: cannot set a timerfd: %v", err))
	}
}
