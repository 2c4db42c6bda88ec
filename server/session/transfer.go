package session

import "time"

// A State is a session as one process gives it to another.
type State struct {
	ID    [16]byte
	Count uint64
	Idle  time.Duration // since its last owner left; 0 while it has one
	Token string        // the lease's in Redis, "" in the embedded store
	Rival string        // the token that the owner's key there may name instead
	Held  bool          // Redis has the count under Token
	Known bool          // somebody has had the session before
	Owned bool          // Token was the owner's once
}

// Lend implements Store. A lease that is revoked is refused until its owner knows
// of it: the other process would make it the owner again.
func (m *Memory) Lend(l *Lease) (State, bool) {
	count := l.committed.Load()
	return State{ID: l.ID(), Count: count &^ marks}, count&revoked == 0
}

// TakeBack implements Store.
func (m *Memory) TakeBack(*Lease) {}

// GiveAway implements Store.
func (m *Memory) GiveAway(l *Lease) {
	s := m.shard(l.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.revoke()
	if s.sessions.find(l.id) == l {
		m.len.Add(-1)
		s.sessions.remove(l.id)
	}
}

// Adopt implements Store. The session is taken in even if the store is full. Clients may
// have started it here too, before it came. Then nobody can say which count is right, and
// the higher one stands.
func (m *Memory) Adopt(l *Lease, state State, owner Owner) {
	if previous := m.adopt(holder{l, owner}, state); previous != nil {
		previous.OnTakenOver()
	}
}

func (m *Memory) adopt(h holder, state State) (previous Owner) {
	s := m.shard(state.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.sessions.find(state.ID)
	if l == nil {
		m.len.Add(1)
	}
	previous, count := m.end(l)
	h.hold(s, state.ID, max(count, state.Count))
	return previous
}

// Lend implements Store.
func (s *Redis) Lend(l *Lease) (State, bool) {
	r := l.entry.(*redisLease)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.lend() {
		return State{}, false
	}
	return r.state(l.id), true
}

// TakeBack implements Store.
func (s *Redis) TakeBack(l *Lease) {
	r := l.entry.(*redisLease)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.takeBack()
	s.enqueue(r)
}

// GiveAway implements Store.
func (s *Redis) GiveAway(l *Lease) {
	r := l.entry.(*redisLease)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hasGiven = true
	r.giveAway()
	s.dropEnded(r)
}

// Adopt implements Store. The lease keeps its token, so that Redis need not be
// asked. That it is still the owner is looked at when no more leases come: a handover does
// not share the processors with that.
func (s *Redis) Adopt(l *Lease, state State, owner Owner) {
	now := s.config.Now()
	r := &redisLease{slot: s.slotOf(state.ID), owner: owner, ownership: adoptedOwnership(state, now)}
	l.id, l.entry = state.ID, r
	l.grant(state.Count)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.loop = s.loopNumber(owner)
	s.leases.add(r)
	s.listenTo(r.token.lease.instance)
	if r.phase == phaseOwned {
		s.adoptedAt = now
	} else { // Redis may not have its count
		s.enqueue(r)
	}
}

// adoptionRest is how long no lease has come when the last one of a handover has.
const adoptionRest = 500 * time.Millisecond

// lookAtAdopted has the leases of a handover looked at, once it is over.
func (s *Redis) lookAtAdopted(now time.Duration) {
	s.mu.Lock()
	latest := s.adoptedAt
	s.mu.Unlock()
	if latest == 0 || now-latest < adoptionRest {
		return
	}
	s.renew()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adoptedAt == latest {
		s.adoptedAt = 0
	}
}
