package session

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"turnstile/server/redistest"
)

// TestSlotOf holds the hash to what a real server says.
func TestSlotOf(t *testing.T) {
	server := redistest.StartCluster(t, 1).Nodes[0]
	for range 200 {
		id := NewID()
		record := recordKey(id, token{1, leaseID{2, 3}, 4}.String())
		for _, key := range []string{ownerKey(id), record} {
			if want := server.Do("CLUSTER", "KEYSLOT", key); want != int64(slotOf(id)) {
				t.Fatalf("slot %d for %q, want %v", slotOf(id), key, want)
			}
		}
	}
	for _, slot := range []uint16{0, 1, 9999, slots - 1} {
		if got := server.Do("CLUSTER", "KEYSLOT", probeKey(slot)); got != int64(slot) {
			t.Errorf("the probe of slot %d is in slot %v", slot, got)
		}
	}
}

func TestRedisCluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	a, b := readyStore(t, cluster.URL), readyStore(t, cluster.URL)
	var clients []*client
	for n := range uint64(60) {
		clients = append(clients, a.mint().count(n+1))
	}
	for n, c := range clients {
		b.claim(c.ID(), uint64(n)+1, true).count(1)
		receive(t, "the loser is told", c.taken)
	}
	for _, server := range cluster.Nodes {
		if len(server.Keys("turnstile:{*-*}:*")) == 0 {
			t.Error("a node has no session")
		}
	}
}

// A user with no more rights than deploy/README.md names.
func TestRedisClusterPassword(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	for _, node := range cluster.Nodes {
		addUser(t, node, "counter", "pass", everyForm, "a cluster")
	}
	url := strings.Replace(cluster.URL, "redis://", "redis://counter:pass@", 1)
	wantAllWorks(readyStore(t, url), readyStore(t, url))
}

// One of three masters is away: its sessions wait, the others go on.
func TestRedisClusterNodeIsAway(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, "--cluster-require-full-coverage", "no", "--appendonly", "yes", "--appendfsync", "always")
	a := readyStore(t, cluster.URL, func(c *RedisConfig) { c.Timeout = patience })
	var clients []*client
	for range 30 {
		clients = append(clients, a.mint().count(1))
	}
	away := cluster.Nodes[1]
	away.Kill()
	for _, c := range clients {
		c.countNow(1)
	}
	isAway := func(c *client) bool {
		slot := int(slotOf(c.ID()))
		return slot >= slots/3 && slot < 2*slots/3
	}
	for _, c := range clients {
		if !isAway(c) {
			c.wantOutcome(Committed)
		}
	}
	away.Restart()
	for _, c := range clients {
		if isAway(c) {
			c.wantOutcome(Committed)
		}
		a.claim(c.ID(), 2, true)
	}
}

// migrate moves a session's slot, calling between when its first half is done.
func migrate(t *testing.T, cluster *redistest.Cluster, id ID, from, to *redistest.Server, between func()) {
	t.Helper()
	slot := int(slotOf(id))
	fromID, toID := fmt.Sprint(from.Do("CLUSTER", "MYID")), fmt.Sprint(to.Do("CLUSTER", "MYID"))
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	host, port, _ := strings.Cut(to.Addr, ":")
	for _, key := range from.Keys("turnstile:{*}*") {
		if from.Do("CLUSTER", "KEYSLOT", key) == int64(slot) {
			from.Do("MIGRATE", host, port, key, 0, 5000)
		}
	}
	between()
	for _, server := range []*redistest.Server{to, from, cluster.Nodes[2]} {
		server.Do("CLUSTER", "SETSLOT", slot, "NODE", toID)
	}
}

// neighbour is another session in the same slot.
func neighbour(id ID) ID {
	for {
		if other := NewID(); slotOf(other) == slotOf(id) {
			return other
		}
	}
}

// A claim while half of the session's keys have moved waits for the others.
func TestRedisClusterMovesHalfASession(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	a := readyStore(t, cluster.URL)
	c := a.mint().count(5)
	for slotOf(c.ID()) >= slots/3 {
		c = a.mint().count(5)
	}
	c.release()
	a.settle()
	slot := int(slotOf(c.ID()))
	from, to := cluster.Nodes[0], cluster.Nodes[1]
	to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", fmt.Sprint(from.Do("CLUSTER", "MYID")))
	from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", fmt.Sprint(to.Do("CLUSTER", "MYID")))
	host, port, _ := strings.Cut(to.Addr, ":")
	move := func(key string) { from.Do("MIGRATE", host, port, key, 0, 5000) }
	record := recordKeyOf(t, from, c.ID())
	move(ownerKey(c.ID()))
	d := a.claimNow(c.ID())
	eventually(t, "it has to wait", func() bool { return a.config.Metrics.Errors[errorTryAgain].Load() > 0 })
	move(record)
	d.wantClaimed(5, true).count(1)
}

// TestRedisClusterMoves: ASK while a slot is on its way, MOVED when it is there.
func TestRedisClusterMoves(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	a, b := readyStore(t, cluster.URL), readyStore(t, cluster.URL)
	c := a.mint()
	for slotOf(c.ID()) >= slots/3 {
		c = a.mint()
	}
	c.count(1)
	migrate(t, cluster, c.ID(), cluster.Nodes[0], cluster.Nodes[1], func() {
		c = b.claim(c.ID(), 1, true)
		c.store = b.Redis
		c.count(1)
		unknown := neighbour(c.ID())
		a.claim(unknown, 0, false).count(1)
		b.claim(unknown, 1, true)
		if a.config.Metrics.Errors[errorAsk].Load() == 0 || b.config.Metrics.Errors[errorAsk].Load() == 0 {
			t.Error("no ASK: the test shows nothing")
		}
	})
	c.count(1)
	if b.config.Metrics.Errors[errorMoved].Load() == 0 {
		t.Error("no MOVED: the test shows nothing")
	}
	a.claim(c.ID(), 3, true).count(1)
	receive(t, "the loser is told", c.taken)
	b.claim(c.ID(), 4, true)
}

// The master dies, a replica takes its place: with wait_replicas nothing that
// was answered is lost.
func TestRedisSentinelFailover(t *testing.T) {
	guarded := redistest.StartGuarded(t, 2)
	url := guarded.URL + "&wait_replicas=1"
	patient := func(c *RedisConfig) { c.Timeout = patience }
	a, b := readyStore(t, url, patient), readyStore(t, url, patient)
	held, left := a.mint().count(5), a.mint().count(7)
	left.release()
	a.settle()
	guarded.Master.Kill()
	held.countNow(1)
	held.wantOutcome(Committed)
	b.claim(left.ID(), 7, true).count(1)
	b.claim(held.ID(), 6, true)
}

// Without it, what the replica had not got is gone for a session that nobody
// holds; one that is held is written again.
func TestRedisFailoverToAReplicaThatLags(t *testing.T) {
	guarded := redistest.StartGuarded(t, 1)
	a := readyStore(t, guarded.URL, func(c *RedisConfig) { c.Timeout = patience })
	held, left := a.mint().count(5), a.mint().count(3)
	replica := guarded.Replicas[0]
	replica.Until("the replica has them", func() bool { return len(replica.Keys("turnstile:{*-*}:*")) == 2 })
	guarded.Master.Do("CONFIG", "SET", "requirepass", "the replica does not know")
	guarded.Master.Client.Do(context.Background(), "CLIENT", "KILL", "TYPE", "replica")
	held.count(2)
	left.count(4).release()
	a.settle()
	guarded.Master.Kill()
	held.count(1)
	a.claim(held.ID(), 8, true)
	a.claim(left.ID(), 3, true)
}
