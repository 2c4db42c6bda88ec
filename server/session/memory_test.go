package session

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	ttl      = time.Minute
	patience = 2 * time.Minute // only a failure waits so long
)

// A clock is the store's time, which only the test moves.
type clock struct{ now atomic.Int64 }

func (c *clock) advance(d time.Duration) { c.now.Add(int64(d)) }

func newMemory(max int) (*Memory, *clock) {
	c := new(clock)
	c.advance(time.Hour)
	return NewMemory(MemoryConfig{TTL: ttl, Max: max, Now: func() time.Duration { return time.Duration(c.now.Load()) }}), c
}

// A tenant is an Owner that counts how often it was taken over.
type tenant struct {
	taken atomic.Int32
	then  func() // if set, called in OnTakenOver
}

func (h *tenant) Holding() *Lease                            { panic("nothing is pending") }
func (h *tenant) Loop() Loop                                 { panic("nothing is pending") }
func (h *tenant) OnClaimed(bool, error)                      { panic("nothing is pending") }
func (h *tenant) OnCommitted(Outcome, uint64, time.Duration) { panic("nothing is pending") }
func (h *tenant) OnTakenOver() {
	h.taken.Add(1)
	if h.then != nil {
		h.then()
	}
}

// numbered is an ID; those of neighbours are in different shards.
func numbered(n int) ID { return ID{0: byte(n), 1: byte(n >> 8), 8: byte(n)} }

// claim claims id for a new tenant and lease, and checks what it is told.
func claim(t testing.TB, m *Memory, id ID, wantCount uint64, wantResumed bool) (*Lease, *tenant) {
	t.Helper()
	l, h := new(Lease), new(tenant)
	resumed, err := m.Claim(l, id, h)
	if err != nil || resumed != wantResumed || l.Count != wantCount {
		t.Errorf("claimed with resumed %v, count %d, %v; want %v, %d", resumed, l.Count, err, wantResumed, wantCount)
	}
	if err == nil && (!l.Held() || l.ID() != id || l.Committed() != l.Count) {
		t.Errorf("a new lease is held: %v, by %v, with %d committed of %d", l.Held(), l.ID(), l.Committed(), l.Count)
	}
	return l, h
}

func commits(m *Memory, l *Lease) bool { return m.Commit(l) == Committed }

// count counts n messages and commits them.
func count(t testing.TB, m *Memory, l *Lease, n uint64) {
	t.Helper()
	l.Count += n
	if !commits(m, l) || l.Committed() != l.Count {
		t.Errorf("the count %d is not committed", l.Count)
	}
}

func wantLen(t testing.TB, m *Memory, want int) {
	t.Helper()
	if m.Len() != want {
		t.Errorf("%d sessions, want %d", m.Len(), want)
	}
}

func TestCountOutlivesItsConnection(t *testing.T) {
	m, _ := newMemory(10)
	wantLen(t, m, 0)
	for i, id := range []ID{numbered(1), {}, NewID()} {
		l, h := claim(t, m, id, 0, false)
		count(t, m, l, 2)
		count(t, m, l, 3)
		l.Count += 100 // never committed, so never answered
		m.Release(l)
		l, _ = claim(t, m, id, 5, true)
		count(t, m, l, 1)
		m.Release(l)
		claim(t, m, id, 6, true)
		if h.taken.Load() != 0 {
			t.Error("who has released a session is not taken over")
		}
		wantLen(t, m, i+1)
	}
}

func TestTakeOver(t *testing.T) {
	m, _ := newMemory(10)
	first, firstHolder := claim(t, m, someID, 0, false)
	count(t, m, first, 2)
	first.Count += 5 // in flight
	second, secondHolder := claim(t, m, someID, 2, true)
	if commits(m, first) || first.Committed() != 2 {
		t.Errorf("a revoked lease commits: %d", first.Committed())
	}
	count(t, m, second, 1)
	if commits(m, first) {
		t.Error("a revoked lease commits after its successor")
	}
	claim(t, m, someID, 3, true)
	if firstHolder.taken.Load() != 1 || secondHolder.taken.Load() != 1 {
		t.Errorf("told %d and %d times of being taken over", firstHolder.taken.Load(), secondHolder.taken.Load())
	}
	wantLen(t, m, 1)
}

func TestOwnerMayTakeOverFromItself(t *testing.T) {
	m, _ := newMemory(10)
	var first, second Lease
	h := new(tenant)
	m.Claim(&first, someID, h)
	count(t, m, &first, 1)
	if resumed, err := m.Claim(&second, someID, h); !resumed || err != nil || second.Count != 1 {
		t.Errorf("claimed with resumed %v, count %d, %v", resumed, second.Count, err)
	}
	if h.taken.Load() != 1 || commits(m, &first) || !commits(m, &second) {
		t.Errorf("told %d times; the first lease must end, the second not", h.taken.Load())
	}
}

// TestOwnerMayCallTheStoreWhenTakenOver would hang if it were told under a
// lock: the sessions are of one shard.
func TestOwnerMayCallTheStoreWhenTakenOver(t *testing.T) {
	m, _ := newMemory(10)
	id, other := ID{15: 1}, ID{15: 2}
	first, h := claim(t, m, id, 0, false)
	count(t, m, first, 4)
	var back *Lease
	h.then = func() {
		m.Commit(first)
		m.Release(first)
		claim(t, m, other, 0, false)
		m.Expire()
		m.Len()
		back, _ = claim(t, m, id, 4, true) // it takes its session back
	}
	done := make(chan struct{})
	var second *Lease
	var secondHolder *tenant
	go func() {
		second, secondHolder = claim(t, m, id, 4, true)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the store hangs")
	}
	if secondHolder.taken.Load() != 1 || commits(m, second) || !commits(m, back) {
		t.Error("the session is not the first owner's again")
	}
}

func TestReleaseEndsALease(t *testing.T) {
	m, _ := newMemory(10)
	l, _ := claim(t, m, someID, 0, false)
	count(t, m, l, 3)
	m.Release(l)
	l.Count++
	if commits(m, l) || l.Committed() != 3 {
		t.Errorf("a released lease commits: %d", l.Committed())
	}
	m.Release(l)
	wantLen(t, m, 1)
	claim(t, m, someID, 3, true)
}

// TestReleaseOfAnotherLeaseDoesNothing: a connection ends long after its
// session was taken over, or was refused.
func TestReleaseOfAnotherLeaseDoesNothing(t *testing.T) {
	m, c := newMemory(1)
	revoked, _ := claim(t, m, someID, 0, false)
	released, _ := claim(t, m, someID, 0, true)
	m.Release(released)
	owner, h := claim(t, m, someID, 0, true)
	refused := new(Lease)
	if _, err := m.Claim(refused, numbered(1), h); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	for _, l := range []*Lease{revoked, released, refused, new(Lease)} {
		m.Release(l)
		c.advance(2 * ttl) // were the session without an owner, it would go
		m.Expire()
		wantLen(t, m, 1)
		count(t, m, owner, 1)
	}
	if h.taken.Load() != 0 {
		t.Error("the owner was taken over")
	}
}

func TestTimeToLive(t *testing.T) {
	f := func(idle time.Duration, expire bool, want uint64) {
		t.Helper()
		m, c := newMemory(10)
		l, _ := claim(t, m, someID, 0, false)
		count(t, m, l, 7)
		c.advance(10 * ttl) // connected: no time passes
		m.Expire()
		count(t, m, l, 1)
		m.Release(l)
		c.advance(idle)
		over, forgotten := want == 0, 0
		if expire {
			m.Expire()
			if over {
				forgotten = 1
			}
		}
		wantLen(t, m, 1-forgotten)
		if m.Expired.Load() != uint64(forgotten) || m.Evicted.Load() != 0 {
			t.Errorf("after %v %d have expired, %d were evicted", idle, m.Expired.Load(), m.Evicted.Load())
		}
		l, _ = claim(t, m, someID, want, !over)
		count(t, m, l, 1) // it is a session like any other
		m.Release(l)
		claim(t, m, someID, want+1, true)
	}
	for _, expire := range []bool{true, false} { // the time counts, not who looks when
		f(0, expire, 8)
		f(ttl-1, expire, 8)
		f(ttl, expire, 0)
		f(100*ttl, expire, 0)
	}
}

func TestTimeToLiveStartsAgain(t *testing.T) {
	m, c := newMemory(10)
	for i := range 5 {
		l, _ := claim(t, m, someID, uint64(i), i > 0)
		count(t, m, l, 1)
		m.Release(l)
		c.advance(ttl - 1)
		m.Expire()
	}
	wantLen(t, m, 1)
	c.advance(1)
	m.Expire()
	wantLen(t, m, 0)
}

func TestExpireTakesWhatIsOverAndNoMore(t *testing.T) {
	m, c := newMemory(100)
	leases := make([]*Lease, 10)
	for i := range leases {
		leases[i], _ = claim(t, m, numbered(i), 0, false)
	}
	for _, l := range leases[1:] { // the first stays connected
		c.advance(time.Second)
		m.Release(l)
	}
	c.advance(ttl - 5*time.Second) // four were released at least a ttl ago
	m.Expire()
	wantLen(t, m, 6)
	if m.Expired.Load() != 4 {
		t.Errorf("%d expired", m.Expired.Load())
	}
	for i := range leases {
		claim(t, m, numbered(i), 0, i == 0 || i > 4)
	}
}

// TestFullStoreDropsTheLongestDisconnected: claiming a session again puts it
// behind the others.
func TestFullStoreDropsTheLongestDisconnected(t *testing.T) {
	m, c := newMemory(4)
	leases := make([]*Lease, 4)
	for i := range leases {
		leases[i], _ = claim(t, m, numbered(i), 0, false)
		count(t, m, leases[i], uint64(i)+1)
	}
	for _, i := range []int{2, 1, 0} { // 3 stays connected
		c.advance(time.Second)
		m.Release(leases[i])
	}
	again, _ := claim(t, m, numbered(2), 3, true)
	m.Release(again)

	claim(t, m, numbered(10), 0, false) // for 1
	wantLen(t, m, 4)
	claim(t, m, numbered(11), 0, false) // for 0
	wantLen(t, m, 4)
	if m.Evicted.Load() != 2 || m.Expired.Load() != 0 {
		t.Errorf("%d evicted, %d expired", m.Evicted.Load(), m.Expired.Load())
	}
	claim(t, m, numbered(2), 3, true)
	claim(t, m, numbered(3), 4, true)
	for _, gone := range []int{0, 1} {
		if _, err := m.Claim(new(Lease), numbered(gone), new(tenant)); !errors.Is(err, ErrFull) {
			t.Errorf("session %d: %v", gone, err)
		}
	}
}

func TestFullOfConnectedSessions(t *testing.T) {
	m, c := newMemory(2)
	first, _ := claim(t, m, numbered(1), 0, false)
	_, secondHolder := claim(t, m, numbered(2), 0, false)
	for i := range 100 {
		var l Lease
		resumed, err := m.Claim(&l, numbered(10+i), new(tenant))
		if resumed || !errors.Is(err, ErrFull) || l.Held() {
			t.Fatalf("resumed %v, held %v: %v", resumed, l.Held(), err)
		}
	}
	wantLen(t, m, 2) // a refusal keeps no place
	count(t, m, first, 1)
	second, _ := claim(t, m, numbered(2), 0, true) // known sessions need none
	if secondHolder.taken.Load() != 1 {
		t.Error("not told of being taken over")
	}
	wantLen(t, m, 2)
	m.Release(first)
	third, _ := claim(t, m, numbered(3), 0, false)
	wantLen(t, m, 2)
	m.Release(second)
	m.Release(third)
	c.advance(ttl)
	m.Expire()
	wantLen(t, m, 0)
}

func TestExpiredSessionOfAFullStoreIsRevived(t *testing.T) {
	m, c := newMemory(2)
	for i := range 2 {
		l, _ := claim(t, m, numbered(i), 0, false)
		count(t, m, l, 9)
		m.Release(l)
	}
	c.advance(ttl)
	for i := range 2 {
		claim(t, m, numbered(i), 0, false)
	}
	wantLen(t, m, 2)
}

// A ledger is what the owners in TestConcurrentOwners were promised.
type ledger struct {
	t       *testing.T
	store   *Memory
	commits [3]atomic.Uint64
	seen    [3][100_000]atomic.Bool // by session and count: who was told that it is committed

	mu      sync.Mutex
	revoked []*tenant // who was refused a commit; guarded by mu
}

// TestConcurrentOwners fights over a few sessions. Each count that a commit
// has promised must be the only one of its number, and none may be lost.
func TestConcurrentOwners(t *testing.T) {
	m, _ := newMemory(3)
	book := &ledger{t: t, store: m}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 400 {
				book.own(rand.IntN(len(book.commits)))
			}
		})
	}
	wg.Wait()
	for i := range book.commits {
		total := book.commits[i].Load()
		claim(t, m, numbered(i), total, true)
		for n := uint64(1); n <= total; n++ {
			if !book.seen[i][n].Load() {
				t.Fatalf("session %d stands at %d, but nobody committed %d", i, total, n)
			}
		}
	}
	wantLen(t, m, len(book.commits))
	if len(book.revoked) == 0 {
		t.Error("no owner was taken over while it counted: the test shows nothing")
	}
	for _, h := range book.revoked {
		if n := h.taken.Load(); n != 1 {
			t.Errorf("an owner was told %d times that it was taken over", n)
		}
	}
}

// own is the life of one connection.
func (book *ledger) own(session int) {
	l, h := new(Lease), new(tenant)
	if _, err := book.store.Claim(l, numbered(session), h); err != nil {
		book.t.Error(err)
		return
	}
	for range rand.IntN(30) {
		l.Count++
		if !commits(book.store, l) {
			book.mu.Lock()
			book.revoked = append(book.revoked, h)
			book.mu.Unlock()
			break
		}
		if book.seen[session][l.Count].Swap(true) {
			book.t.Errorf("count %d of session %d was committed twice", l.Count, session)
		}
		book.commits[session].Add(1)
		if rand.IntN(4) == 0 {
			runtime.Gosched()
		}
	}
	if rand.IntN(4) > 0 { // the others wait to be taken over
		book.store.Release(l)
		if commits(book.store, l) {
			book.t.Error("a released lease commits")
		}
	}
}

// TestConcurrentEviction has more sessions than the store keeps. A session may
// go while it is disconnected, and then starts at 0, but never otherwise.
func TestConcurrentEviction(t *testing.T) {
	const goroutines, each = 8, 5
	m, c := newMemory(12)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			var counts [each]uint64
			for range 1000 {
				i := rand.IntN(each)
				counts[i] = visit(t, m, numbered(g*each+i), counts[i])
			}
		})
	}
	wg.Wait()
	kept := 0
	for i := range m.shards {
		kept += m.shards[i].sessions.len
	}
	wantLen(t, m, kept)
	if kept > 12 || m.Evicted.Load() == 0 {
		t.Errorf("%d sessions are kept, %d were evicted", kept, m.Evicted.Load())
	}
	c.advance(ttl)
	m.Expire()
	wantLen(t, m, 0)
}

// visit claims a session that nobody else claims, counts, and leaves it.
func visit(t *testing.T, m *Memory, id ID, last uint64) (count uint64) {
	l, h := new(Lease), new(tenant)
	resumed, err := m.Claim(l, id, h)
	if err != nil {
		return last // full for the moment
	}
	if resumed && l.Count != last || !resumed && l.Count != 0 {
		t.Errorf("resumed %v at %d; it was left at %d", resumed, l.Count, last)
	}
	for range 3 {
		l.Count++
		if !commits(m, l) {
			t.Error("a connected session was dropped")
		}
		runtime.Gosched()
	}
	m.Release(l)
	if h.taken.Load() != 0 {
		t.Error("taken over by nobody")
	}
	return l.Count
}

// TestNeverFullBesideExpire: who looks for a session to drop may find none
// because Expire has just dropped it. Then there is room.
func TestNeverFullBesideExpire(t *testing.T) {
	m, _ := newMemory(1)
	m.config.TTL = 0
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			m.Expire()
		}
	})
	for n := range 20_000 { // one connection at a time
		var l Lease
		if _, err := m.Claim(&l, numbered(n), new(tenant)); err != nil {
			t.Errorf("round %d: %v", n, err)
			break
		}
		m.Release(&l)
	}
	stop.Store(true)
	wg.Wait()
}

// TestNeverFullBesideTheSameSession: who finds no place for a new session may
// find it started by another connection meanwhile, and takes it over.
func TestNeverFullBesideTheSameSession(t *testing.T) {
	m, _ := newMemory(1)
	for n := range 20_000 { // one session at a time
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				l := new(Lease)
				if _, err := m.Claim(l, numbered(n), new(tenant)); err != nil {
					t.Errorf("round %d: %v", n, err)
				}
				m.Release(l)
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	wantLen(t, m, 1)
}

const benchSessions = 100_000

// fullStore has benchSessions disconnected sessions and room for no more.
func fullStore() *Memory {
	m, _ := newMemory(benchSessions)
	for n := range uint64(benchSessions) {
		visitOnce(m, new(Lease), benchID(n))
	}
	return m
}

// BenchmarkClaimRelease is a connection's claim of a session and its release:
// of a known one, of a new one for which the oldest goes, and of known ones on
// all cores.
func BenchmarkClaimRelease(b *testing.B) {
	f := func(what string, first, mod uint64) {
		b.Run(what, func(b *testing.B) {
			m, l, n := fullStore(), new(Lease), uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				n++
				visitOnce(m, l, benchID(first+n*7919%mod))
			}
		})
	}
	f("known", 0, benchSessions)
	f("new", benchSessions, 1<<60)
	b.Run("parallel", func(b *testing.B) {
		const each = benchSessions / 10 // sessions that one goroutine claims
		m := fullStore()
		var goroutines atomic.Uint64
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			first := goroutines.Add(1) % 10 * each
			l, n := new(Lease), uint64(0)
			for pb.Next() {
				n++
				visitOnce(m, l, benchID(first+n*7919%each))
			}
		})
	})
}

var nobody = new(tenant)

// visitOnce uses l again, which a connection must not: here nothing is left
// that could know it.
func visitOnce(m *Memory, l *Lease, id ID) {
	*l = Lease{}
	if _, err := m.Claim(l, id, nobody); err != nil {
		panic(err)
	}
	m.Release(l)
}

// benchID spreads n over the shards as NewID does.
func benchID(n uint64) (id ID) {
	for i := range 8 {
		id[i] = byte(n >> (8 * i))
		id[8+i] = byte(n * 0x9e3779b97f4a7c15 >> (8 * (7 - i)))
	}
	return id
}

func BenchmarkCommit(b *testing.B) {
	m, _ := newMemory(1)
	l := new(Lease)
	if _, err := m.Claim(l, someID, nobody); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Count++
		if !commits(m, l) {
			b.Fatal("not committed")
		}
	}
}

// TestShrink: a table keeps its size when its entries go, until Shrink.
func TestShrink(t *testing.T) {
	const n = 200_000
	f := func(name string, each int64, fill, empty func(n int), shrink func()) {
		t.Helper()
		fill(n)
		empty(n)
		held := heapInUse()
		shrink()
		if gave := held - heapInUse(); gave < n*each {
			t.Errorf("%s: Shrink gives back %d bytes of %d entries, want %d for each", name, gave, n, each)
		}
	}
	m, clock := newMemory(1_000_000)
	held := make(map[int]*Lease)
	f("embedded", 4, func(n int) {
		for i := range n {
			held[i] = new(Lease)
			if _, err := m.Claim(held[i], NewID(), new(tenant)); err != nil {
				t.Fatal(err)
			}
		}
	}, func(int) {
		for _, l := range held {
			m.Release(l)
		}
		held = nil
		clock.advance(ttl)
		m.Expire()
	}, m.Shrink)
	r := new(Redis)
	f("Redis", 12, func(n int) {
		for i := range n {
			r.leases.add(&redisLease{ownership: ownership{token: token{lease: leaseID{serial: uint32(i)}}}})
		}
	}, func(n int) {
		for range n {
			r.leases.remove(r.leases.all[0])
		}
	}, r.Shrink)
	runtime.KeepAlive(m)
	runtime.KeepAlive(r)
}

// heapInUse is how many bytes of the heap are alive.
func heapInUse() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
