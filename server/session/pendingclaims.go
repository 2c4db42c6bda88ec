package session

import (
	"slices"
	"sync"
	"time"
)

// While another process hands over to this one, a session that is not known
// here may still be there. A claim of such a session is pending until all
// sessions have come.

// pendingClaims are those claims.
type pendingClaims struct {
	mu       sync.Mutex
	awaiting bool            // Guarded by mu: sessions are still to come.
	claims   []*pendingClaim // Guarded by mu: in the order in which they were made.
}

// A pendingClaim is the entry of its lease until it is answered.
type pendingClaim struct {
	holder
	since time.Duration
	ended bool // Owned by the owner's loop: the claim is answered or released.
}

// Await says that sessions of another process are to come. Until Complete,
// claims of sessions that are not known are pending.
func (m *Memory) Await() {
	m.pending.mu.Lock()
	defer m.pending.mu.Unlock()
	m.pending.awaiting = true
}

// Complete says that no more will come.
func (m *Memory) Complete() {
	m.pending.mu.Lock()
	m.pending.awaiting = false
	claims := m.pending.claims
	m.pending.claims = nil
	m.pending.mu.Unlock()
	m.answer(claims, nil)
}

// add makes a claim pending while sessions are awaited; otherwise it reports
// false.
func (p *pendingClaims) add(h holder, id ID, now time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awaiting {
		claim := &pendingClaim{holder: h, since: now}
		h.lease.id, h.lease.entry = id, claim
		p.claims = append(p.claims, claim)
	}
	return p.awaiting
}

// removeBefore removes the claims that were made before then, and returns them.
func (p *pendingClaims) removeBefore(then time.Duration) []*pendingClaim {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.claims) && p.claims[n].since < then {
		n++
	}
	old := slices.Clone(p.claims[:n])
	p.claims = slices.Delete(p.claims, 0, n)
	return old
}

// answer carries the claims out, or fails them with err, on their owners' loops.
func (m *Memory) answer(claims []*pendingClaim, err error) {
	for _, p := range claims {
		p.owner.Loop().Post(func() {
			if p.ended {
				return
			}
			p.ended = true
			resumed, err := false, err
			if err == nil {
				resumed, err = m.Claim(p.lease, p.lease.id, p.owner)
			}
			if err != ErrPending { // sessions of yet another process are to come
				p.owner.OnClaimed(resumed, err)
			}
		})
	}
}

// statesMost is how many sessions Export gives at once.
const statesMost = 4096

// Export gives all sessions to yield, some at a time, in the order in which Import wants
// them. yield reports whether they are given: those are gone here, and the others stay.
// Export ends at yield's first error. Whoever still holds a session can commit nothing to
// it any more.
func (m *Memory) Export(yield func([]State) (given bool, err error)) error {
	states := m.exportHeld()
	now := m.config.Now()
	for _, r := range m.idle.youngestFirst() {
		s := m.shard(r.id)
		s.mu.Lock()
		if s.sessions.find(r.id) == &r.Lease {
			states = append(states, State{ID: r.id, Count: r.Committed(), Idle: now - r.since})
		}
		s.mu.Unlock()
	}
	for chunk := range slices.Chunk(states, statesMost) {
		given, err := yield(chunk)
		if given {
			m.forget(chunk)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forget drops sessions that another process has now.
func (m *Memory) forget(states []State) {
	for _, state := range states {
		s := m.shard(state.ID)
		s.mu.Lock()
		if l := s.sessions.find(state.ID); l != nil {
			m.end(l)
			m.len.Add(-1)
			s.sessions.remove(state.ID)
		}
		s.mu.Unlock()
	}
}

func (m *Memory) exportHeld() (states []State) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for l := range s.sessions.all {
			if l.idle() == nil {
				states = append(states, State{ID: l.id, Count: l.export()})
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
	l := s.sessions.find(state.ID)
	switch {
	case l == nil:
		m.len.Add(1)
	case l.idle() == nil:
		return // its holder has a count of its own
	}
	_, count := m.end(l)
	r := newIdle(state.ID, max(count, state.Count))
	s.sessions.put(&r.Lease)
	m.idle.pushOldest(r, m.config.Now()-state.Idle)
}
