package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstile/metrics"
	"turnstile/server/redistest"
)

// loop is a Loop: a goroutine that runs tasks one at a time.
type loop chan func()

func (l loop) Post(task func()) bool { l <- task; return true }

// A client is an Owner that waits for each of its outcomes.
type client struct {
	t     testing.TB
	store *Redis
	loop  loop
	Lease

	claimed   chan error
	resumed   bool
	committed chan Outcome
	taken     chan struct{}
}

func (c *client) Loop() Loop { return c.loop }
func (c *client) OnClaimed(resumed bool, err error) {
	c.resumed = resumed
	c.claimed <- err
}
func (c *client) OnCommitted(o Outcome, messages uint64, took time.Duration) { c.committed <- o }
func (c *client) OnTakenOver()                                               { close(c.taken) }

// on runs f on the client's loop and waits for it.
func (c *client) on(f func()) {
	done := make(chan struct{})
	c.loop.Post(func() { f(); close(done) })
	<-done
}

// An instance is a store as one server process has it.
type instance struct {
	*Redis
	t    testing.TB
	loop loop

	mu       sync.Mutex
	troubles []error
}

const (
	redisTTL     = time.Hour
	redisTimeout = 2 * time.Second
	redisMax     = 100_000
)

var started = time.Now()

func startStore(t testing.TB, url string, change ...func(*RedisConfig)) *instance {
	t.Helper()
	address, err := ParseAddress(url)
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Duration { return time.Since(started) + time.Hour }
	i := &instance{t: t, loop: make(loop, 10_000)}
	config := RedisConfig{
		Address: address, TTL: redisTTL, Timeout: redisTimeout, Max: redisMax, Now: now,
		Metrics: metrics.New(1, metrics.Labels{}, metrics.Sources{}).NewStore(MetricLabels(), now),
		OnTrouble: func(node string, err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.troubles = append(i.troubles, err)
		},
		OnRecovered: func(string, time.Duration) {},
	}
	for _, f := range change {
		f(&config)
	}
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case task := <-i.loop:
				task()
			case <-stop:
				return
			}
		}
	}()
	i.Redis = NewRedis(config)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		i.Close(ctx)
		close(stop)
	})
	return i
}

// readyStore is startStore, and waits until Redis has answered.
func readyStore(t testing.TB, url string, change ...func(*RedisConfig)) *instance {
	t.Helper()
	i := startStore(t, url, change...)
	eventually(t, "the store is available", i.Available)
	return i
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func receive[T any](t testing.TB, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(patience):
		t.Fatalf("never: %s", what)
	}
	return value
}

func (i *instance) client() *client {
	return &client{t: i.t, store: i.Redis, loop: i.loop, claimed: make(chan error, 1), committed: make(chan Outcome, 1), taken: make(chan struct{})}
}

func (i *instance) mint() *client {
	i.t.Helper()
	c := i.client()
	var err error
	c.on(func() { err = i.Mint(&c.Lease, c) })
	if err != nil {
		i.t.Fatal(err)
	}
	return c
}

// claimNow asks for a session, and does not wait.
func (i *instance) claimNow(id ID) *client {
	i.t.Helper()
	c := i.client()
	var err error
	c.on(func() { _, err = i.Claim(&c.Lease, id, c) })
	if err != ErrPending {
		i.t.Fatalf("the claim is not pending: %v", err)
	}
	return c
}

// wantClaimed waits for the end of a claim.
func (c *client) wantClaimed(count uint64, resumed bool) *client {
	c.t.Helper()
	if err := receive(c.t, "a claim ends", c.claimed); err != nil {
		c.t.Fatal(err)
	}
	if c.Count != count || c.Committed() != count || c.resumed != resumed {
		c.t.Fatalf("claimed with count %d (%d committed), resumed %v; want %d, %v", c.Count, c.Committed(), c.resumed, count, resumed)
	}
	return c
}

func (i *instance) claim(id ID, count uint64, resumed bool) *client {
	i.t.Helper()
	return i.claimNow(id).wantClaimed(count, resumed)
}

// countNow adds n messages, and does not wait.
func (c *client) countNow(n uint64) {
	c.t.Helper()
	var o Outcome
	c.on(func() { c.Count += n; o = c.store.Commit(&c.Lease) })
	if o == Revoked {
		c.committed <- o
	} else if o != Pending {
		c.t.Fatalf("the commit is %v", o)
	}
}

func (c *client) wantOutcome(want Outcome) {
	c.t.Helper()
	if o := receive(c.t, "a commit ends", c.committed); o != want {
		c.t.Fatalf("the commit is %v, want %v", o, want)
	}
	if want == Committed && c.Committed() != c.Count {
		c.t.Fatalf("%d of %d committed", c.Committed(), c.Count)
	}
}

func (c *client) count(n uint64) *client {
	c.t.Helper()
	c.countNow(n)
	c.wantOutcome(Committed)
	return c
}

func (c *client) release() { c.on(func() { c.store.Release(&c.Lease) }) }

// wantStored waits until nothing is to be sent any more.
func (i *instance) settle() {
	i.t.Helper()
	eventually(i.t, "all is stored", func() bool { return i.queueLength() == 0 })
}

func TestRedisCountOutlivesItsConnection(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, "redis://"+server.Addr)
	c := a.mint()
	c.count(2).count(3)
	c.on(func() { c.Count += 100 }) // never committed, so never answered
	id := c.ID()
	c.release()
	d := b.claim(id, 5, true).count(1)
	d.release()
	a.claim(id, 6, true)
	a.claim(someID, 0, false).count(1).release()
	a.claim(someID, 1, true)
	if a.Len() != 2 || b.Len() != 0 {
		t.Errorf("%d and %d sessions are held, want 2 and 0", a.Len(), b.Len())
	}
	b.settle()
	if keys := server.Keys("turnstile:{*-*}*"); len(keys) != 4 {
		t.Errorf("two keys for each of two sessions; there are %q", keys)
	}
}

func TestRedisTakeover(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	for _, next := range []*instance{a, b} { // on the same instance, and on another one
		first := a.mint().count(3)
		second := next.claim(first.ID(), 3, true)
		receive(t, "the loser is told", first.taken)
		first.countNow(1)
		first.wantOutcome(Revoked)
		second.count(2)
		first.release()
		first.release()
		next.settle()
		a.settle()
		second.count(1)
		next.claim(first.ID(), 6, true)
		receive(t, "the second is told", second.taken)
	}
}

// deafStore is a readyStore that hears nothing of takeovers: its user may use no
// channel.
func deafStore(t *testing.T, server *redistest.Server) *instance {
	t.Helper()
	server.Do("ACL", "SETUSER", "deaf", "on", ">word", "~*", "resetchannels", "+@all")
	return readyStore(t, "redis://deaf:word@"+server.Addr)
}

func TestRedisLoserThatWasNotToldIsFenced(t *testing.T) {
	server := redistest.Start(t)
	a, b := deafStore(t, server), readyStore(t, server.URL())
	for range 20 {
		first := a.mint().count(1)
		second := b.claim(first.ID(), 1, true)
		first.countNow(1)
		first.wantOutcome(Revoked)
		first.countNow(1)
		first.wantOutcome(Revoked)
		second.count(1)
		b.claim(first.ID(), 2, true)
	}
}

// Both sides of the race are allowed, but they have to agree.
func TestRedisClaimRacesCommit(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	for range 200 {
		first := a.mint().count(1)
		first.countNow(1)
		second := b.claimNow(first.ID())
		outcome := receive(t, "the commit ends", first.committed)
		if err := receive(t, "the claim ends", second.claimed); err != nil {
			t.Fatal(err)
		}
		if outcome == Committed && second.Count != 2 || outcome == Revoked && second.Count != 1 {
			t.Fatalf("the commit is %v, the claim starts at %d", outcome, second.Count)
		}
	}
}

func TestRedisManyClaimsOfOneSession(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	var clients []*client
	for range 50 {
		clients = append(clients, a.claimNow(someID), b.claimNow(someID))
	}
	owners := 0
	for _, c := range clients {
		if err := receive(t, "a claim ends", c.claimed); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all but one are told", func() bool {
		owners = 0
		for _, c := range clients {
			select {
			case <-c.taken:
			default:
				owners++
			}
		}
		return owners == 1
	})
	if records := server.Keys("turnstile:{*-*}:*"); len(records) != 1 {
		t.Errorf("one record is left of each session: %q", records)
	}
}

func TestRedisTimesToLive(t *testing.T) {
	server := redistest.Start(t)
	const ttl = time.Second
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.TTL = ttl })
	silent := a.mint().count(4)
	gone := a.mint().count(5)
	gone.release()
	a.settle()
	key := ownerKey(gone.ID())
	left := server.Do("PTTL", recordKeyOf(t, server, gone.ID())).(int64)
	if left > ttl.Milliseconds() || left < 0 {
		t.Errorf("the record of a session that was left lives %d ms, want at most %v", left, ttl)
	}
	if owner := server.Do("PTTL", key).(int64); owner <= left {
		t.Errorf("the owner's key lives %d ms, no longer than the record's %d", owner, left)
	}
	// The keys of the one that was left go by themselves, which takes longer
	// than the other one's would last if they were not renewed.
	server.Until("nothing is left of it", func() bool { return len(server.Keys(key+"*")) == 0 })
	a.claim(gone.ID(), 0, false)
	silent.count(1)
	a.claim(silent.ID(), 5, true)
}

func recordKeyOf(t *testing.T, server *redistest.Server, id ID) string {
	t.Helper()
	keys := server.Keys(ownerKey(id) + ":*")
	if len(keys) != 1 {
		t.Fatalf("records of %v: %q", id, keys)
	}
	return keys[0]
}

func TestRedisKilledAndRestarted(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	idle, busy, left := a.mint().count(3), a.mint().count(1), a.mint().count(7)
	left.release()
	a.settle()
	server.Kill()
	busy.countNow(1)
	minted := a.mint() // no round trip is needed
	minted.countNow(2)
	claim := a.claimNow(left.ID())
	server.Restart()
	busy.wantOutcome(Committed)
	minted.wantOutcome(Committed)
	claim.wantClaimed(7, true)
	a.claim(idle.ID(), 3, true)
	a.claim(busy.ID(), 2, true)
	a.claim(minted.ID(), 2, true)
}

// TestRedisRestartedEmpty: what is known here is written again, what is not
// known starts at 0.
func TestRedisRestartedEmpty(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	var idle []*client
	for n := range uint64(2000) {
		idle = append(idle, a.mint().count(n%7+1))
	}
	left := a.mint().count(7)
	left.release()
	a.settle()
	server.RestartEmpty()
	for n, c := range idle { // on the instance that had it: never before it is there again
		if n%100 == 0 {
			a.claim(c.ID(), c.Committed(), true)
		}
	}
	server.Until("the others are there again", func() bool { return len(server.Keys("turnstile:{*-*}:*")) == len(idle) })
	for n, c := range idle {
		if n%100 == 1 {
			c.count(1)
			b.claim(c.ID(), c.Count, true)
		}
	}
	b.claim(left.ID(), 0, false)
}

// The data is gone and no connection has noticed: flushed, or evicted.
func TestRedisRecordIsGone(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	c := a.mint().count(3)
	server.Do("FLUSHALL")
	c.count(2)
	a.claim(c.ID(), 5, true)
	server.Do("FLUSHALL")
	d := a.mint().count(9)
	server.Do("FLUSHALL")
	d.release() // has to write it once more
	a.settle()
	a.claim(d.ID(), 9, true)
}

// Redis comes back with an older state, in which an earlier connection owns the
// session. The one that came later is still the owner.
func TestRedisRolledBack(t *testing.T) {
	server := redistest.Start(t)
	a, b := deafStore(t, server), readyStore(t, server.URL())
	first := a.mint().count(1)
	owner, record := ownerKey(first.ID()), recordKeyOf(t, server, first.ID())
	token := server.Do("GET", owner)
	second := b.claim(first.ID(), 1, true).count(4)
	server.Do("DEL", recordKeyOf(t, server, first.ID()))
	server.Do("SET", owner, token)
	server.Do("SET", record, 1)
	second.count(1)
	first.countNow(1)
	first.wantOutcome(Revoked)
	a.claim(first.ID(), 6, true)
}

func TestRedisOutOfReachForLong(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 400 * time.Millisecond })
	idle, busy := a.mint().count(3), a.mint().count(1)
	server.Kill()
	busy.countNow(1)
	claim := a.claimNow(someID)
	busy.wantOutcome(Unavailable)
	if err := receive(t, "the claim ends", claim.claimed); err != ErrUnavailable {
		t.Errorf("the claim ends with %v", err)
	}
	busy.release()
	claim.release()
	eventually(t, "the store is not available", func() bool { return !a.Available() })
	var l Lease
	if err := a.Mint(&l, busy); err != ErrUnavailable {
		t.Errorf("a new session: %v", err)
	}
	if _, err := a.Claim(&l, someID, busy); err != ErrUnavailable || l.Held() {
		t.Errorf("a resume: %v", err)
	}
	server.Restart()
	eventually(t, "the store is available", a.Available)
	select {
	case <-idle.taken:
		t.Error("the idle one was told of a takeover")
	default:
	}
	idle.count(1)
	if len(a.troubles) != 1 {
		t.Errorf("told %d times of the trouble: %v", len(a.troubles), a.troubles)
	}
	a.settle()
	if got := a.claimNow(busy.ID()); receive(t, "the claim ends", got.claimed) != nil || got.Count != 1 && got.Count != 2 {
		t.Errorf("the count is %d, want 1, or 2 with what was in doubt", got.Count)
	}
}

// Clients that come and go quicker than Redis stores cost a bounded amount.
func TestRedisIsSlowerThanClientsCome(t *testing.T) {
	server := redistest.Start(t)
	const most = 500
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout, c.Max = time.Minute, most })
	server.Pause()
	for range most {
		a.mint().release()
	}
	var l Lease
	if err := a.Mint(&l, a.client()); err != ErrFull || l.Held() {
		t.Errorf("a new session: %v", err)
	}
	if _, err := a.Claim(&l, someID, a.client()); err != ErrFull || l.Held() {
		t.Errorf("a resume: %v", err)
	}
	if a.Len() != most {
		t.Errorf("%d sessions are kept, want %d", a.Len(), most)
	}
	server.Continue()
	eventually(t, "they are stored and forgotten", func() bool { return a.Len() == 0 })
	if keys := server.Keys("turnstile:{*-*}:*"); len(keys) != most {
		t.Errorf("%d sessions are stored, want %d", len(keys), most)
	}
	a.mint().count(1)
}

func TestRedisCannotBeReachedAtStart(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	a := startStore(t, server.URL())
	var l Lease
	if err := a.Mint(&l, a.client()); err != ErrUnavailable || a.Available() {
		t.Errorf("available: %v; a new session: %v", a.Available(), err)
	}
	server.Restart()
	eventually(t, "the store is available", a.Available)
	a.mint().count(1)
	if len(a.troubles) != 1 {
		t.Errorf("told %d times of the trouble: %v", len(a.troubles), a.troubles)
	}
}

// A pipeline arrives and is carried out, and its answers are lost.
func TestRedisAnswersAreLost(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	c, left := a.mint().count(3), a.mint().count(8)
	left.release()
	a.settle()
	before := recordKeyOf(t, server, c.ID())
	proxy.Set(redistest.Swallow)
	c.countNow(1)
	claim := a.claimNow(left.ID())
	server.Until("the count has arrived", func() bool {
		return slices.ContainsFunc(server.Keys(ownerKey(c.ID())+":*"), func(key string) bool { return fmt.Sprint(server.Do("GET", key)) == "4" })
	})
	eventually(t, "it was noticed", func() bool { return a.config.Metrics.Errors[errorTimeout].Load() > 0 })
	proxy.Set(redistest.Pass)
	proxy.Cut()
	c.wantOutcome(Committed)
	claim.wantClaimed(8, true)
	if recordKeyOf(t, server, c.ID()) == before {
		t.Error("the commands in doubt and the ones after them have the same record")
	}
	c.count(1)
	a.claim(c.ID(), 5, true)
}

// A pipeline is carried out long after the store gave it up, and after newer
// ones: it must change nothing.
func TestRedisCommandsArriveLate(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	b := readyStore(t, server.URL())
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	c, stolen := a.mint().count(3), a.mint().count(1)
	proxy.Set(redistest.Delay)
	c.countNow(1)
	stolen.countNow(1)
	claim := a.claimNow(someID)
	eventually(t, "it was given up", func() bool { return a.config.Metrics.Errors[errorTimeout].Load() > 0 })
	thief := b.claim(stolen.ID(), 1, true).count(5)
	proxy.Set(redistest.Pass) // now what was delayed arrives, and what came after it
	c.wantOutcome(Committed)
	claim.wantClaimed(0, false)
	stolen.wantOutcome(Revoked)
	c.count(1)
	thief.count(1)
	a.settle()
	b.claim(stolen.ID(), 7, true)
	b.claim(c.ID(), 5, true)
}

// Redis stands still and goes on.
func TestRedisPaused(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	c := a.mint().count(3)
	server.Pause()
	c.countNow(1)
	eventually(t, "it was noticed", func() bool { return a.config.Metrics.Errors[errorTimeout].Load() > 0 })
	server.Continue()
	c.wantOutcome(Committed)
	c.count(1)
	a.claim(c.ID(), 5, true)
}

// refused is a state of Redis in which it refuses writes, and its end.
type refused struct {
	kind  errorKind
	begin []any
	end   []any
}

func TestRedisRefuses(t *testing.T) {
	for _, r := range []refused{
		{errorReadOnly, []any{"REPLICAOF", redistest.Host, "1"}, []any{"REPLICAOF", "NO", "ONE"}},
		{errorMemory, []any{"CONFIG", "SET", "maxmemory", "1"}, []any{"CONFIG", "SET", "maxmemory", "0"}},
		{errorNoReplicas, []any{"CONFIG", "SET", "min-replicas-to-write", "1"}, []any{"CONFIG", "SET", "min-replicas-to-write", "0"}},
	} {
		t.Run(r.kind.String(), func(t *testing.T) {
			server := redistest.Start(t)
			a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
			c, left := a.mint().count(3), a.mint().count(6)
			left.release()
			a.settle()
			server.Do(r.begin...)
			c.countNow(1)
			claim := a.claimNow(left.ID())
			eventually(t, "it was noticed", func() bool { return a.config.Metrics.Errors[r.kind].Load() > 1 })
			server.Do(r.end...)
			c.wantOutcome(Committed)
			claim.wantClaimed(6, true)
			a.claim(c.ID(), 4, true)
		})
	}
}

func TestRedisLoading(t *testing.T) {
	server := redistest.Start(t, "--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024")
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	var clients []*client
	for range 100 {
		clients = append(clients, a.mint().count(2))
	}
	server.Do("SAVE")
	server.Kill()
	restarted := make(chan struct{})
	go func() { server.Restart(); close(restarted) }()
	eventually(t, "it was noticed", func() bool { return a.config.Metrics.Errors[errorLoading].Load() > 0 })
	<-restarted
	for _, c := range clients {
		c.count(1)
	}
	eventually(t, "the store is available", a.Available)
}

func TestRedisForgetsTheScript(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	c := a.mint().count(1)
	for n := range uint64(20) {
		server.Do("SCRIPT", "FLUSH")
		var claims []*client
		for range 10 {
			claims = append(claims, a.claimNow(NewID()))
		}
		next := a.claimNow(c.ID())
		for _, claim := range claims {
			claim.wantClaimed(0, false)
		}
		c = next.wantClaimed(n+1, true).count(1)
	}
}

// The script is forgotten in the middle of a pipeline: those behind that point
// get NOSCRIPT, and are sent again.
func TestRedisForgetsTheScriptWithinAPipeline(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	stop := make(chan struct{})
	var flushing sync.WaitGroup
	flushing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				server.Client.ScriptFlush(context.Background())
			}
		}
	})
	for n := uint64(0); a.config.Metrics.Errors[errorNoScript].Load() == 0 && n < 100; n++ {
		var claims []*client
		for range 2 * batchMost {
			claims = append(claims, a.claimNow(NewID()))
		}
		for _, claim := range claims {
			claim.wantClaimed(0, false).count(1)
		}
	}
	close(stop)
	flushing.Wait()
	if a.config.Metrics.Errors[errorNoScript].Load() == 0 {
		t.Error("no NOSCRIPT: the test shows nothing")
	}
}

// A key of somebody else's, of another type, where a session's should be.
func TestRedisKeyOfAnotherType(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 400 * time.Millisecond })
	server.Do("RPUSH", ownerKey(someID), "x")
	c := a.claimNow(someID)
	if err := receive(t, "the claim ends", c.claimed); err != ErrUnavailable {
		t.Errorf("the claim ends with %v", err)
	}
	a.mint().count(1)
	if !a.Available() {
		t.Error("one session's key makes the whole store unavailable")
	}
}

func TestRedisOverTLS(t *testing.T) {
	_, addr := redistest.StartTLS(t)
	a := readyStore(t, "rediss://"+addr+"?skip_verify=true")
	c := a.mint().count(1)
	a.claim(c.ID(), 1, true)
	b := startStore(t, "rediss://"+addr)
	eventually(t, "a certificate that nobody vouches for is refused", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.troubles) == 1 && strings.Contains(b.troubles[0].Error(), "certificate")
	})
	if b.Available() {
		t.Error("the store is available")
	}
}

func TestRedisPassword(t *testing.T) {
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "counter", "on", ">pass,word", "~turnstile:*", "&turnstile:*", "+get", "+set", "+del", "+pexpire", "+eval", "+evalsha", "+publish", "+subscribe", "+ping")
	server.Do("ACL", "SETUSER", "default", "off")
	a := readyStore(t, "redis://counter:pass%2Cword@"+server.Addr)
	b := readyStore(t, "unix://counter:pass%2Cword@"+server.Socket)
	c := a.mint().count(1)
	b.claim(c.ID(), 1, true)
	receive(t, "the loser is told", c.taken)
}

func TestRedisSentinelPassword(t *testing.T) {
	guarded := redistest.StartGuarded(t, 0)
	for _, s := range guarded.Sentinels {
		s.Do("ACL", "SETUSER", "watcher", "on", ">word", "~*", "&*", "+@all")
	}
	guarded.Master.Do("ACL", "SETUSER", "counter", "on", ">pass", "~turnstile:*", "&turnstile:*", "+@all")
	url := strings.Replace(guarded.URL, "redis://", "redis://counter:pass@", 1) + "&sentinel_username=watcher&sentinel_password="
	readyStore(t, url+"word").mint().count(1)
	b := startStore(t, url+"wrong")
	eventually(t, "a wrong password is refused", func() bool { return b.config.Metrics.Errors[errorAuth].Load() > 0 })
	if b.Available() {
		t.Error("the store is available")
	}
}

func TestRedisDatabase(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, "redis://"+server.Addr+"/3")
	a.mint().count(1)
	if keys := server.Keys("turnstile:*"); len(keys) != 0 {
		t.Errorf("keys in database 0: %q", keys)
	}
}

func TestRedisWaitsForReplicas(t *testing.T) {
	server := redistest.Start(t)
	a := startStore(t, server.URL()+"?wait_replicas=1", func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	eventually(t, "it was noticed that there is no replica", func() bool { return a.config.Metrics.Errors[errorNotReplicated].Load() > 0 })
	if a.Available() {
		t.Error("the store is available without a replica")
	}
	replica := redistest.Start(t, "--replicaof", redistest.Host+" "+server.Addr[strings.LastIndexByte(server.Addr, ':')+1:])
	eventually(t, "the store is available", a.Available)
	c := a.mint().count(1)
	if got := fmt.Sprint(replica.Do("GET", recordKeyOf(t, replica, c.ID()))); got != "1" {
		t.Errorf("the replica has %s when the count is committed", got)
	}
	replica.Kill()
	c.countNow(1)
	c.wantOutcome(Unavailable)
}

// An error in WAIT's place is no confirmation.
func TestRedisWaitIsRefused(t *testing.T) {
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "counter", "on", ">word", "~*", "&*", "+@all", "-wait")
	a := startStore(t, "redis://counter:word@"+server.Addr+"?wait_replicas=1")
	eventually(t, "it was noticed", func() bool { return a.config.Metrics.Errors[errorNotReplicated].Load() > 1 })
	if a.Available() || len(a.troubles) != 1 || !strings.Contains(a.troubles[0].Error(), "NOPERM") {
		t.Errorf("available: %v, troubles %v", a.Available(), a.troubles)
	}
}

// A store that is busy all the time notices that Redis is well again.
func TestRedisRecoversUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 500 * time.Millisecond })
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 500 {
		c := a.mint()
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.count(1)
				}
			}
		})
	}
	commits := func() uint64 { return a.config.Metrics.Commits[Committed].Load() }
	server.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	before := commits()
	began := time.Now()
	eventually(t, "it goes on for longer than the timeout", func() bool {
		return commits() > before+1000 && time.Since(began) > a.config.Timeout+100*time.Millisecond
	})
	if !a.Available() {
		t.Error("the store is not available, and commits go through")
	}
	close(stop)
	busy.Wait()
}

// The owner's key alone is gone, as an eviction might have it: nobody may come
// to own the session beside the one who does, once that one has renewed.
func TestRedisOwnerKeyIsGone(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	c := a.mint().count(3)
	server.Do("DEL", ownerKey(c.ID()))
	a.verifyAll()
	a.settle()
	b.claim(c.ID(), 3, true)
	receive(t, "the loser is told", c.taken)
}

// The loser is told although the answer to the claim was lost.
func TestRedisLoserIsToldAfterADoubt(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, server.URL())
	b := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	first := a.mint().count(2)
	owner := server.Do("GET", ownerKey(first.ID()))
	proxy.Set(redistest.SwallowScripts)
	second := b.claimNow(first.ID())
	server.Until("the session is taken", func() bool { return server.Do("GET", ownerKey(first.ID())) != owner })
	eventually(t, "it was noticed", func() bool { return b.config.Metrics.Errors[errorTimeout].Load() > 0 })
	proxy.Set(redistest.Pass)
	proxy.Cut()
	second.wantClaimed(2, true)
	receive(t, "the loser is told", first.taken)
}

// The word that a session was taken comes before the answer to the claim that
// it was taken from.
func TestRedisLoserIsToldBeforeItKnowsItWon(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = time.Minute })
	b := readyStore(t, server.URL())
	proxy.Set(redistest.DelayScripts)
	first := a.claimNow(someID)
	server.Until("the session is the first one's", func() bool { return server.Do("EXISTS", ownerKey(someID)) == int64(1) })
	b.claim(someID, 0, true)
	eventually(t, "the word has come", func() bool {
		a.Redis.mu.Lock()
		defer a.Redis.mu.Unlock()
		return first.entry.(*remote).doubted
	})
	proxy.Set(redistest.Pass)
	first.wantClaimed(0, false)
	receive(t, "the loser is told", first.taken)
}

func TestRedisCloseKeepsItsTime(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 20 * time.Second })
	c := a.mint().count(1)
	server.Pause()
	c.release()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	closed := make(chan error)
	go func() { closed <- a.Close(ctx) }()
	select {
	case err := <-closed:
		if err == nil {
			t.Error("closed without an error, and nothing is released")
		}
	case <-time.After(time.Second): // a read takes up to two
		t.Error("it takes longer than it was given")
		<-closed
	}
	server.Continue()
}
