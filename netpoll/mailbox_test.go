package netpoll

import (
	"runtime"
	"slices"
	"testing"
	"weak"
)

func newTestMailbox(t testing.TB) *mailbox {
	t.Helper()
	m, err := newMailbox()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseFD(m.fd) })
	return m
}

func TestManyTasksAreOneWakeUp(t *testing.T) {
	m := newTestMailbox(t)
	if _, ok := readCounter(m.fd); ok {
		t.Error("a new mailbox wakes its loop")
	}
	var order []int
	for i := range 3 {
		m.post(func() { order = append(order, i) })
	}
	if n, ok := readCounter(m.fd); !ok || n != 1 {
		t.Errorf("woken %d times", n)
	}
	m.run()
	if !slices.Equal(order, []int{0, 1, 2}) {
		t.Errorf("order: %v", order)
	}
	m.run()
	if len(order) != 3 {
		t.Errorf("a task ran twice: %v", order)
	}
}

func TestRunLeavesWhatItsTasksPost(t *testing.T) {
	m := newTestMailbox(t)
	runs := 0
	var again func()
	again = func() {
		runs++
		m.post(again)
	}
	m.post(again)
	for want := 1; want <= 5; want++ { // both slices, several times
		if n, ok := readCounter(m.fd); !ok || n != 1 {
			t.Errorf("before run %d the loop is woken %d times", want, n)
		}
		if m.run(); runs != want {
			t.Fatalf("%d tasks ran, want %d", runs, want)
		}
	}
}

func TestClosedMailboxDropsItsTasks(t *testing.T) {
	m := newTestMailbox(t)
	task := func() { t.Error("a dropped task ran") }
	if !m.post(task) {
		t.Error("an open mailbox takes nothing")
	}
	m.close()
	if m.post(task) {
		t.Error("a closed mailbox takes a task")
	}
	m.run()
}

// TestTasksThatRanAreForgotten: the slices are used again and again, and what
// they hold would otherwise live as long as the loop.
func TestTasksThatRanAreForgotten(t *testing.T) {
	m := newTestMailbox(t)
	var held []weak.Pointer[[1 << 16]byte]
	for range 4 {
		big := new([1 << 16]byte)
		held = append(held, weak.Make(big))
		m.post(func() { big[0]++ })
	}
	m.run()
	eventually(t, "the tasks are collected", func() bool {
		runtime.GC()
		return !slices.ContainsFunc(held, func(p weak.Pointer[[1 << 16]byte]) bool { return p.Value() != nil })
	})
	runtime.KeepAlive(m)
}

func TestPostAllocatesNothing(t *testing.T) {
	m := newTestMailbox(t)
	task := func() {}
	n := testing.AllocsPerRun(1000, func() {
		m.post(task)
		m.post(task)
		m.run()
	})
	if n != 0 {
		t.Errorf("%v allocations for two tasks", n)
	}
}

// TestMailboxKeepsLittle: the memory of a burst of tasks goes.
func TestMailboxKeepsLittle(t *testing.T) {
	m := newTestMailbox(t)
	for range 10 * maxKept {
		m.post(func() {})
	}
	m.run()
	m.run() // the burst's slice would be the next one to be used
	if n := cap(m.queue) + cap(m.running); n > 2*maxKept {
		t.Errorf("room for %d tasks is kept", n)
	}
}
