package session

import (
	"slices"
	"sync"
	"time"
)

// While another process hands over to this one, a session that is not known
// here may be there still. A claim of one waits until all of them have come.

// absentees are the claims that wait.
type absentees struct {
	mu       sync.Mutex
	awaiting bool        // Guarded by mu: sessions are still to come.
	claims   []*absentee // Guarded by mu: in the order in which they were made.
}

// An absentee is one of them. It is the entry of its lease until it is answered.
type absentee struct {
	holder
	id    ID
	since time.Duration
	over  bool // Owned by the owner's loop: it is answered or released.
}

// ID implements entry.
func (a *absentee) ID() ID { return a.id }

// Await says that sessions of another process are to come. Until Complete,
// claims of sessions that are not known are pending.
func (m *Memory) Await() {
	m.absent.mu.Lock()
	defer m.absent.mu.Unlock()
	m.absent.awaiting = true
}

// Complete says that no more will come.
func (m *Memory) Complete() {
	m.absent.mu.Lock()
	m.absent.awaiting = false
	claims := m.absent.claims
	m.absent.claims = nil
	m.absent.mu.Unlock()
	m.answer(claims, nil)
}

// wait reports whether a claim has to wait, and has it do so.
func (w *absentees) wait(h holder, id ID, now time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.awaiting {
		a := &absentee{holder: h, id: id, since: now}
		h.lease.entry = a
		w.claims = append(w.claims, a)
	}
	return w.awaiting
}

// before takes out the claims that were made before then.
func (w *absentees) before(then time.Duration) []*absentee {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(w.claims) && w.claims[n].since < then {
		n++
	}
	old := slices.Clone(w.claims[:n])
	w.claims = slices.Delete(w.claims, 0, n)
	return old
}

// answer carries the claims out, or fails them with err, on their owners' loops.
func (m *Memory) answer(claims []*absentee, err error) {
	for _, a := range claims {
		a.owner.Loop().Post(func() {
			if a.over {
				return
			}
			a.over = true
			resumed, err := false, err
			if err == nil {
				resumed, err = m.Claim(a.lease, a.id, a.owner)
			}
			if err != ErrPending { // sessions of yet another process are to come
				a.owner.OnClaimed(resumed, err)
			}
		})
	}
}

// statesMost is how many sessions Export gives at once.
const statesMost = 4096

// Export gives all sessions to yield, some at a time, in the order in which
// Import wants them, and ends at its first error. Whoever still holds one can
// commit nothing to it any more.
func (m *Memory) Export(yield func([]State) error) error {
	states := m.exportHeld()
	now := m.config.Now()
	for _, r := range m.idle.youngestFirst() {
		s := m.shard(r.id)
		s.mu.Lock()
		if r.lease == nil && s.sessions[r.id] == r {
			states = append(states, State{ID: r.id, Count: r.count, Idle: now - r.idleSince})
		}
		s.mu.Unlock()
	}
	for chunk := range slices.Chunk(states, statesMost) {
		if err := yield(chunk); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) exportHeld() (states []State) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for _, r := range s.sessions {
			if r.lease != nil {
				states = append(states, State{ID: r.id, Count: r.lease.revoke()})
			}
		}
		s.mu.Unlock()
	}
	return states
}

// Import takes in sessions that another process has exported: the youngest
// first, each older than all that have no owner here.
func (m *Memory) Import(states []State) {
	for _, state := range states {
		m.importOne(state)
	}
}

func (m *Memory) importOne(state State) {
	s := m.shard(state.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, known := m.settle(s, state)
	if r.lease != nil {
		return
	}
	if known {
		m.idle.remove(r)
	}
	m.idle.pushOldest(r, m.config.Now()-state.Idle)
}
