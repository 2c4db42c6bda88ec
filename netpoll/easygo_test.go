package netpoll

import (
	"slices"
	"testing"

	"github.com/mailru/easygo/netpoll"
	"golang.org/x/sys/unix"
)

// The tests of this file pin what the package's contract says about easygo's
// Epoll. Where one fails after an update, the rule that it stands for may go.

// closed is the event of a callback that Close makes; easygo does not export it.
const closed netpoll.EpollEvent = 0x20

func newEpoll(t testing.TB) *netpoll.Epoll {
	t.Helper()
	epoll, err := netpoll.EpollCreate(&netpoll.EpollConfig{
		OnWaitError: func(err error) { t.Errorf("the epoll instance broke: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { epoll.Close() })
	return epoll
}

// TestEasygoCallsBackAfterDel is why an owner of an fd returns at once when it
// has closed it: the callbacks of a batch are looked up before one of them runs.
func TestEasygoCallsBackAfterDel(t *testing.T) {
	epoll := newEpoll(t)
	gate, openGate := socketpair(t)
	a, peerOfA := socketpair(t)
	b, peerOfB := socketpair(t)
	inGate, leaveGate := make(chan struct{}), make(chan struct{})
	epoll.Add(gate, netpoll.EPOLLIN, func(netpoll.EpollEvent) {
		epoll.Del(gate)
		close(inGate)
		<-leaveGate // until both are ready, so that they come in one batch
	})
	called := make(chan struct{}, 10)
	both := func(events netpoll.EpollEvent) {
		if events&closed == 0 {
			epoll.Del(a)
			epoll.Del(b)
			called <- struct{}{}
		}
	}
	epoll.Add(a, netpoll.EPOLLIN, both)
	epoll.Add(b, netpoll.EPOLLIN, both)
	send(t, openGate, "x")
	wait(t, inGate, "the gate")
	send(t, peerOfA, "x")
	send(t, peerOfB, "x")
	close(leaveGate)
	wait(t, called, "the first callback")
	wait(t, called, "the second, although the first deleted it")
}

// TestEasygoKeepsTheEntryOfAFailedAdd is why Loop.Add deletes it.
func TestEasygoKeepsTheEntryOfAFailedAdd(t *testing.T) {
	epoll := newEpoll(t)
	file, err := unix.Open("/proc/self/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(file)
	add := func(want error) {
		t.Helper()
		if err := epoll.Add(file, netpoll.EPOLLIN, nil); err != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	add(unix.EPERM)
	add(netpoll.ErrRegistered)
	if epoll.Del(file) == nil {
		t.Error("the kernel knew the fd")
	}
	add(unix.EPERM)
}

// TestEasygoCloseRunsTheCallbacks is why only a Loop without fds is closed.
func TestEasygoCloseRunsTheCallbacks(t *testing.T) {
	epoll := newEpoll(t)
	ours, _ := socketpair(t)
	var events netpoll.EpollEvent
	var goroutine string
	epoll.Add(ours, netpoll.EPOLLIN, func(e netpoll.EpollEvent) { events, goroutine = e, goroutineID() })
	if err := epoll.Close(); err != nil {
		t.Fatal(err)
	}
	if events != closed || goroutine != goroutineID() {
		t.Errorf("called with %#x on goroutine %q; Close is on %s", uint32(events), goroutine, goroutineID())
	}
}

// TestEasygoReportsAnFDThatLivesOnElsewhere is why Del comes before a close or
// a handover.
func TestEasygoReportsAnFDThatLivesOnElsewhere(t *testing.T) {
	epoll := newEpoll(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseFD(pair[1])
	copied, err := unix.FcntlInt(uintptr(pair[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{})
	epoll.Add(pair[0], netpoll.EPOLLIN, func(events netpoll.EpollEvent) {
		if events&closed == 0 {
			CloseFD(copied) // the last copy, which ends it
			close(called)
		}
	})
	CloseFD(pair[0])
	send(t, pair[1], "x")
	wait(t, called, "an event of a closed fd")
}

// TestEasygoAllocatesNothing: each connection is added and deleted, and a slow
// one modified over and over.
func TestEasygoAllocatesNothing(t *testing.T) {
	epoll := newEpoll(t)
	ours, _ := socketpair(t)
	callback := func(netpoll.EpollEvent) {}
	n := testing.AllocsPerRun(1000, func() {
		epoll.Add(ours, netpoll.EPOLLIN, callback)
		epoll.Mod(ours, netpoll.EPOLLIN|netpoll.EPOLLRDHUP)
		epoll.Del(ours)
	})
	if n != 0 {
		t.Errorf("%v allocations for Add, Mod and Del", n)
	}
}

// TestEasygoFDsSurviveExec is why the server never forks.
func TestEasygoFDsSurviveExec(t *testing.T) {
	before := openFDs(t)
	newEpoll(t)
	var found []string
	for fd, target := range openFDs(t) {
		if before[fd] != "" {
			continue
		}
		if descriptor, _ := flagsOf(t, fd); descriptor&unix.FD_CLOEXEC != 0 {
			t.Errorf("%s is close-on-exec", target)
		}
		found = append(found, target)
	}
	slices.Sort(found)
	if !slices.Equal(found, []string{"anon_inode:[eventfd]", "anon_inode:[eventpoll]"}) {
		t.Errorf("the fds are %v", found)
	}
}
