package netpoll

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A mailbox queues tasks for a loop and wakes it through an eventfd(2): one
// write for as many tasks as gather until the loop comes to run them.
type mailbox struct {
	fd int // Fixed after newMailbox.

	mu     sync.Mutex
	queue  []func() // Guarded by mu.
	closed bool     // Guarded by mu.

	running []func() // Owned by the loop: the slice that queue is swapped with.
}

// maxKept is for how many tasks a mailbox keeps memory.
const maxKept = 1024

func newMailbox() (*mailbox, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create an eventfd: %w", err)
	}
	return &mailbox{fd: fd}, nil
}

func (m *mailbox) post(task func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, task)
	if len(m.queue) == 1 {
		// Under the lock, so that the fd cannot be closed in between. It
		// cannot block: the counter is far from full.
		unix.Write(m.fd, wake)
	}
	return true
}

var wake = binary.NativeEndian.AppendUint64(nil, 1)

// run runs the tasks that were posted so far. Tasks that these post run in the loop's
// next turn, after the fds that are ready.
func (m *mailbox) run() {
	readCounter(m.fd)
	m.mu.Lock()
	m.queue, m.running = m.running[:0], m.queue
	m.mu.Unlock()
	for i, task := range m.running {
		m.running[i] = nil
		task()
	}
	if cap(m.running) > maxKept {
		m.running = nil
	}
}

func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.queue = nil
	m.mu.Unlock()
}

// readCounter takes the 64-bit count out of an eventfd or a timerfd; ok is
// false when there is nothing in it.
func readCounter(fd int) (n uint64, ok bool) {
	var buf [8]byte
	if got, err := Read(fd, buf[:]); err != nil || got != len(buf) {
		return 0, false
	}
	return binary.NativeEndian.Uint64(buf[:]), true
}
