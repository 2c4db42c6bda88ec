package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/server/redistest"
)

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
	a, b := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute }), readyStore(t, server.URL())
	var idle []*client
	for n := range uint64(2000) {
		idle = append(idle, a.mint().count(n%7+1))
	}
	left := a.mint().count(7)
	left.release()
	a.settle()
	server.Kill()
	claims := make(map[*client]*client)
	for n, c := range idle {
		if n%100 == 0 {
			claims[c] = a.claimNow(c.ID())
		}
	}
	server.RestartEmpty()
	for c, claim := range claims { // on the instance that had it: never before it is there again
		claim.wantClaimed(c.Committed(), true)
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
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	idle, busy := a.mint().count(3), a.mint().count(1)
	server.Kill()
	busy.countNow(1)
	claim := a.claimNow(someID)
	a.wantSomeTrouble()
	a.advance(2 * time.Minute)
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
	a.wantNoTroubleTwice()
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
	a.wantTrouble(errorUnreachable, "")
	server.Restart()
	eventually(t, "the store is available", a.Available)
	a.mint().count(1)
	a.wantNoTroubleTwice()
}

// A pipeline arrives and is carried out, and its answers are lost.
func TestRedisAnswersAreLost(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 8 * time.Second })
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
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = 8 * time.Second })
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

// A claim gets no answer for long. Meanwhile somebody else claims the session, and keeps
// it: that one came later.
func TestRedisClaimInDoubtTakesNothingBack(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	patient := func(c *RedisConfig) { c.Timeout = 4 * time.Second }
	a, b := readyStore(t, proxy.URL, patient), readyStore(t, server.URL())
	proxy.Set(redistest.Delay)
	claim := a.claimNow(someID)
	eventually(t, "it is in doubt", func() bool { return a.config.Metrics.Errors[errorTimeout].Load() > 0 })
	later := b.claim(someID, 0, false).count(3)
	proxy.Set(redistest.Pass)
	if err := receive(t, "the claim ends", claim.claimed); err != ErrUnavailable {
		t.Errorf("the claim ends with %v", err)
	}
	claim.release()
	a.settle()
	later.count(1)
	a.claim(someID, 4, true) // a claim of its own, that comes later still
}

// Redis stands still and goes on.
func TestRedisPaused(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 8 * time.Second })
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

// While Redis cannot write to its disk, it refuses even a ping. The subscription to hints
// lives all the same, and nobody is told again and again that it has failed, and is back.
func TestRedisRefusesPings(t *testing.T) {
	server := redistest.Start(t, "--save", "3600 1", "--stop-writes-on-bgsave-error", "no")
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout, c.listenCheck = time.Minute, 100*time.Millisecond })
	if err := os.MkdirAll(filepath.Join(filepath.Dir(server.Socket), "dump.rdb", "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	server.Do("BGSAVE")
	server.Until("it cannot save", func() bool {
		return strings.Contains(server.Do("INFO", "persistence").(string), "rdb_last_bgsave_status:err")
	})
	server.Do("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
	refused := regexp.MustCompile(`cmdstat_ping:.*rejected_calls=([3-9]|\d\d)`)
	server.Until("pings are refused", func() bool { return refused.MatchString(server.Do("INFO", "commandstats").(string)) })
	eventually(t, "it was noticed", func() bool { return len(a.troublesOf(a.config.Address.String())) > 0 })
	if told := a.troublesOf(a.listening.name); len(told) > 0 {
		t.Errorf("the subscription: %v", told)
	}
	server.Do("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
	a.mint().count(1)
}

// troublesOf is what the store has told of a part.
func (i *instance) troublesOf(part string) (told []trouble) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, t := range i.troubles {
		if t.node == part {
			told = append(told, t)
		}
	}
	return told
}

// Redis reads its file at the start, and refuses meanwhile. It reads slowly until that was
// noticed: 200 keys would take 10 s.
func TestRedisLoading(t *testing.T) {
	server := redistest.Start(t, "--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
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
	server.Do("CONFIG", "SET", "key-load-delay", "0")
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
	proxy := redistest.StartProxy(t, server)
	a := readyStore(t, proxy.URL, func(c *RedisConfig) { c.Timeout = time.Minute })
	server.Do("SCRIPT", "FLUSH")
	var forgotten atomic.Bool
	proxy.BeforeHash(func() {
		for ctx := t.Context(); ctx.Err() == nil && !forgotten.Load(); {
			known, err := server.Client.ScriptExists(ctx, ownScript.Hash()).Result()
			if err == nil && known[0] { // the script before, with the text, has been carried out
				server.Client.ScriptFlush(ctx)
				forgotten.Store(true)
			}
		}
	})
	for !forgotten.Load() { // a pipeline of one claim has no script by its hash
		var claims []*client
		for range 10 {
			claims = append(claims, a.claimNow(NewID()))
		}
		for _, claim := range claims {
			claim.wantClaimed(0, false).count(1)
		}
	}
	if a.config.Metrics.Errors[errorNoScript].Load() == 0 {
		t.Error("no NOSCRIPT: the test shows nothing")
	}
}

// What cannot be read of one session is that session's error: nobody else's connection is
// lost for it, and nobody is given a count that may be wrong.
func TestRedisDamagedSession(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = time.Minute })
	other := a.mint()
	claims := make(map[string]*client)
	damage := func(what string, keyOf func(*testing.T, *redistest.Server, ID) string, command string, value any) {
		t.Helper()
		left := a.mint().count(3)
		left.release()
		a.settle()
		key := keyOf(t, server, left.ID())
		server.Do("DEL", key)
		server.Do(command, key, value)
		claims[what] = left
	}
	owner := func(_ *testing.T, _ *redistest.Server, id ID) string { return ownerKey(id) }
	damage("an empty record", recordKeyOf, "SET", "")
	damage("a record that is no number", recordKeyOf, "SET", "x")
	damage("a number that is too large", recordKeyOf, "SET", "9999999999999999999")
	damage("a record of another type", recordKeyOf, "RPUSH", "x")
	damage("an empty owner", owner, "SET", "")
	damage("an owner that is no token", owner, "SET", "x")
	damage("an owner of another type", owner, "RPUSH", "x")
	for what, left := range claims {
		claims[what] = a.claimNow(left.ID())
	}
	for what, claim := range claims {
		eventually(t, what+": it was noticed", func() bool {
			other.count(1)
			a.mu.Lock()
			defer a.mu.Unlock()
			return slices.Contains(a.damaged, claim.ID())
		})
	}
	a.advance(2 * time.Minute)
	for what, claim := range claims {
		if err := receive(t, "the claim ends", claim.claimed); err != ErrUnavailable {
			t.Errorf("%s: the claim ends with %v, at %d", what, err, claim.Count)
		}
	}
	if n := a.config.Metrics.Errors[errorConnection].Load(); n > 0 {
		t.Errorf("%d connections were given up", n)
	}
}

// Whoever holds the session knows its count, and writes it again.
func TestRedisDamagedSessionIsHeld(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	for _, next := range []*instance{a, b} { // in the same process, and in another one
		holder := a.mint().count(3)
		server.Do("SET", recordKeyOf(t, server, holder.ID()), "x")
		next.claim(holder.ID(), 3, true).count(1)
		receive(t, "the holder is told", holder.taken)
	}
}

// A store that is busy all the time notices that Redis is well again.
func TestRedisRecoversUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 4 * time.Second })
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 100 {
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

func TestRedisCloseKeepsItsTime(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 20 * time.Second })
	c := a.mint().count(1)
	server.Pause()
	began := time.Now()
	c.release()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := a.Close(ctx); err == nil {
		t.Error("closed without an error, and nothing is released")
	}
	if took := time.Since(began); took >= callTimeout(a.config.Timeout) {
		t.Errorf("it takes %v, as long as a read and longer than it was given", took)
	}
	server.Continue()
}

// Redis is flushed, and no connection is lost for it: what this process holds is there
// again soon, and a claim on this process gets its count at once.
func TestRedisFlushed(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	silent, claimed := a.mint().count(3), a.mint().count(4)
	server.Do("FLUSHALL")
	a.claim(claimed.ID(), 4, true)
	server.Until("the silent one is there again", func() bool { return len(server.Keys(ownerKey(silent.ID())+":*")) == 1 })
	server.Do("FLUSHALL")
	server.Until("it is there again", func() bool { return len(server.Keys(ownerKey(silent.ID())+":*")) == 1 })
	if got := server.Do("GET", recordKeyOf(t, server, silent.ID())); got != "3" {
		t.Errorf("it is there with a count of %v, want 3", got)
	}
	a.wantTrouble(errorDataLost, "flushed")
	eventually(t, "the store is available", a.Available)
}

// The address is one node of a cluster: the store says what to write, and is never
// available.
func TestRedisOneNodeOfACluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 2)
	for _, node := range cluster.Nodes { // the first has the slot of the probe
		a := startStore(t, "redis://"+node.Addr)
		a.wantTrouble(errorMoved, "write the addresses of several of its nodes")
		if a.Available() {
			t.Error("the store is available")
		}
	}
	alone := redistest.Start(t)
	b := startStore(t, "redis://"+alone.Addr+",redis://"+alone.Addr)
	b.wantTrouble(errorOther, "write one address")
	if b.Available() {
		t.Error("the store is available")
	}
}

// Before Redis 6 a server does not say that it is a cluster's; the first session does.
func TestRedisMovedAlone(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	a.Redis.mu.Lock()
	err := a.onError(a.nodes[0], new(redisLease), refusal("MOVED 3999 127.0.0.1:6381"))
	a.Redis.mu.Unlock()
	if err != errClusterNode || a.nodes[0].checkMode(a.nodes[0].client.Conn()) != errClusterNode {
		t.Errorf("MOVED without a cluster: %v", err)
	}
}
