package netpoll

import (
	"errors"
	"maps"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPoolStartsAndStops(t *testing.T) {
	check := leakCheck(t)
	fatal := func(err error) { t.Error(err) }
	var asked []int
	p, err := NewPool(3, func(i int) Config {
		asked = append(asked, i)
		return Config{Fatal: fatal}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(asked) != 3 || asked[0] != 0 || asked[1] != 1 || asked[2] != 2 {
		t.Errorf("asked for the configuration of %v", asked)
	}
	goroutines := make(map[string]bool)
	for _, l := range p.Loops {
		onLoop(t, l, func() { goroutines[goroutineID()] = true })
	}
	if len(p.Loops) != 3 || len(goroutines) != 3 {
		t.Errorf("%d loops on %d goroutines, want 3 on 3", len(p.Loops), len(goroutines))
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, l := range p.Loops {
		if l.Post(func() {}) {
			t.Error("a loop of a closed pool takes a task")
		}
	}
	check()
}

// TestPoolThatCannotStartLeavesNothing runs out of file descriptors at each
// point of the start.
func TestPoolThatCannotStartLeavesNothing(t *testing.T) {
	check := leakCheck(t)
	for n := range 8 { // of a Loop's four fds: two of easygo, the eventfd, the timerfd
		if n%4 == 1 {
			continue // easygo itself leaks its epoll fd when it gets no eventfd
		}
		var p *Pool
		var err error
		withFreeFDs(t, n, func() {
			p, err = NewPool(2, func(int) Config {
				return Config{Fatal: func(err error) { t.Errorf("with %d fds: %v", n, err) }}
			})
		})
		if p != nil || !errors.Is(err, unix.EMFILE) {
			t.Errorf("with %d fds: %v, want EMFILE", n, err)
		}
		check()
	}
}

// withFreeFDs runs do while the process may open n more file descriptors.
func withFreeFDs(t testing.TB, n int, do func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	open := maps.Clone(openFDs(t))
	lowered := limit
	for lowered.Cur = 0; ; lowered.Cur++ { // the limit is on the number, and gaps count
		if open[int(lowered.Cur)] != "" {
			continue
		}
		if n == 0 {
			break
		}
		n--
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lowered); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	do()
}
