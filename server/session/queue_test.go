package session

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"turnstile/server/redistest"
)

// A queue does what a slice does.
func TestQueue(t *testing.T) {
	var q queue
	var model []*redisLease
	random := rand.New(rand.NewPCG(1, 0))
	for n := range 10_000 {
		if random.IntN(100+n/50) < 60 || len(model) == 0 {
			r := new(redisLease)
			if q.push(r); !r.queued {
				t.Fatal("a lease does not know that it is queued")
			}
			model = append(model, r)
		} else {
			if got := q.pop(); got != model[0] || got.queued {
				t.Fatalf("after %d steps another lease is the first one, or still queued", n)
			}
			model = model[1:]
		}
		if n%100 == 0 && !slices.Equal(q.waiting(), model) || q.len() != len(model) {
			t.Fatalf("after %d steps there are %d leases, want %d", n, q.len(), len(model))
		}
	}
}

// withLeases is a store with n leases; add adds another one.
func withLeases(n int) (s *Redis, add func()) {
	s = new(Redis)
	serial := uint32(0)
	add = func() {
		serial++
		s.leases.add(&redisLease{ownership: ownership{token: token{lease: leaseID{serial: serial}}}})
	}
	for range n {
		add()
	}
	return s, add
}

// A table that is made smaller while leases come and go has those that are there, and gives
// the lock away in between.
func TestShrinkWhileLeasesComeAndGo(t *testing.T) {
	s, add := withLeases(10 * visitMost)
	random := rand.New(rand.NewPCG(1, 0))
	rounds := 0
	s.shrink(func() {
		if !s.mu.TryLock() {
			t.Fatal("the lock is held between two rounds")
		}
		defer s.mu.Unlock()
		rounds++
		for range visitMost / 8 {
			s.leases.remove(s.leases.all[random.IntN(s.leases.len())])
			if random.IntN(2) == 0 {
				add()
			}
		}
	})
	if rounds < 5 {
		t.Errorf("%d rounds: too much at once", rounds)
	}
	for _, r := range s.leases.all {
		if s.leases.get(r.token.lease) != r {
			t.Fatalf("lease %v is lost", r.token.lease)
		}
	}
}

// What was queued at a node whose slots went elsewhere is queued where it belongs now, some
// at a time, and what belongs to that node stays.
func TestRequeueWhileLeasesComeAndGo(t *testing.T) {
	const n = 3 * visitMost
	i, _ := lookingStore(t, n)
	s := i.Redis
	s.mu.Lock()
	old := s.nodes[0]
	s.mu.Unlock()
	other := newNode(s, nil, "other", "")
	s.mu.Lock()
	s.routes.Store(&[]*node{other})
	s.mu.Unlock()
	rounds := 0
	s.requeue(&old.looks, func() {
		if !s.mu.TryLock() {
			t.Fatal("the lock is held between two rounds")
		}
		defer s.mu.Unlock()
		if rounds++; old.looks.len() > 0 {
			if r := old.looks.pop(); r.isDue(s.config.Now(), &s.times) { // as the node's goroutine does
				s.enqueue(r)
			}
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if rounds != 3 || old.looks.len() != 0 || other.looks.len() != n {
		t.Errorf("%d rounds, %d leases left, %d moved, want 3 rounds and all %d moved", rounds, old.looks.len(), other.looks.len(), n)
	}
	s.routes.Store(&[]*node{old})
}

// While leases come and go, each of those that were there from the beginning to the end is
// visited.
func TestVisitWhileLeasesComeAndGo(t *testing.T) {
	s, add := withLeases(10 * visitMost)
	before := slices.Clone(s.leases.all)
	random := rand.New(rand.NewPCG(1, 0))
	visited, rounds := make(map[*redisLease]bool), 0
	s.visit(func() []*redisLease { return s.leases.all }, func(r *redisLease) { visited[r] = true }, func() {
		if !s.mu.TryLock() {
			t.Fatal("the lock is held between two rounds")
		}
		defer s.mu.Unlock()
		rounds++
		for range visitMost / 2 {
			s.leases.remove(s.leases.all[random.IntN(s.leases.len())])
			add()
		}
	})
	for _, r := range before {
		if s.leases.get(r.token.lease) == r && !visited[r] {
			t.Fatalf("lease %v was not visited", r.token.lease)
		}
	}
	if rounds < 10 {
		t.Errorf("%d rounds: too much at once", rounds)
	}
}

// lookingStore is a store that cannot reach Redis, with n leases of another process, which
// it has to look at.
func lookingStore(t testing.TB, n int) (i *instance, clients []*client) {
	i = startStore(t, "unix:///nonexistent/redis.sock", func(c *RedisConfig) { c.Timeout, c.Max = time.Hour, 2*n })
	for serial := range n {
		c := i.client()
		c.on(func() {
			i.Adopt(&c.Lease, State{ID: NewID(), Count: 1, Token: token{1, leaseID{7, uint32(serial)}, 0}.String(), Held: true, Owned: true}, c)
		})
		clients = append(clients, c)
	}
	i.renew() // as at the end of a handover
	return i, clients
}

// What somebody waits for is sent before what is only looked at, of which each pipeline
// has a part.
func TestCommitsGoBeforeLooks(t *testing.T) {
	const n = 3 * looksMost
	s, clients := lookingStore(t, n)
	claim := s.client()
	busy := clients[n-1] // the last one that is to be looked at
	busy.countNow(1)
	s.Redis.mu.Lock()
	node := s.nodes[0]
	token := token{lease: leaseID{s.instance, 1}}
	claim.id = NewID()
	r := &redisLease{owner: claim, ownership: newOwnership(token, phaseFind, s.config.Now())}
	s.leases.add(r)
	s.enqueue(r)
	s.Redis.mu.Unlock()
	want := []*redisLease{busy.entry.(*redisLease), r}
	for range 3 {
		_, more := node.take()
		s.Redis.mu.Lock() // the store's clock looks at the batch too
		batch := node.batch
		node.batch = nil
		s.Redis.mu.Unlock()
		if len(batch) < len(want)+looksMost-1 || len(batch) > len(want)+looksMost || !more {
			t.Fatalf("a pipeline has %d commands, want %d and %d looks", len(batch), len(want), looksMost)
		}
		for i, r := range want {
			if batch[i].lease != r {
				t.Errorf("command %d is not that for which somebody waits", i)
			}
		}
		want = nil
	}
	if _, more := node.take(); more {
		t.Error("more is queued than there are leases")
	}
}

// BenchmarkCommitBehindLooks is how long commits take while all leases have to be looked at,
// and how long others wait for the lock at the most.
func BenchmarkCommitBehindLooks(b *testing.B) {
	server := redistest.Start(b, "--appendonly", "yes")
	a := readyStore(b, server.URL(), func(c *RedisConfig) { c.Timeout = 10 * time.Second })
	c := a.mint().count(1)
	for range 50_000 {
		a.mint()
	}
	a.settle()
	var took []time.Duration
	var longestWait time.Duration
	var looking sync.WaitGroup
	for b.Loop() { // one commit each
		if a.queueLength() < looksMost { // look at all again
			looking.Wait()
			looking.Go(a.verifyAll)
		}
		began := time.Now()
		a.Redis.mu.Lock()
		longestWait = max(longestWait, time.Since(began))
		a.Redis.mu.Unlock()
		c.count(1)
		took = append(took, time.Since(began))
	}
	looking.Wait()
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms/commit")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms/commit")
	b.ReportMetric(longestWait.Seconds()*1e3, "ms/longest-wait-for-lock")
}
