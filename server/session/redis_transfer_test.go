package session

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/server/redistest"
)

// lend lends c's lease as soon as the store allows it.
func (c *client) lend() (state State) {
	c.t.Helper()
	eventually(c.t, "the lease is lent", func() (ok bool) {
		c.on(func() { state, ok = c.store.Lend(&c.Lease) })
		return ok
	})
	return state
}

// adopt is a client with a lease that another instance has given away.
func (i *instance) adopt(state State) *client {
	c := i.client()
	c.on(func() { i.Adopt(&c.Lease, state, c) })
	return c
}

// handOver gives c's lease to another instance.
func (c *client) handOver(to *instance) *client {
	c.t.Helper()
	state := c.lend()
	c.on(func() { c.store.GiveAway(&c.Lease) })
	if c.store.leaseOf(state) != nil {
		c.t.Error("the lease is still known where it was given away")
	}
	return to.adopt(state)
}

// leaseOf is what the store knows of a lease that was handed over.
func (s *Redis) leaseOf(state State) *redisLease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases.get(parseToken(state.Token).lease)
}

// wantNotTaken checks that c was not told of a takeover.
func (c *client) wantNotTaken() {
	c.t.Helper()
	select {
	case <-c.taken:
		c.t.Error("it was told of a takeover")
	default:
	}
}

func TestRedisTransfer(t *testing.T) {
	server := redistest.Start(t)
	a, b, other := readyStore(t, server.URL()), readyStore(t, server.URL()), readyStore(t, server.URL())
	first := a.mint().count(3)
	token := server.Do("GET", ownerKey(first.ID()))
	second := first.handOver(b)
	if second.Count != 3 || second.Committed() != 3 || second.ID() != first.ID() {
		t.Errorf("adopted with %d (%d committed) of %v", second.Count, second.Committed(), second.ID())
	}
	second.count(2)
	b.settle()
	if now := server.Do("GET", ownerKey(first.ID())); now != token {
		t.Errorf("the owner's token is %v, and was %v", now, token)
	}
	if a.Len() != 0 || b.Len() != 1 {
		t.Errorf("%d and %d sessions are held, want 0 and 1", a.Len(), b.Len())
	}
	third := other.claim(first.ID(), 5, true)
	receive(t, "the adopter's client is told", second.taken)
	second.countNow(1)
	second.wantOutcome(Revoked)
	third.count(1).release()
	other.settle()
	a.claim(first.ID(), 6, true)
}

// TestRedisTransferAgain hands a session from store to store, and back to one that
// had it.
func TestRedisTransferAgain(t *testing.T) {
	server := redistest.Start(t)
	line := []*instance{readyStore(t, server.URL()), readyStore(t, server.URL()), readyStore(t, server.URL())}
	c := line[0].mint()
	id := c.ID()
	for n := range uint64(7) {
		c.count(1)
		next := line[(n+1)%3]
		c = c.handOver(next)
		if n%2 == 0 { // at once, or after it was looked at
			next.settle()
		}
		c.wantNotTaken()
	}
	c.count(1)
	for _, i := range line {
		i.settle()
	}
	if keys := server.Keys(ownerKey(id) + "*"); len(keys) != 2 {
		t.Errorf("the session has the keys %q, want two", keys)
	}
	line[0].claim(id, 8, true)
	receive(t, "the last one is told", c.taken)
}

// TestRedisGiverIsSilent: once a lease is lent nothing is sent for it, neither
// by the clock, nor by what comes in, nor when the store is closed.
func TestRedisGiverIsSilent(t *testing.T) {
	server := redistest.Start(t)
	const ttl = 40 * time.Second
	now := time.Since(started) + time.Hour
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.TTL = ttl })
	b := readyStore(t, server.URL(), func(c *RedisConfig) { c.TTL = ttl })
	lent, witness := a.mint().count(1), a.mint().count(1)
	state := lent.lend()
	record := recordKeyOf(t, server, lent.ID())
	silent := func(when string, act func()) {
		t.Helper()
		a.settle()
		server.Do("SET", record, "nobody writes here")
		act()
		witness.count(1) // what a had to send before, it has sent
		a.settle()
		if got := server.Do("GET", record); got != "nobody writes here" {
			t.Errorf("%s, the record is written: %v", when, got)
		}
	}
	silent("at a word of a takeover", func() { a.onHint(parseToken(state.Token).lease) })
	silent("when all are looked at", a.verifyAll)
	silent("when it is time to renew", func() {
		a.Redis.mu.Lock()
		a.leases.get(parseToken(state.Token).lease).renewedAt = now - ttl
		a.Redis.mu.Unlock()
		a.renew()
	})
	silent("when Redis is back", func() {
		a.Redis.mu.Lock()
		n := a.nodes[0]
		a.Redis.mu.Unlock()
		a.holdClaims(n)
		a.admitClaims(n)
	})
	server.Do("SET", record, 1)
	lent.on(func() { a.GiveAway(&lent.Lease) })
	adopted := b.adopt(state)
	adopted.count(1)
	b.settle()
	witness.release()
	before := server.Do("PTTL", record).(int64)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Errorf("the old store does not close: %v", err)
	}
	if after := server.Do("PTTL", record).(int64); after < before-patience.Milliseconds() || after <= ttl.Milliseconds() {
		t.Errorf("the record lives %d ms, and lived %d: that of a session that is held lives for more than %v", after, before, ttl)
	}
	adopted.count(1)
	adopted.wantNotTaken()
}

// TestRedisLendWaits: what is on its way to Redis has to be known first.
func TestRedisLendWaits(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	busy := a.mint().count(1)
	a.settle()
	wantNotLent := func(what string, c *client) {
		t.Helper()
		if state, ok := a.Lend(&c.Lease); ok {
			t.Errorf("%s is lent: %+v", what, state)
		}
	}
	server.Pause()
	busy.countNow(1)
	claimed := a.claimNow(someID)
	wantNotLent("a lease with a commit on its way", busy)
	wantNotLent("one that is not claimed yet", claimed)
	server.Continue()
	busy.wantOutcome(Committed)
	claimed.wantClaimed(0, false)
	if state := busy.lend(); state.Count != 2 || !state.Held || !state.Owned {
		t.Errorf("lent as %+v", state)
	}
	a.claim(busy.ID(), 2, true)
	busy.on(func() { a.TakeBack(&busy.Lease) })
	receive(t, "the one that was lent is told", busy.taken)
	wantNotLent("one that was taken over", busy)
}

// TestRedisTakeBack: a lease that has not gone counts on, and finds out what
// happened while it was lent.
func TestRedisTakeBack(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	kept, lost := a.mint().count(1), a.mint().count(4)
	kept.lend()
	lost.lend()
	b.claim(lost.ID(), 4, true)
	b.settle()
	lost.wantNotTaken()
	for _, c := range []*client{kept, lost} {
		c.on(func() { a.TakeBack(&c.Lease) })
	}
	kept.count(2)
	receive(t, "the other one is told", lost.taken)
	b.claim(kept.ID(), 3, true)
}

// TestRedisTakenWhileLent: the adopter finds out that the session was taken
// while the lease was on its way, silent or not.
func TestRedisTakenWhileLent(t *testing.T) {
	server := redistest.Start(t)
	a, b, other := readyStore(t, server.URL()), readyStore(t, server.URL()), readyStore(t, server.URL())
	for _, silent := range []bool{true, true, false} { // the second time it listens already
		first := a.mint().count(1)
		state := first.lend()
		thief := other.claim(first.ID(), 1, true).count(1)
		other.settle()
		first.on(func() { a.GiveAway(&first.Lease) })
		second := b.adopt(state)
		if silent {
			receive(t, "the adopter's client is told", second.taken)
		} else {
			second.countNow(1)
			if o := receive(t, "the commit ends", second.committed); o != Revoked {
				t.Errorf("the commit is %v", o)
			}
		}
		thief.count(1)
		b.claim(first.ID(), 3, true)
	}
}

// hears waits until so many listen to the name of another store, this one among them, and
// has looked at its leases because of that.
func (i *instance) hears(server *redistest.Server, name *instance, listeners int64) {
	i.t.Helper()
	eventually(i.t, "it listens to the other store's name", func() bool {
		return server.Do("PUBSUB", "NUMSUB", channel(name.instance)).([]any)[1] == listeners
	})
	i.settle()
}

// TestRedisHandoverIsNotLookedAt: adopted leases are looked at when no more of them come.
func TestRedisHandoverIsNotLookedAt(t *testing.T) {
	server := redistest.Start(t)
	var stopped atomic.Int64 // where the second store's clock stands still, if it does
	a := readyStore(t, server.URL())
	b := readyStore(t, server.URL(), func(c *RedisConfig) {
		now := c.Now
		c.Now = func() time.Duration { return cmp.Or(time.Duration(stopped.Load()), now()) }
	})
	a.mint().count(1).handOver(b)
	b.hears(server, a, 2)
	stopped.Store(int64(b.config.Now()))
	var adopted []*client
	for range 3 {
		adopted = append(adopted, a.mint().count(1).handOver(b))
		stopped.Add(int64(adoptionRest) - 1)
		b.lookAtAdopted(b.config.Now())
	}
	isLookedAt := func(c *client) bool {
		b.Redis.mu.Lock()
		defer b.Redis.mu.Unlock()
		return !c.entry.(*redisLease).mustVerify
	}
	if isLookedAt(adopted[0]) {
		t.Error("a lease is looked at while others come")
	}
	stopped.Add(1)
	for _, c := range adopted {
		eventually(t, "all are looked at", func() bool { return isLookedAt(c) })
	}
}

// TestRedisHintsFollow: a silent loser is told at once wherever its lease has
// gone, although it is spoken to by the name of the store that began it; also
// by that very store.
func TestRedisHintsFollow(t *testing.T) {
	server := redistest.Start(t)
	a, b, c := readyStore(t, server.URL()), readyStore(t, server.URL()), readyStore(t, server.URL())
	for name, thief := range map[string]*instance{"another store": c, "the store that it came from": a} {
		loser := a.mint().count(1).handOver(b)
		b.hears(server, a, 2)
		thief.claim(loser.ID(), 1, true)
		receive(t, name+" takes it: the silent loser is told", loser.taken)
	}
	loser := a.mint().count(1).handOver(b).handOver(c)
	c.hears(server, a, 3)
	b.claim(loser.ID(), 1, true)
	receive(t, "it was handed over twice: the silent loser is told", loser.taken)
}

// TestRedisTransferWithoutRedis: what could not be stored is stored by the one
// that has it when Redis is back.
func TestRedisTransferWithoutRedis(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	patient := func(c *RedisConfig) { c.Timeout = time.Minute }
	a, b := readyStore(t, server.URL(), patient), readyStore(t, server.URL(), patient)
	stored := a.mint().count(3)
	a.settle()
	server.Kill()
	a.wantSomeTrouble()
	minted := a.mint()
	states := []State{stored.lend(), minted.lend()}
	if states[1].Held || states[1].Owned {
		t.Errorf("what is not stored is lent as %+v", states[1])
	}
	for _, c := range []*client{stored, minted} {
		c.on(func() { a.GiveAway(&c.Lease) })
	}
	adopted := []*client{b.adopt(states[0]), b.adopt(states[1])}
	adopted[0].countNow(2)
	server.Restart()
	adopted[0].wantOutcome(Committed)
	server.Until("the one that was never stored is", func() bool { return len(server.Keys(ownerKey(minted.ID()))) == 1 })
	adopted[1].count(1)
	b.settle()
	a.claim(stored.ID(), 5, true)
	a.claim(minted.ID(), 1, true)
}

// TestRedisLosesATransferredSession: Redis comes back empty while the lease is on its
// way.
func TestRedisLosesATransferredSession(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	first := a.mint().count(5)
	state := first.lend()
	first.on(func() { a.GiveAway(&first.Lease) })
	server.Do("FLUSHALL")
	second := b.adopt(state)
	server.Until("it is stored again", func() bool { return slices.Equal(recordsOf(server, first.ID()), []string{"5"}) })
	second.count(1)
	a.claim(first.ID(), 6, true)
}

// recordsOf are the counts that Redis has of a session.
func recordsOf(server *redistest.Server, id ID) (counts []string) {
	for _, key := range server.Keys(ownerKey(id) + ":*") {
		counts = append(counts, fmt.Sprint(server.Do("GET", key)))
	}
	return counts
}

// TestRedisTokensAreTransferred, with the attempt.
func TestRedisTokensAreTransferred(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a, b := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = time.Minute }), readyStore(t, server.URL())
	first := a.mint().count(1)
	a.settle()
	proxy.Set(redistest.Swallow)
	first.countNow(1)
	server.Until("the commit is carried out", func() bool { return slices.Equal(recordsOf(server, first.ID()), []string{"2"}) })
	proxy.Set(redistest.Pass)
	proxy.Cut()
	first.wantOutcome(Committed)
	second := first.handOver(b)
	if second.entry.(*redisLease).token.attempt == 0 {
		t.Errorf("the token is %v, of the first attempt", second.entry.(*redisLease).token)
	}
	second.count(1)
	b.claim(first.ID(), 3, true)
}

// TestRedisLendsWhatIsQueued: a lease may be lent while its next command waits
// in the queue, and that is not sent then.
func TestRedisLendsWhatIsQueued(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	idle := a.mint().count(1)
	a.settle()
	record := recordKeyOf(t, server, idle.ID())
	server.Do("SET", record, "nobody writes here")
	server.Pause()
	claim := a.claimNow(someID) // by the node's goroutine, as the look that is queued behind it
	eventually(t, "the queue is held up", func() bool {
		a.Redis.mu.Lock()
		defer a.Redis.mu.Unlock()
		return claim.entry.(*redisLease).inFlight
	})
	a.onHint(idle.entry.(*redisLease).token.lease)
	_, ok := a.Lend(&idle.Lease)
	a.Redis.mu.Lock()
	queued := idle.entry.(*redisLease).inLooks
	a.Redis.mu.Unlock()
	if !ok || !queued {
		t.Errorf("lent: %v, queued: %v", ok, queued)
	}
	server.Continue()
	claim.wantClaimed(0, false)
	a.settle()
	if got := server.Do("GET", record); got != "nobody writes here" {
		t.Errorf("the record is written: %v", got)
	}
}
