package session

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

const claimTimeout = 5 * time.Second

// awaiting is a store that waits for the sessions of another process.
func awaiting(max int) (*Memory, *clock) {
	m, c := newMemory(max)
	m.config.Timeout = claimTimeout
	m.Await()
	return m, c
}

// A visitor is an Owner whose claim may be pending. It has a loop of its own,
// which is run by wantClaimed and idle.
type visitor struct {
	tenant
	tasks chan func()
	Lease

	told    int // how often OnClaimed was called
	resumed bool
	err     error
}

func newVisitor() *visitor { return &visitor{tasks: make(chan func(), 10)} }

func (v *visitor) Loop() Loop { return loop(v.tasks) }
func (v *visitor) OnClaimed(resumed bool, err error) {
	v.told++
	v.resumed, v.err = resumed, err
}

// run runs what was posted, and reports whether there was anything.
func (v *visitor) run() (any bool) {
	for {
		select {
		case task := <-v.tasks:
			task()
			any = true
		default:
			return any
		}
	}
}

// claimPending claims a session that may yet come.
func claimPending(t testing.TB, m *Memory, id ID) *visitor {
	t.Helper()
	v := newVisitor()
	if resumed, err := m.Claim(&v.Lease, id, v); err != ErrPending || resumed || !v.Held() || v.ID() != id {
		t.Fatalf("the claim of %v: resumed %v, %v; want it pending", id, resumed, err)
	}
	return v
}

// wantTold checks how a claim ended that was pending.
func (v *visitor) wantTold(t testing.TB, count uint64, resumed bool, err error) {
	t.Helper()
	if !v.run() || v.told != 1 || v.resumed != resumed || v.err != err || v.Count != count || v.Committed() != count {
		t.Errorf("told %d times: resumed %v, count %d (%d committed), %v; want %v, %d, %v",
			v.told, v.resumed, v.Count, v.Committed(), v.err, resumed, count, err)
	}
}

func TestClaimWaitsForAbsentSessions(t *testing.T) {
	m, clock := awaiting(10)
	l := new(Lease)
	if err := m.Mint(l, new(tenant)); err != nil || l.Count != 0 {
		t.Errorf("a new session: count %d, %v; it need not wait", l.Count, err)
	}
	known := l.ID()
	m.Release(l)
	claim(t, m, known, 0, true)
	comes, unknown, gone := claimPending(t, m, numbered(1)), claimPending(t, m, numbered(2)), claimPending(t, m, numbered(3))
	rival := claimPending(t, m, numbered(1))
	m.Release(&gone.Lease)
	m.Release(&gone.Lease)
	m.Import([]State{{ID: numbered(1), Count: 7}, {ID: numbered(3), Count: 9}})
	if comes.run() || unknown.run() {
		t.Error("a claim is answered before all sessions have come")
	}
	claim(t, m, numbered(3), 9, true)
	clock.advance(claimTimeout)
	m.Expire() // not yet: it is no longer than that
	m.Complete()
	comes.wantTold(t, 7, true, nil)
	unknown.wantTold(t, 0, false, nil)
	rival.wantTold(t, 7, true, nil)
	if comes.taken.Load() != 1 || rival.taken.Load() != 0 {
		t.Errorf("told %d and %d times of being taken over, want the first to be", comes.taken.Load(), rival.taken.Load())
	}
	if gone.run(); gone.told != 0 {
		t.Error("a claim that was given up is answered")
	}
	count(t, m, &rival.Lease, 1)
	m.Release(&rival.Lease)
	claim(t, m, numbered(1), 8, true)
	claim(t, m, numbered(4), 0, false) // nothing is awaited any more
	wantLen(t, m, 5)
}

func TestClaimWaitsTooLong(t *testing.T) {
	m, clock := awaiting(10)
	old := claimPending(t, m, numbered(1))
	clock.advance(claimTimeout)
	young := claimPending(t, m, numbered(2))
	clock.advance(1)
	m.Expire()
	old.wantTold(t, 0, false, ErrUnavailable)
	m.Release(&old.Lease) // as a connection does that was refused
	m.Complete()
	young.wantTold(t, 0, false, nil)
	if old.run() {
		t.Error("a claim is answered twice")
	}
	wantLen(t, m, 1)
}

// TestClaimWaitsAgain: a takeover that failed is followed by another one before
// the claim has been answered.
func TestClaimWaitsAgain(t *testing.T) {
	m, _ := awaiting(10)
	v := claimPending(t, m, someID)
	m.Complete()
	m.Await()
	if v.run(); v.told != 0 {
		t.Fatal("the claim is answered while sessions are to come again")
	}
	m.Import([]State{{ID: someID, Count: 3}})
	m.Complete()
	v.wantTold(t, 3, true, nil)
	m.Release(&v.Lease)
	claim(t, m, someID, 3, true)
}

func TestTransfer(t *testing.T) {
	a, _ := newMemory(10)
	b, _ := awaiting(10)
	first, firstHolder := claim(t, a, someID, 0, false)
	count(t, a, first, 4)
	first.Count += 9 // never committed
	state, ok := a.Lend(first)
	if want := (State{ID: someID, Count: 4}); !ok || state != want {
		t.Fatalf("lent as %+v, %v; want %+v", state, ok, want)
	}
	a.TakeBack(first)
	count(t, a, first, 1)
	state, _ = a.Lend(first)
	a.GiveAway(first)
	wantLen(t, a, 0)
	if commits(a, first) {
		t.Error("a lease commits that was given away")
	}
	a.Release(first)
	second, secondHolder := new(Lease), new(tenant)
	b.Adopt(second, state, secondHolder)
	count(t, b, second, 1)
	b.Complete()
	wantLen(t, b, 1)
	claim(t, b, someID, state.Count+1, true)
	if commits(b, second) || firstHolder.taken.Load() != 0 || secondHolder.taken.Load() != 1 {
		t.Errorf("told %d and %d times of being taken over, want only the adopter to be", firstHolder.taken.Load(), secondHolder.taken.Load())
	}
}

// TestTakenWhileLent: the session is claimed here while its lease is on its way.
func TestTakenWhileLent(t *testing.T) {
	m, _ := newMemory(10)
	first, _ := claim(t, m, someID, 0, false)
	count(t, m, first, 4)
	m.Lend(first)
	second, holder := claim(t, m, someID, 4, true)
	if state, ok := m.Lend(first); ok {
		t.Errorf("a lease that was revoked is lent as %+v: where it goes it would be the owner's", state)
	}
	m.GiveAway(first)
	count(t, m, second, 1)
	wantLen(t, m, 1)
	if holder.taken.Load() != 0 {
		t.Error("the new owner is told of a takeover")
	}
	m.Release(second)
	claim(t, m, someID, 5, true)
}

// TestAdoptKnown: clients have started the session here too, before it came.
func TestAdoptKnown(t *testing.T) {
	f := func(name string, here, comes uint64, held bool) {
		t.Run(name, func(t *testing.T) {
			m, _ := newMemory(1)
			l, holder := claim(t, m, someID, 0, false)
			count(t, m, l, here)
			if !held {
				m.Release(l)
			}
			adopted := new(Lease)
			m.Adopt(adopted, State{ID: someID, Count: comes}, new(tenant))
			if want := max(here, comes); adopted.Count != want || adopted.Committed() != want {
				t.Errorf("adopted with %d (%d committed), want %d", adopted.Count, adopted.Committed(), want)
			}
			if told := holder.taken.Load() == 1; told != held || held && commits(m, l) {
				t.Errorf("the owner here is told: %v", told)
			}
			count(t, m, adopted, 1)
			m.Release(adopted)
			claim(t, m, someID, max(here, comes)+1, true)
			wantLen(t, m, 1)
		})
	}
	f("held here, less", 2, 9, true)
	f("held here, more", 9, 2, true)
	f("left here, less", 2, 9, false)
	f("left here, more", 9, 2, false)
}

// exported is what Export gives, and of which size the pieces are.
func exported(t testing.TB, m *Memory) (states []State, pieces []int) {
	t.Helper()
	err := m.Export(func(some []State) (bool, error) {
		states, pieces = append(states, some...), append(pieces, len(some))
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return states, pieces
}

// TestExport: each session keeps its count, its time to live, and its place
// among those that go first.
func TestExport(t *testing.T) {
	a, clockA := newMemory(10)
	b, clockB := awaiting(10)
	for n := range 4 { // left ten seconds apart, 40 to 10 seconds ago
		l, _ := claim(t, a, numbered(n), 0, false)
		count(t, a, l, uint64(n+1))
		a.Release(l)
		clockA.advance(10 * time.Second)
	}
	held, _ := claim(t, a, numbered(9), 0, false)
	count(t, a, held, 99)
	states, pieces := exported(t, a)
	b.Import(states)
	b.Complete()
	wantLen(t, b, 5)
	if len(pieces) != 1 || commits(a, held) || !held.HasMoved() || held.Committed() != 99 {
		t.Errorf("in pieces of %v; who held a session commits still: %v, and holds %d", pieces, commits(a, held), held.Committed())
	}
	clockB.advance(ttl - 30*time.Second) // over for the two that were left first
	b.Expire()
	wantLen(t, b, 3)
	claim(t, b, numbered(0), 0, false)
	claim(t, b, numbered(1), 0, false)
	claim(t, b, numbered(2), 3, true)
	claim(t, b, numbered(3), 4, true)
	claim(t, b, numbered(9), 99, true)
}

// TestExportMany: Import keeps the order over pieces, and a store that is too
// full drops the longest disconnected.
func TestExportMany(t *testing.T) {
	const n = 2*statesMost + 100
	a, clock := newMemory(n)
	for i := range n {
		l, _ := claim(t, a, numbered(i), 0, false)
		count(t, a, l, uint64(i))
		a.Release(l)
		clock.advance(time.Millisecond)
	}
	const room = n - 500
	b, _ := awaiting(room)
	young := new(Lease)
	if err := b.Mint(young, new(tenant)); err != nil {
		t.Fatal(err)
	}
	b.Release(young)
	err := a.Export(func(some []State) (bool, error) { b.Import(some); return true, nil })
	if err != nil {
		t.Fatal(err)
	}
	b.Complete()
	wantLen(t, b, n+1) // nothing that came is refused
	claim(t, b, NewID(), 0, false)
	wantLen(t, b, room)
	for _, i := range []int{502, 503, n / 2, n - 1} { // the oldest have made room
		claim(t, b, numbered(i), uint64(i), true)
	}
	claim(t, b, young.ID(), 0, true)
	claim(t, b, numbered(501), 0, false)
}

// TestExportEndsAtAnError: what was given is gone, and what was not is here. A session in
// both processes would be counted twice.
func TestExportEndsAtAnError(t *testing.T) {
	failure := errors.New("the other process does not answer")
	f := func(name string, last bool) {
		t.Run(name, func(t *testing.T) {
			const n = 2*statesMost + 100
			m, _ := newMemory(n)
			closing, _ := claim(t, m, numbered(n-1), 0, false) // held to the end
			for i := range n - 1 {
				l, _ := claim(t, m, numbered(i), 0, false)
				m.Release(l)
			}
			given, calls := map[ID]bool{}, 0
			err := m.Export(func(some []State) (bool, error) {
				calls++
				if ok := calls == 1 || last; !ok {
					return false, failure
				}
				for _, state := range some {
					given[state.ID] = true
				}
				if calls == 1 {
					return true, nil
				}
				return true, failure
			})
			if err != failure || calls != 2 {
				t.Errorf("after %d calls: %v", calls, err)
			}
			m.Release(closing)
			wantLen(t, m, n-len(given))
			for i := range n {
				if claim(t, m, numbered(i), 0, !given[numbered(i)]); t.Failed() {
					t.Fatalf("session %d, given: %v", i, given[numbered(i)])
				}
			}
		})
	}
	f("the last piece is not given", false)
	f("the last piece is given all the same", true)
}

// TestImportKnown: clients have started the session here too, and have left it.
func TestImportKnown(t *testing.T) {
	m, clock := newMemory(10)
	for i, here := range []uint64{3, 30} {
		l, _ := claim(t, m, numbered(i), 0, false)
		count(t, m, l, here)
		m.Release(l)
	}
	clock.advance(ttl - 1)
	m.Import([]State{{ID: numbered(0), Count: 10}, {ID: numbered(1), Count: 10}})
	wantLen(t, m, 2)
	clock.advance(1) // the ones that were here would be over now
	m.Expire()
	claim(t, m, numbered(0), 10, true)
	claim(t, m, numbered(1), 30, true)
}

// TestClaimsRaceComplete: however they meet, each claim is answered once, and
// starts from the count that came.
func TestClaimsRaceComplete(t *testing.T) {
	const sessions, rounds = 8, 300
	for round := range rounds {
		m, _ := awaiting(10 * sessions)
		visitors := make([]*visitor, 2*sessions)
		answered := make([]bool, len(visitors))
		var wg sync.WaitGroup
		for i := range visitors {
			v := newVisitor()
			visitors[i] = v
			wg.Go(func() {
				_, err := m.Claim(&v.Lease, numbered(i%sessions), v)
				answered[i] = err == nil
			})
		}
		wg.Go(func() {
			states := make([]State, sessions)
			for i := range states {
				states[i] = State{ID: numbered(i), Count: uint64(i + 1)}
			}
			cut := rand.IntN(sessions)
			m.Import(states[:cut])
			m.Import(states[cut:])
			m.Complete()
		})
		wg.Wait()
		for i, v := range visitors {
			if v.run(); !answered[i] && v.told != 1 || answered[i] && v.told != 0 {
				t.Fatalf("round %d: claim %d was answered at once: %v, and told %d times", round, i, answered[i], v.told)
			}
			if want := uint64(i%sessions + 1); v.Count != want {
				t.Fatalf("round %d: claim %d starts at %d, want %d", round, i, v.Count, want)
			}
		}
		wantLen(t, m, sessions)
	}
}
