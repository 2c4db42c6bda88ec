package session

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"turnstile/server/redistest"
)

func TestRedisOverTLS(t *testing.T) {
	_, addr := redistest.StartTLS(t)
	a := readyStore(t, "rediss://"+addr+"?skip_verify=true")
	c := a.mint().count(1)
	a.claim(c.ID(), 1, true)
	b := startStore(t, "rediss://"+addr)
	b.wantTrouble(errorTLS, "certificate")
	if b.Available() {
		t.Error("the store is available")
	}
}

// The lost connection comes first, and hides why there is no new one.
func TestRedisPasswordIsChanged(t *testing.T) {
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "counter", "on", ">pass", "~*", "&*", "+@all")
	a := readyStore(t, "redis://counter:pass@"+server.Addr)
	server.Do("ACL", "SETUSER", "counter", "resetpass", ">word")
	server.Do("CLIENT", "KILL", "USER", "counter")
	a.wantTrouble(errorAuth, "WRONGPASS")
	server.Do("ACL", "SETUSER", "counter", ">pass")
	eventually(t, "the store is available", a.Available)
	a.wantNoTroubleTwice()
}

func TestRedisPassword(t *testing.T) {
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "counter", "on", ">pass,word", "~turnstile:*", "&turnstile:*",
		"+get", "+set", "+del", "+pexpire", "+eval", "+evalsha", "+publish", "+subscribe", "+ping")
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
	if a.Available() || len(a.troubles) != 1 || !strings.Contains(a.troubles[0].err.Error(), "NOPERM") {
		t.Errorf("available: %v, troubles %v", a.Available(), a.troubles)
	}
}
