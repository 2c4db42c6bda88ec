package session

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/server/doctest"
	"turnstile/server/redistest"
)

// loop is a Loop: a goroutine that runs tasks one at a time.
type loop chan func()

func (l loop) Post(task func()) bool { l <- task; return true }

// A client is an Owner that waits for each of its outcomes.
type client struct {
	t     testing.TB
	store *Redis
	loop  Loop
	Lease

	claimed   chan error
	resumed   bool
	committed chan Outcome
	taken     chan struct{}
}

func (c *client) Loop() Loop      { return c.loop }
func (c *client) Holding() *Lease { return &c.Lease }
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
	loop *netpoll.Loop

	ahead atomic.Int64 // of real time, the store's clock

	mu           sync.Mutex
	troubles     []trouble
	laneTroubles []trouble
	damaged      []ID
}

// A trouble is what the store has told of.
type trouble struct {
	node string
	kind errorKind
	err  error
}

const (
	redisTTL     = time.Hour
	redisTimeout = 20 * time.Second
	redisMax     = 100_000
)

var started = time.Now()

// A busy machine may stand still for longer than a call may take elsewhere.
func init() { longestCall = 15 * time.Second }

func startStore(t testing.TB, url string, change ...func(*RedisConfig)) *instance {
	t.Helper()
	address, err := ParseAddress(url)
	if err != nil {
		t.Fatal(err)
	}
	loop, err := netpoll.NewLoop(netpoll.Config{Fatal: func(err error) { panic(err) }})
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{t: t, loop: loop}
	now := func() time.Duration { return time.Since(started) + time.Hour + time.Duration(i.ahead.Load()) }
	config := RedisConfig{
		Address: address, TTL: redisTTL, Timeout: redisTimeout, Max: redisMax, Now: now,
		Metrics: metrics.New(1, metrics.Labels{}, metrics.Sources{}).NewStore(MetricLabels(), now),
		OnTrouble: func(node string, kind fmt.Stringer, err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.troubles = append(i.troubles, trouble{node, kind.(errorKind), err})
		},
		OnRecovered: func(string, time.Duration) {},
		OnLaneTrouble: func(node string, kind fmt.Stringer, err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.laneTroubles = append(i.laneTroubles, trouble{node, kind.(errorKind), err})
		},
		OnDamaged: func(id ID, err error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			i.damaged = append(i.damaged, id)
		},
	}
	for _, f := range change {
		f(&config)
	}
	i.Redis = NewRedis(config)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		i.Close(ctx)
		i.loop.Close()
	})
	return i
}

// advance moves the store's clock. Redis's own goes on as ever.
func (i *instance) advance(by time.Duration) { i.ahead.Add(int64(by)) }

// readyStore is startStore, and waits until Redis has answered.
func readyStore(t testing.TB, url string, change ...func(*RedisConfig)) *instance {
	t.Helper()
	i := startStore(t, url, change...)
	eventually(t, "the store is available", i.Available)
	i.Redis.mu.Lock()
	i.loopNumber(i.client())
	i.Redis.mu.Unlock()
	i.wantLanes()
	return i
}

// wantLanes waits until commits go by lanes.
func (i *instance) wantLanes() {
	i.t.Helper()
	eventually(i.t, "all lanes are open", func() bool {
		i.Redis.mu.Lock()
		defer i.Redis.mu.Unlock()
		for _, n := range i.nodes {
			if len(n.lanes) == 0 || slices.Contains(n.lanes, nil) {
				return i.config.Address.replicas > 0
			}
		}
		return true
	})
}

// wantTrouble waits until the store has told of an error of that kind, in which text
// stands, in upper or lower case.
func (i *instance) wantTrouble(kind errorKind, text string) {
	i.t.Helper()
	eventually(i.t, "told of "+kind.String()+": "+text, func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return slices.ContainsFunc(i.troubles, func(told trouble) bool {
			return told.kind == kind && strings.Contains(strings.ToLower(told.err.Error()), strings.ToLower(text))
		})
	})
}

// wantSomeTrouble waits until the store has told of an error of any kind.
func (i *instance) wantSomeTrouble() {
	i.t.Helper()
	eventually(i.t, "told of some trouble", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return len(i.troubles) > 0
	})
}

// wantNoTroubleTwice sees that the store has told of an outage, and of no kind of error
// of one part twice.
func (i *instance) wantNoTroubleTwice() {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	times := map[trouble]int{}
	for _, told := range i.troubles {
		told.err = nil
		if times[told]++; times[told] > 1 {
			i.t.Errorf("told twice of %s of %s: %v", told.kind, told.node, i.troubles)
		}
	}
	if len(times) == 0 {
		i.t.Error("told of no trouble")
	}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	looks := time.NewTicker(2 * time.Millisecond)
	defer looks.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-looks.C {
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
	return &client{
		t: i.t, store: i.Redis, loop: i.loop,
		claimed: make(chan error, 1), committed: make(chan Outcome, 1), taken: make(chan struct{}),
	}
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

// settle waits until nothing is to be sent any more.
func (i *instance) settle() {
	i.t.Helper()
	eventually(i.t, "all is stored and looked at", func() bool {
		i.Redis.mu.Lock()
		isAdopting := i.adoptedAt != 0
		i.Redis.mu.Unlock()
		return !isAdopting && i.queueLength() == 0
	})
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
	a.settle()
	b.settle()
	if a.Len() != 2 || b.Len() != 0 {
		t.Errorf("%d and %d sessions are held, want 2 and 0", a.Len(), b.Len())
	}
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

// deafStore is a readyStore that hears nothing of takeovers.
func deafStore(t *testing.T, server *redistest.Server) *instance {
	t.Helper()
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, proxy.URL)
	proxy.Set(redistest.SwallowMessages)
	return a
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
	var granted []*client
	for _, c := range clients {
		switch err := receive(t, "a claim ends", c.claimed); err {
		case nil:
			granted = append(granted, c)
		case ErrUnavailable: // it was late, and gave way to one that came later
		default:
			t.Fatal(err)
		}
	}
	eventually(t, "all but one are told", func() bool {
		owners = 0
		for _, c := range granted {
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
	a := readyStore(t, server.URL())
	held, left := a.mint().count(4), a.mint().count(5)
	left.release()
	a.settle()
	livesFor := func(id ID) (record, owner time.Duration) {
		t.Helper()
		millis := func(key string) time.Duration {
			return time.Duration(server.Do("PTTL", key).(int64)) * time.Millisecond
		}
		return millis(recordKeyOf(t, server, id)), millis(ownerKey(id))
	}
	if record, owner := livesFor(left.ID()); record > redisTTL || record < 0 || owner <= record {
		t.Errorf("a session that was left: its record lives %v and its owner's key %v, want at most %v and more", record, owner, redisTTL)
	}
	if record, owner := livesFor(held.ID()); record < redisTTL || owner <= record {
		t.Errorf("a session that is held: its record lives %v and its owner's key %v, want at least %v and more", record, owner, redisTTL)
	}
}

// The keys of a session that was left go by themselves, which takes longer than those of one
// that is held would last if they were not renewed.
func TestRedisSilentSessionIsRenewed(t *testing.T) {
	server := redistest.Start(t)
	const ttl = time.Second
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.TTL = ttl })
	silent, gone := a.mint().count(4), a.mint().count(5)
	gone.release()
	a.settle()
	server.Until("nothing is left of it", func() bool { return len(server.Keys(ownerKey(gone.ID())+"*")) == 0 })
	a.claim(gone.ID(), 0, false)
	server.Until("the silent one's record has just been renewed", func() bool {
		keys := server.Keys(ownerKey(silent.ID()) + ":*")
		return len(keys) == 1 && server.Do("PTTL", keys[0]).(int64) >= ttl.Milliseconds() && server.Do("GET", keys[0]) == "4"
	})
}

func recordKeyOf(t *testing.T, server *redistest.Server, id ID) string {
	t.Helper()
	keys := server.Keys(ownerKey(id) + ":*")
	if len(keys) != 1 {
		t.Fatalf("records of %v: %q", id, keys)
	}
	return keys[0]
}

// The loser is told although the answer to the claim was lost.
func TestRedisLoserIsToldAfterADoubt(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, server.URL())
	b := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 8 * time.Second })
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
		return first.entry.(*redisLease).mustVerify
	})
	proxy.Set(redistest.Pass)
	first.wantClaimed(0, false)
	receive(t, "the loser is told", first.taken)
}

// The keys in README.md are those in Redis.
func TestReadmeKeys(t *testing.T) {
	server := redistest.Start(t)
	c := readyStore(t, server.URL()).mint().count(1)
	token := server.Do("GET", ownerKey(c.ID())).(string)
	words := strings.NewReplacer("ID", c.ID().String(), "TOKEN", token)
	var want []string
	block := doctest.Blocks(t, "server/session/README.md")[0]
	for _, line := range block.Commands() {
		key := strings.Fields(line)[0]
		want = append(want, words.Replace(key))
	}
	got := server.Keys("turnstile:{*-*}*")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the keys are %q, README.md has %q", got, want)
	}
	form := regexp.MustCompile(`[A-Z]+\.[A-Z]+-[A-Z]+\.[A-Z]+`).FindString(block.Text)
	pattern := regexp.MustCompile("[A-Z]+").ReplaceAllString(regexp.QuoteMeta(form), "[0-9a-f]+")
	if !regexp.MustCompile("^" + pattern + "$").MatchString(token) {
		t.Errorf("the token is %s, README.md has the form %q", token, form)
	}
}
