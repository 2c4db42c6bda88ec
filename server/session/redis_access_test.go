package session

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"turnstile/server/doctest"
	"turnstile/server/redistest"
)

func TestRedisOverTLS(t *testing.T) {
	_, addr := redistest.StartTLS(t)
	a := readyStore(t, "rediss://"+addr+"?skip_verify=true")
	c := a.mint().count(1)
	a.claim(c.ID(), 1, true)
	b := startStore(t, "rediss://"+addr)
	b.wantTrouble(errorCertificate, "certificate")
	if b.Available() {
		t.Error("the store is available")
	}
}

// The port of a plain Redis: the store says that it is the TLS handshake which fails, and
// what to write.
func TestRedisTLSToAPlainPort(t *testing.T) {
	server := redistest.Start(t)
	a := startStore(t, "rediss://"+server.Addr, func(c *RedisConfig) { c.Timeout = 400 * time.Millisecond })
	a.wantTrouble(errorTLS, "if that port speaks no TLS, write redis://")
	if a.Available() {
		t.Error("the store is available")
	}
}

// The port of a Redis with TLS, which only resets the connection: the store finds out, and
// says what to write.
func TestRedisPlainToATLSPort(t *testing.T) {
	_, addr := redistest.StartTLS(t)
	for _, url := range []string{"redis://" + addr, "redis://" + addr + "," + addr} {
		a := startStore(t, url)
		a.wantTrouble(errorTLS, "that port speaks TLS: write rediss://")
		if a.Available() {
			t.Errorf("%s: the store is available", url)
		}
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

// rightsOf are those that deploy/README.md names for one form of the address.
func rightsOf(t *testing.T, form string) (rights []any) {
	t.Helper()
	_, list, _ := strings.Cut(doctest.Text(t, "deploy/README.md"), "A user of its own needs these rights:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for _, item := range strings.Split(list, "\n- ") {
		if what, named, _ := strings.Cut(strings.TrimPrefix(item, "- "), ": `"); what == form {
			for _, right := range strings.Fields(strings.TrimRight(named, "`;.\n")) {
				rights = append(rights, right)
			}
		}
	}
	if len(rights) == 0 {
		t.Fatalf("deploy/README.md names no rights for %q", form)
	}
	return rights
}

// addUser makes a user with the rights that deploy/README.md names for these forms of
// the address, and with no other.
func addUser(t *testing.T, server *redistest.Server, name, password string, forms ...string) {
	t.Helper()
	args := []any{"ACL", "SETUSER", name, "reset", "on", ">" + password}
	for _, form := range forms {
		args = append(args, rightsOf(t, form)...)
	}
	server.Do(args...)
}

const everyForm = "every form of the address"

// wantAllWorks has sessions minted, counted, claimed, renewed and released.
func wantAllWorks(a, b *instance) {
	a.t.Helper()
	for range 10 {
		c := a.mint().count(1)
		a.verifyAll()
		a.settle()
		d := b.claim(c.ID(), 1, true)
		receive(a.t, "the loser is told", c.taken)
		d.release()
	}
	b.settle()
	if !a.Available() || !b.Available() || len(a.troubles)+len(b.troubles) > 0 {
		a.t.Errorf("available: %v, %v; troubles %v, %v", a.Available(), b.Available(), a.troubles, b.troubles)
	}
}

func TestRedisPassword(t *testing.T) {
	server := redistest.Start(t)
	addUser(t, server, "counter", "pass,word", everyForm)
	addUser(t, server, "other", "word", everyForm, "a database other than 0, such as `/1`")
	server.Do("ACL", "SETUSER", "default", "off")
	server.Client.Close()
	server.Client = redis.NewClient(&redis.Options{
		Addr: server.Addr, Username: "counter", Password: "pass,word", Protocol: 2, DisableIdentity: true,
	})
	wantAllWorks(readyStore(t, "redis://counter:pass%2Cword@"+server.Addr), readyStore(t, "unix://counter:pass%2Cword@"+server.Socket))
	wantAllWorks(readyStore(t, "redis://other:word@"+server.Addr+"/1"), readyStore(t, "unix://other:word@"+server.Socket+"?db=1"))
}

// A user that lacks one right of those that deploy/README.md names: the store is not
// available, and says which command it is.
func TestRedisRightIsMissing(t *testing.T) {
	server := redistest.Start(t)
	rights := rightsOf(t, everyForm)
	names := 0
	for _, right := range append(rights, "+wait", "+select") {
		name, isCommand := strings.CutPrefix(right.(string), "+")
		if !isCommand || name == "ping" {
			continue
		}
		names++
		server.Do(append(append([]any{"ACL", "SETUSER", name, "on", ">word", "+wait", "+select"}, rights...), "-"+name)...)
		url, kind := "redis://"+name+":word@"+server.Addr+"/1", errorAuth
		if name == "wait" {
			url, kind = url+"?wait_replicas=1", errorNotReplicated
		}
		a := startStore(t, url)
		a.wantTrouble(kind, name)
		if a.Available() {
			t.Errorf("without the right to %s the store is available", name)
		}
	}
	if names < 8 {
		t.Errorf("%d commands were tried: %v", names, rights)
	}
}

// A right is taken away while a session is held: its owner's key is not taken for
// renewed because the count beside it is stored.
func TestRedisRenewalIsRefused(t *testing.T) {
	server := redistest.Start(t)
	addUser(t, server, "counter", "word", everyForm)
	a := readyStore(t, "redis://counter:word@"+server.Addr)
	c := a.mint().count(1)
	const short = int64(100_000)
	server.Do("PEXPIRE", ownerKey(c.ID()), short)
	server.Do("ACL", "SETUSER", "counter", "-pexpire")
	a.verifyAll()
	a.wantTrouble(errorAuth, "PEXPIRE")
	server.Do("ACL", "SETUSER", "counter", "+pexpire")
	server.Until("the owner's key is renewed", func() bool { return server.Do("PTTL", ownerKey(c.ID())).(int64) > short })
	c.count(1)
}

// The right to delete is taken away while somebody resumes a session: it goes over to the
// new owner only once the record of the older one can be deleted, or both would count.
func TestRedisReplacedRecordIsNotDeleted(t *testing.T) {
	server := redistest.Start(t)
	addUser(t, server, "counter", "word", everyForm)
	url := "redis://counter:word@" + server.Addr
	a, b := readyStore(t, url), readyStore(t, url)
	holder := a.mint().count(3)
	server.Do("ACL", "SETUSER", "counter", "-del")
	next := b.claimNow(holder.ID())
	eventually(t, "Redis has refused it", func() bool {
		return b.config.Metrics.Errors[errorOther].Load()+b.config.Metrics.Errors[errorAuth].Load() > 0
	})
	server.Do("ACL", "SETUSER", "counter", "+del")
	if err := receive(t, "the session is claimed", next.claimed); err != nil || next.Count != 3 {
		t.Fatalf("claimed at %d: %v", next.Count, err)
	}
	holder.countNow(1)
	holder.wantOutcome(Revoked)
}

func TestRedisSentinelPassword(t *testing.T) {
	guarded := redistest.StartGuarded(t, 0)
	for _, s := range guarded.Sentinels {
		addUser(t, s, "watcher", "word", "Redis Sentinel, for `sentinel_username`")
	}
	addUser(t, guarded.Master, "counter", "pass", everyForm)
	url := strings.Replace(guarded.URL, "redis://", "redis://counter:pass@", 1) + "&sentinel_username=watcher&sentinel_password="
	wantAllWorks(readyStore(t, url+"word"), readyStore(t, url+"word"))
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
	if a.lane() != nil {
		t.Error("a lane carries commits that no WAIT follows")
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
