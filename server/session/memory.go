package session

import (
	"context"
	"encoding/binary"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// shards is how many maps the sessions are spread over, so that connections
// that come and go on several workers seldom wait for each other.
const shards = 64

// MemoryConfig is what a Memory is held to.
type MemoryConfig struct {
	TTL     time.Duration        // how long a session is kept after its last owner left
	Max     int                  // sessions, connected or not
	Timeout time.Duration        // how long a claim waits for what another process has to give
	Now     func() time.Duration // a monotonic clock
}

// Memory is the Store within this process. Sessions are gone with it.
type Memory struct {
	config MemoryConfig
	shards [shards]shard
	idle   idleList
	len    atomic.Int64

	starting sync.Mutex // held while a new session is started; taken before a shard's
	pending  pendingClaims

	// Evicted and Expired count the sessions that were dropped because the
	// store was full, and because their time was over.
	Evicted, Expired atomic.Uint64
}

type shard struct {
	mu       sync.Mutex
	sessions map[ID]*record
}

// A record is one session. While it has a holder, the count is in that one's
// lease.
type record struct {
	id ID // Fixed.

	// Guarded by the shard's mutex.
	holder // zero while it has no owner
	count  uint64

	idleSince time.Duration

	// Guarded by the idle list's mutex.
	prev, next *record
}

// ID implements entry.
func (r *record) ID() ID { return r.id }

// NewMemory returns an empty store.
func NewMemory(config MemoryConfig) *Memory {
	m := &Memory{config: config}
	for i := range m.shards {
		m.shards[i].sessions = make(map[ID]*record)
	}
	m.idle.init()
	return m
}

var _ Store = (*Memory)(nil)

// Len is how many sessions there are, connected or not.
func (m *Memory) Len() int { return int(m.len.Load()) }

// Available implements Store.
func (m *Memory) Available() bool { return true }

// Close implements Store.
func (m *Memory) Close(context.Context) error { return nil }

// Mint implements Store.
func (m *Memory) Mint(l *Lease, owner Owner) error {
	_, _, err := m.start(holder{l, owner}, NewID())
	return err
}

// Claim implements Store; it is pending only while another process may have
// the session (Await).
func (m *Memory) Claim(l *Lease, id ID, owner Owner) (resumed bool, err error) {
	h := holder{l, owner}
	previous, resumed := m.take(h, id, false)
	if !resumed {
		if m.pending.add(h, id, m.config.Now()) {
			return false, ErrPending
		}
		if previous, resumed, err = m.start(h, id); err != nil {
			return false, err
		}
	}
	if previous != nil {
		previous.OnTakenOver()
	}
	return resumed, nil
}

// A holder is a lease and its owner.
type holder struct {
	lease *Lease
	owner Owner
}

// start gives h a session that was not known just now. Sessions start one at a
// time: otherwise a claim could find the store full while another claim starts
// the same session.
func (m *Memory) start(h holder, id ID) (previous Owner, resumed bool, err error) {
	m.starting.Lock()
	defer m.starting.Unlock()
	if previous, resumed = m.take(h, id, false); resumed {
		return previous, true, nil
	}
	if err := m.reserve(); err != nil {
		return nil, false, err
	}
	previous, resumed = m.take(h, id, true)
	return previous, resumed, nil
}

// Commit implements Store; nothing is ever pending.
func (m *Memory) Commit(l *Lease) Outcome {
	if l.commit() {
		return Committed
	}
	return Revoked
}

// Release implements Store.
func (m *Memory) Release(l *Lease) {
	if p, ok := l.entry.(*pendingClaim); ok {
		p.ended = true
	}
	r, ok := l.entry.(*record)
	if !ok {
		return
	}
	s := m.shard(r.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.lease != l {
		return
	}
	r.holder, r.count = holder{}, l.revoke()
	m.idle.push(r, m.config.Now())
}

// Expire forgets the sessions whose time is over, and fails claims that have
// waited too long. Somebody has to call it now and then.
func (m *Memory) Expire() {
	now := m.config.Now()
	m.answer(m.pending.removeBefore(now-m.config.Timeout), ErrUnavailable)
	for m.dropOldest(m.isExpired) {
		m.Expired.Add(1)
	}
}

// Shrink implements Store.
func (m *Memory) Shrink() {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		s.sessions = maps.Collect(maps.All(s.sessions))
		s.mu.Unlock()
	}
}

func (m *Memory) shard(id ID) *shard {
	return &m.shards[binary.LittleEndian.Uint64(id[8:])%shards]
}

// take gives the session to h if it is known; previous is the owner whose lease
// this revoked. If it is not known, and reserved says that there is room for it,
// take starts it. Room that is not needed is given back.
func (m *Memory) take(h holder, id ID, reserved bool) (previous Owner, known bool) {
	s := m.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.sessions[id]
	known = r != nil && !m.isExpired(r)
	switch {
	case !known && !reserved:
		return nil, false
	case r == nil:
		r = &record{id: id}
		s.sessions[id] = r
		return r.grant(h), false
	case reserved:
		m.len.Add(-1)
	}
	if r.lease == nil {
		m.idle.remove(r)
	}
	if !known {
		r.count = 0
	}
	return r.grant(h), known
}

// isExpired reports whether a session's time to live has passed.
func (m *Memory) isExpired(r *record) bool {
	return r.lease == nil && m.config.Now()-r.idleSince >= m.config.TTL
}

// grant makes h the holder and returns the previous owner, if there was one.
func (r *record) grant(h holder) (previous Owner) {
	if r.lease != nil {
		previous, r.count = r.owner, r.lease.revoke()
	}
	r.holder, h.lease.entry = h, r
	h.lease.grant(r.count)
	return previous
}

// reserve makes room for one more session.
func (m *Memory) reserve() error {
	for m.len.Add(1) > int64(m.config.Max) {
		m.len.Add(-1)
		if m.dropOldest(func(*record) bool { return true }) {
			m.Evicted.Add(1)
		} else if m.len.Load() >= int64(m.config.Max) {
			return ErrFull
		}
	}
	return nil
}

// dropOldest forgets the session that has been without an owner for the longest
// time, if mayDrop says so. It reports whether it did.
func (m *Memory) dropOldest(mayDrop func(*record) bool) bool {
	for {
		r := m.idle.oldest()
		if r == nil {
			return false
		}
		s := m.shard(r.id)
		s.mu.Lock()
		if r.lease != nil || s.sessions[r.id] != r { // it was taken or dropped meanwhile
			s.mu.Unlock()
			continue
		}
		ok := mayDrop(r)
		if ok {
			m.len.Add(-1) // first: a claim that finds the list empty must see the room
			m.idle.remove(r)
			delete(s.sessions, r.id)
		}
		s.mu.Unlock()
		return ok
	}
}

// An idleList is a ring of the records without an owner, the longest first.
// Its lock is taken inside a shard's.
type idleList struct {
	mu   sync.Mutex
	root record
}

func (l *idleList) init() { l.root.prev, l.root.next = &l.root, &l.root }

func (l *idleList) oldest() *record {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root.next == &l.root {
		return nil
	}
	return l.root.next
}

// pushOldest adds r, of which the caller says that it is the oldest.
func (l *idleList) pushOldest(r *record, since time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.idleSince = since
	r.prev, r.next = &l.root, l.root.next
	r.next.prev, l.root.next = r, r
}

// youngestFirst is all of them.
func (l *idleList) youngestFirst() (all []*record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := l.root.prev; r != &l.root; r = r.prev {
		all = append(all, r)
	}
	return all
}

// push adds r; the clock only goes forward, so it is the youngest.
func (l *idleList) push(r *record, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.idleSince = now
	r.prev, r.next = l.root.prev, &l.root
	r.prev.next, l.root.prev = r, r
}

func (l *idleList) remove(r *record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.prev.next, r.next.prev = r.next, r.prev
	r.prev, r.next = nil, nil
}
