package session

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// shards is how many tables the sessions are spread over, so that connections
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
	sessions table // Guarded by mu.
}

// An idleSession is a session that nobody holds. Its own lease, which has the count,
// stands in the table for it. A session that somebody holds has no other memory than that
// one's lease.
type idleSession struct {
	Lease
	since time.Duration // Fixed after push.

	// Guarded by the idle list's mutex.
	older, younger *idleSession
}

// newIdle is a session with a count, not in a table or list yet.
func newIdle(id ID, count uint64) *idleSession {
	r := &idleSession{}
	r.id, r.entry = id, r
	r.grant(count)
	return r
}

// idle is the session of a lease in the table that nobody holds; nil if somebody does.
func (l *Lease) idle() *idleSession {
	r, _ := l.entry.(*idleSession)
	return r
}

// NewMemory returns an empty store.
func NewMemory(config MemoryConfig) *Memory {
	m := &Memory{config: config}
	m.idle.init()
	return m
}

var _ Store = (*Memory)(nil)

// Len is how many sessions there are, connected or not.
func (m *Memory) Len() int { return int(m.len.Load()) }

// Available implements Store.
func (m *Memory) Available() bool { return true }

// Trouble implements Store.
func (m *Memory) Trouble() string { return "" }

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

// hold makes h's the lease on a session.
func (h holder) hold(s *shard, id ID, count uint64) {
	h.lease.id, h.lease.entry = id, h.owner
	h.lease.grant(count)
	s.sessions.put(h.lease)
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
	s := m.shard(l.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions.find(l.id) != l {
		return
	}
	r := newIdle(l.id, l.revoke())
	s.sessions.put(&r.Lease)
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
		s.sessions.resize()
		s.mu.Unlock()
	}
}

func (m *Memory) shard(id ID) *shard { return &m.shards[id.hash()%shards] }

// take gives the session to h if it is known; previous is the owner whose lease
// this revoked. If it is not known, and reserved says that there is room for it,
// take starts it. Room that is not needed is given back.
func (m *Memory) take(h holder, id ID, reserved bool) (previous Owner, known bool) {
	s := m.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.sessions.find(id)
	known = l != nil && !m.isExpired(l)
	if !known && !reserved {
		return nil, false
	}
	if l != nil && reserved {
		m.len.Add(-1)
	}
	previous, count := m.end(l)
	if !known {
		count = 0
	}
	h.hold(s, id, count)
	return previous, known
}

// isExpired reports whether a session's time to live has passed.
func (m *Memory) isExpired(l *Lease) bool {
	r := l.idle()
	return r != nil && m.config.Now()-r.since >= m.config.TTL
}

// end ends a lease of the table, whose shard is locked, before another takes its place.
// It returns the owner, if there is one, and the count that stands.
func (m *Memory) end(l *Lease) (owner Owner, count uint64) {
	if l == nil {
		return nil, 0
	}
	if r := l.idle(); r != nil {
		m.idle.remove(r)
	} else {
		owner = l.entry.(Owner)
	}
	return owner, l.revoke()
}

// reserve makes room for one more session.
func (m *Memory) reserve() error {
	for m.len.Add(1) > int64(m.config.Max) {
		m.len.Add(-1)
		if m.dropOldest(func(*Lease) bool { return true }) {
			m.Evicted.Add(1)
		} else if m.len.Load() >= int64(m.config.Max) {
			return ErrFull
		}
	}
	return nil
}

// dropOldest forgets the session that has been without an owner for the longest
// time, if mayDrop says so. It reports whether it did.
func (m *Memory) dropOldest(mayDrop func(*Lease) bool) bool {
	for {
		r := m.idle.oldest()
		if r == nil {
			return false
		}
		s := m.shard(r.id)
		s.mu.Lock()
		if s.sessions.find(r.id) != &r.Lease { // it was taken or dropped meanwhile
			s.mu.Unlock()
			continue
		}
		ok := mayDrop(&r.Lease)
		if ok {
			m.len.Add(-1) // first: a claim that finds the list empty must see the room
			m.idle.remove(r)
			s.sessions.remove(r.id)
		}
		s.mu.Unlock()
		return ok
	}
}

// An idleList is a ring of the sessions that nobody holds, the longest first.
// Its lock is taken inside a shard's.
type idleList struct {
	mu   sync.Mutex
	root idleSession
}

func (l *idleList) init() { l.root.older, l.root.younger = &l.root, &l.root }

func (l *idleList) oldest() *idleSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.root.younger == &l.root {
		return nil
	}
	return l.root.younger
}

// pushOldest adds r, of which the caller says that it is the oldest.
func (l *idleList) pushOldest(r *idleSession, since time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.since = since
	r.insertBehind(&l.root)
}

// youngestFirst is all of them.
func (l *idleList) youngestFirst() (all []*idleSession) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := l.root.older; r != &l.root; r = r.older {
		all = append(all, r)
	}
	return all
}

// push adds r; the clock only goes forward, so it is the youngest.
func (l *idleList) push(r *idleSession, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.since = now
	r.insertBehind(l.root.older)
}

// insertBehind puts r into the ring as the next younger one.
func (r *idleSession) insertBehind(older *idleSession) {
	r.older, r.younger = older, older.younger
	r.older.younger, r.younger.older = r, r
}

func (l *idleList) remove(r *idleSession) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.older.younger, r.younger.older = r.younger, r.older
	r.older, r.younger = nil, nil
}
