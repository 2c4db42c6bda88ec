package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"turnstile/server/oracle"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// A fault is something that happens to the servers, to Redis, or between them.
type fault struct {
	name   string
	happen func(*chaos)
}

var faultsOfAllForms = []fault{
	{"servers killed", (*chaos).killServer},
	{"servers drained", (*chaos).drainServer},
	{"servers paused", (*chaos).pauseServer},
	{"Redis paused", (*chaos).pauseRedis},
	{"Redis flushed", (*chaos).flushRedis},
	{"rights taken", (*chaos).takeRight},
	{"keys damaged", func(c *chaos) { c.damageKeys(func() {}) }},
	{"keys damaged and a server killed", func(c *chaos) { c.damageKeys(c.killServer) }}, // which may have held them
	{"connections to Redis killed", (*chaos).killConnections},
	{"clients left while Redis stood still", (*chaos).leaveClaims},
}

// A form is one way to run Redis.
type form struct {
	urls     [2]string                  // for each server
	nodes    []*redistest.Server        // all that have sessions
	masters  func() []*redistest.Server // those that take writes
	replicas int                        // of a master
	faults   []fault                    // that only this form has, one at least
	recover  func(*chaos)               // waits for Redis after a fault of it
}

// chaosUser is the servers' user: rights and connections are taken from it, and not
// from the test.
var chaosUser = []string{"--user", "counter", "on", ">word", "~*", "&*", "+@all"}

func asChaosUser(url string) string { return strings.Replace(url, "://", "://counter:word@", 1) }

// singleForm is one Redis. One of the servers reaches it through a proxy.
func singleForm(redis *redistest.Server, proxy *redistest.Proxy, url, proxyURL string) form {
	all := []*redistest.Server{redis}
	return form{
		urls: [2]string{asChaosUser(url), asChaosUser(proxyURL)}, nodes: all,
		masters: func() []*redistest.Server { return all },
		recover: func(*chaos) {},
		faults: []fault{
			{"Redis killed", (*chaos).killRedis},
			{"pipelines cut", func(c *chaos) { c.cutPipelines(proxy) }},
		},
	}
}

func clusterForm(cluster *redistest.Cluster) form {
	url := asChaosUser(cluster.URL)
	return form{
		urls: [2]string{url, url}, nodes: cluster.Nodes,
		masters: func() []*redistest.Server { return cluster.Nodes },
		recover: func(*chaos) {},
		faults:  []fault{{"Redis killed", (*chaos).killRedis}},
	}
}

func sentinelForm(guarded *redistest.Guarded) form {
	const replicas = 2
	url := asChaosUser(guarded.URL + "&wait_replicas=2")
	return form{
		urls: [2]string{url, url}, nodes: append([]*redistest.Server{guarded.Master}, guarded.Replicas...),
		masters:  func() []*redistest.Server { return []*redistest.Server{guarded.CurrentMaster()} },
		replicas: replicas,
		recover: func(c *chaos) {
			guarded.WaitForReplicas(replicas)
			c.waitForResumes(100)
		},
		faults: []fault{{"Redis masters killed", func(c *chaos) { c.failover(guarded) }}},
	}
}

func (c *chaos) someMaster() *redistest.Server {
	masters := c.form.masters()
	return masters[c.random.IntN(len(masters))]
}

func (c *chaos) below(most time.Duration) time.Duration { return randomBelow(c.random, most) }

func randomBelow(random *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(most)))
}

func (c *chaos) killServer() { c.endServer("kill", syscall.SIGKILL) }

func (c *chaos) drainServer() { c.endServer("drain", syscall.SIGTERM) }

func (c *chaos) endServer(what string, signal syscall.Signal) {
	i := c.random.IntN(len(c.servers))
	server := c.servers[i]
	c.note("%s server %s", what, server.addr)
	server.signal(signal)
	server.wait()
	c.servers[i] = server.startAgain()
}

func (c *chaos) pauseServer() {
	server, pause := c.servers[c.random.IntN(len(c.servers))], c.below(1500*time.Millisecond)
	c.note("pause server %s for %v", server.addr, pause)
	server.signal(syscall.SIGSTOP)
	time.Sleep(pause) // this is what happens
	server.signal(syscall.SIGCONT)
}

func (c *chaos) pauseRedis() {
	s, pause := c.someMaster(), c.below(3*time.Second) // the store's timeout is 2 s
	c.note("pause redis %s for %v", s.Addr, pause)
	s.Pause()
	time.Sleep(pause) // this is what happens
	s.Continue()      // beside another master, perhaps
	c.form.recover(c)
}

func (c *chaos) killRedis() {
	s, away := c.someMaster(), c.below(time.Second)
	c.note("kill redis %s for %v", s.Addr, away)
	s.Kill()
	time.Sleep(away) // this is what happens
	s.Restart()
	c.form.recover(c)
}

// failover kills the master and waits until another one has its place.
func (c *chaos) failover(g *redistest.Guarded) {
	master := g.CurrentMaster()
	c.note("kill redis master %s", master.Addr)
	master.Kill()
	g.WaitForAnotherMaster(master)
	master.Restart()
	master.Follow(g.CurrentMaster())
	c.form.recover(c)
}

// killConnections ends every connection of the servers to a master, whatever it is for.
func (c *chaos) killConnections() {
	s := c.someMaster()
	n := s.Do("CLIENT", "KILL", "USER", "counter")
	c.note("kill %v connections to redis %s", n, s.Addr)
}

// cutPipelines cuts a server's connections after some bytes, whatever they are for.
func (c *chaos) cutPipelines(proxy *redistest.Proxy) {
	bytes, from, some := c.random.IntN(4000), redistest.Side(c.random.IntN(2)), 1+c.random.IntN(5)
	c.note("cut %d connections after %d bytes from side %d", some, bytes, from)
	proxy.CutAfter(bytes, from, some)
}

// rights are those of which one is taken.
var rights = []string{"get", "set", "eval", "evalsha", "pexpire", "del", "publish"}

// takeRight takes a right from the servers' user, and gives it back later: at once, or
// when the servers have noticed and are not ready.
func (c *chaos) takeRight() {
	right, isLong := rights[c.random.IntN(len(rights))], c.random.IntN(2) == 0
	c.note("take the right to %s, until the servers are not ready: %v", right, isLong)
	c.setRight("-" + right)
	if isLong {
		for _, p := range c.servers {
			eventually(c.t, "the server is not ready", p.isNotReady)
		}
	} else {
		time.Sleep(c.below(2 * time.Second)) // in which the servers may notice, or not
	}
	c.setRight("+" + right)
	for _, p := range c.servers {
		p.waitReady()
	}
}

func (c *chaos) setRight(right string) {
	for _, s := range c.form.nodes {
		s.Do("ACL", "SETUSER", "counter", right)
	}
}

func (p *process) isNotReady() bool {
	status, body, _ := p.get("/readyz/")
	return status == http.StatusServiceUnavailable && strings.Contains(body, "not_ready")
}

// leaveClaims has clients hang up while their claims wait, and resume at the other
// server. There they keep the session.
func (c *chaos) leaveClaims() {
	c.note("pause redis, and leave while claims wait")
	var sessions []*oracle.Session
	for i := range 2 * len(c.servers) {
		s := c.findings.NewSession(session.NewID().String())
		conn := c.resume(s, i%2)
		conn.Round(c.random, true)
		conn.Close()
		sessions = append(sessions, s)
	}
	masters := c.form.masters()
	each(masters, (*redistest.Server).Pause)
	inParallel(sessions, func(i int, s *oracle.Session) { c.leave(s, i%2, 50*time.Millisecond) })
	each(masters, (*redistest.Server).Continue)
	inParallel(sessions, func(i int, s *oracle.Session) { c.keepSession(s, 1-i%2) })
	c.form.recover(c)
}

// keepSession resumes a session, and is answered on that connection for a while. The
// oracle complains if somebody else takes the session.
func (c *chaos) keepSession(s *oracle.Session, server int) {
	conn, err := s.Dial(c.addrs[server], chaosPatience)
	if err != nil {
		return
	}
	defer conn.Close()
	random := rand.New(rand.NewPCG(c.seed, uint64(server)))
	for range 20 {
		if conn.Round(random, true) != nil {
			return
		}
		time.Sleep(randomBelow(random, 10*time.Millisecond)) // as a client that has nothing to say
	}
}

func each[T any](all []T, do func(T)) {
	for _, one := range all {
		do(one)
	}
}

func inParallel[T any](all []T, do func(i int, one T)) {
	var running sync.WaitGroup
	for i, one := range all {
		running.Go(func() { do(i, one) })
	}
	running.Wait()
}

// ownerKeyOf is the key that says who owns a session.
func ownerKeyOf(s *oracle.Session) string { return "turnstile:{" + s.ID() + "}" }

// has reports whether a master has the slot of a session. A node of a cluster knows that
// at any time.
func has(master *redistest.Server, s *oracle.Session) bool {
	err := master.Client.Exists(context.Background(), ownerKeyOf(s)).Err()
	return err == nil || !strings.HasPrefix(err.Error(), "MOVED")
}

// isWritten reports whether Redis has an owner of a session.
func (c *chaos) isWritten(s *oracle.Session) bool {
	return slices.ContainsFunc(c.form.masters(), func(master *redistest.Server) bool {
		return master.Client.Exists(context.Background(), ownerKeyOf(s)).Val() == 1
	})
}

// sessionsOn are the clients' sessions that a master has.
func (c *chaos) sessionsOn(master *redistest.Server) (on []*oracle.Session) {
	for _, s := range c.sessions {
		if s.ID() != "" && has(master, s) {
			on = append(on, s)
		}
	}
	return on
}

// flushRedis empties a master. The clients' sessions may start at 0 then, as
// oracle.Lose has it. Those of witnesses may not: they are held while it happens, and
// whoever resumes them waits until they are there again, or asks the holder.
func (c *chaos) flushRedis() {
	master := c.someMaster()
	lost := c.sessionsOn(master)
	for _, s := range lost {
		eventually(c.t, "a message of each session is answered", s.HasAnswers)
	}
	witnesses := c.witnesses(master)
	oracle.Lose(lost, func() {
		err := master.Client.FlushAll(context.Background()).Err() // it may be the master no longer
		c.note("flush redis %s: %v", master.Addr, err)
	})
	for i, w := range witnesses {
		if w.conn.IsOpen() { // or it was not held
			w.check(c, i < len(c.servers))
		}
		w.conn.Close()
	}
}

// A witness is a session that a server holds.
type witness struct {
	session *oracle.Session
	conn    *oracle.Conn
	server  int
}

// witnesses are two for each server, with counts.
func (c *chaos) witnesses(master *redistest.Server) (all []witness) {
	for i := range 2 * len(c.servers) {
		var s *oracle.Session
		eventually(c.t, "a session belongs to the master", func() bool {
			s = c.findings.NewSession(session.NewID().String())
			return has(master, s)
		})
		w := witness{session: s, conn: c.resume(s, i%2), server: i % 2}
		w.conn.Round(c.random, false)
		all = append(all, w)
	}
	return all
}

// check resumes a witness at its holder at once, or at the other server later.
func (w *witness) check(c *chaos, atHolder bool) {
	server := w.server
	if !atHolder {
		server = 1 - server
		eventually(c.t, "a session that is held is written again", func() bool { return c.isWritten(w.session) })
	}
	conn := c.resume(w.session, server)
	w.session.CheckEnd(conn.Start)
	conn.Close()
}

// damageKeys writes into keys of sessions what the servers never write, and later puts
// back what was there, if it was not written again. Nothing may be lost by that. Until
// then, nobody may resume a session whose owner's key is damaged. One whose record is
// damaged can be resumed only if somebody holds it, who writes it again.
func (c *chaos) damageKeys(meanwhile func()) {
	master := c.someMaster()
	sessions := c.sessionsOn(master)
	c.random.Shuffle(len(sessions), func(i, j int) { sessions[i], sessions[j] = sessions[j], sessions[i] })
	var damages []*damage
	for _, s := range sessions[:min(len(sessions), 4)] {
		if d := c.damage(master, s); d != nil {
			damages = append(damages, d)
		}
	}
	meanwhile()
	time.Sleep(c.below(3 * time.Second)) // in which claims are refused
	for _, d := range damages {
		c.undo(d)
	}
}

// garbage is what the servers never write; the last stands for a list.
var (
	garbageRecords = []string{"", "x", "-1", "1.5", "9999999999999999999", "list"}
	garbageOwners  = []string{"", "x", "1.2-3", "0.0-0.0", "list"}
)

// A damage is garbage in one key.
type damage struct {
	session           *oracle.Session
	key, garbage, old string
}

// damage damages one key of a session; nil if that has changed meanwhile.
func (c *chaos) damage(master *redistest.Server, s *oracle.Session) *damage {
	ctx := context.Background()
	keys := master.Client.Keys(ctx, ownerKeyOf(s)+"*").Val()
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	d := &damage{session: s, key: keys[c.random.IntN(len(keys))]}
	garbage := garbageRecords
	if d.isOfOwner() {
		garbage = garbageOwners
	}
	d.garbage = garbage[c.random.IntN(len(garbage))]
	d.old = master.Client.Get(ctx, d.key).Val()
	done, err := master.Client.Eval(ctx, damageScript, []string{d.key}, d.old, d.garbage).Bool()
	c.note("%q becomes %q, it was %q: %v, %v", d.key, d.garbage, d.old, done, err)
	if err == nil && !done {
		return nil
	}
	if done && d.isOfOwner() {
		s.Bar()
	}
	return d
}

func (d *damage) isOfOwner() bool { return d.key == ownerKeyOf(d.session) }

// undo puts the old value back, unless somebody has written there, in all of Redis.
func (c *chaos) undo(d *damage) {
	if d.isOfOwner() {
		d.session.Unbar()
	}
	eventually(c.t, "a damage is undone", func() bool {
		return slices.ContainsFunc(c.form.masters(), func(master *redistest.Server) bool {
			ctx, pipe := context.Background(), master.Client.Pipeline()
			pipe.Eval(ctx, undoScript, []string{d.key}, d.garbage, d.old)
			wait := pipe.Do(ctx, "WAIT", c.form.replicas, time.Second.Milliseconds())
			_, err := pipe.Exec(ctx)
			n, _ := wait.Int()
			return err == nil && n >= c.form.replicas
		})
	})
}

const damageScript = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local ttl = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1])
if ARGV[2] == 'list' then redis.call('RPUSH', KEYS[1], 'x') else redis.call('SET', KEYS[1], ARGV[2]) end
redis.call('PEXPIRE', KEYS[1], ttl)
return 1
`

const undoScript = `
local is = redis.call('TYPE', KEYS[1]).ok
if is == 'list' or is == 'string' and redis.call('GET', KEYS[1]) == ARGV[1] then
	redis.call('SET', KEYS[1], ARGV[2], 'PX', redis.call('PTTL', KEYS[1]))
end
return 1
`
