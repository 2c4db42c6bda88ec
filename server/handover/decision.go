package handover

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A decision says whose a batch is. It is the file descriptor of a counter in the
// kernel, see eventfd(2), that both processes hold: a read empties it, and only one
// reader gets what was in it. It cannot be late or lost as a word can, and it outlives
// either process.
type decision int

// What is in the counter. It is empty once somebody has taken the decision.
const (
	undecided = 1 // the old process owns the batch; either may take the decision
	begun     = 2 // the new process has taken it, and serves the batch
)

func newDecision() (decision, error) {
	fd, err := unix.Eventfd(undecided, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	return decision(fd), err
}

func (d decision) close() { unix.Close(int(d)) }

// empty returns what was in the counter, 0 if it was empty already.
func (d decision) empty() uint64 {
	var was [8]byte
	if n, err := unix.Read(int(d), was[:]); n != len(was) || err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(was[:])
}

// take is the new process's claim. If it reports true, the old process does not serve
// the batch any more.
func (d decision) take() bool { return d.empty() == undecided }

// begin says that the new process, which has taken the batch, serves it from now on.
func (d decision) begin() {
	if _, err := unix.Write(int(d), binary.NativeEndian.AppendUint64(nil, begun)); err != nil {
		panic("BUG: a decision cannot be written: " + err.Error())
	}
}

// settle is the old process's claim, once the exchange has broken. It reports true if
// the batch is the new process's. If not, the new one never serves it: gone says that it
// has ended.
func (d decision) settle(gone bool) (given bool) {
	switch d.empty() {
	case undecided:
		return false
	case begun:
		return true
	}
	// The new process has taken the batch, and has not begun. If it lives it will.
	return !gone
}
