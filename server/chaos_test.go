package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"turnstile/server/oracle"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// The oracle: clients that keep what they sent and what they were told, over
// two servers and one Redis, while a seeded random schedule kills, pauses,
// drains and restarts all of them. The promises that must hold are in the comment
// of package oracle: a count that was seen is never lost, none is given twice or
// left out, those that are counted are the first ones, and a session has one owner.
//
// TURNSTILE_CHAOS_SECONDS makes each run longer, TURNSTILE_CHAOS_SEED repeats a
// schedule (as far as the machine lets it). Built with the tag unfenced, whose
// commits do not look who owns the session, the oracle has to complain.

func TestChaos(t *testing.T) {
	t.Parallel()
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		runChaos(t, redis.URL(), 20*time.Second, func(c *chaos) {
			if c.random.IntN(2) == 0 {
				c.pauseRedis(redis)
			} else {
				c.killRedis(redis)
			}
		})
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		cluster := redistest.StartCluster(t, 3, "--appendonly", "yes", "--appendfsync", "always")
		runChaos(t, cluster.URL, 10*time.Second, func(c *chaos) {
			node := cluster.Nodes[c.random.IntN(len(cluster.Nodes))]
			if c.random.IntN(2) == 0 {
				c.pauseRedis(node)
			} else {
				c.killRedis(node)
			}
		})
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		guarded := redistest.StartGuarded(t, 2, "--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")
		runChaos(t, guarded.URL+"&wait_replicas=2", 20*time.Second, func(c *chaos) {
			if c.random.IntN(2) == 0 {
				c.pauseRedis(guarded.CurrentMaster()) // which may come back beside another one
			} else {
				c.failover(guarded)
			}
			guarded.WaitForReplicas(2)
			c.waitForResumes(100)
		})
	})
}

const (
	chaosSolos = 24 // sessions of one client each, which sends again what was not counted
	chaosDuels = 8  // sessions that two clients fight for

	chaosPatience = 10 * time.Second // of a client with a connection
)

type chaos struct {
	t       *testing.T
	random  *rand.Rand // of the schedule's goroutine
	seed    uint64
	addrs   [2]string       // of the servers
	servers [2]*process     // of the schedule's goroutine
	redis   func(*chaos)    // does something to Redis
	ctx     context.Context // ends when the clients have to leave
	clients sync.WaitGroup

	findings oracle.Findings
	events   []string
}

func runChaos(t *testing.T, url string, length time.Duration, redis func(*chaos)) {
	length = secondsOf(t, "TURNSTILE_CHAOS_SECONDS", length)
	seed := rand.Uint64()
	if text := os.Getenv("TURNSTILE_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TURNSTILE_CHAOS_SEED=%d", seed)
	c := &chaos{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), redis: redis}
	for i := range c.servers {
		c.servers[i] = startServer(t, "-redis", url, "-store-timeout", "2s",
			"-drain-timeout", "1s", "-write-timeout", "2s", "-heartbeat", "2s", "-workers", "2")
		c.addrs[i] = c.servers[i].addr
	}
	for _, p := range c.servers {
		p.waitReady()
	}
	var leave context.CancelFunc
	c.ctx, leave = context.WithCancel(t.Context())
	sessions := c.startClients()
	c.unfold(length)
	leave()
	c.clients.Wait()
	c.settle(sessions)
	c.report()
}

func (c *chaos) startClients() (sessions []*oracle.Session) {
	for i := range uint64(chaosSolos + chaosDuels) {
		id, rivals := session.NewID().String(), uint64(1)
		if i >= chaosSolos {
			rivals = 2
		} else if i%2 == 0 {
			id = "" // the server makes it up
		}
		s := c.findings.NewSession(id)
		sessions = append(sessions, s)
		for side := range rivals {
			c.clients.Go(func() { c.live(s, rand.New(rand.NewPCG(c.seed, 1+2*i+side)), rivals == 1) })
		}
	}
	return sessions
}

// unfold does something to Redis, then one thing after the other, for about
// length; for longer on a machine on which little happens in that time.
func (c *chaos) unfold(length time.Duration) {
	deadline := time.Now().Add(length)
	for n := 0; time.Now().Before(deadline) || !c.hasShownEnough() && time.Since(deadline) < patience; n++ {
		time.Sleep(time.Duration(c.random.IntN(400)) * time.Millisecond) // in which the clients go on
		i := c.random.IntN(len(c.servers))
		server := c.servers[i]
		what := c.random.IntN(4)
		if n == 0 {
			what = 3
		}
		switch what {
		case 0:
			c.note("kill server %s", server.addr)
			server.signal(syscall.SIGKILL)
			server.wait()
			c.servers[i] = server.startAgain()
		case 1:
			c.note("drain server %s", server.addr)
			server.signal(syscall.SIGTERM)
			server.wait()
			c.servers[i] = server.startAgain()
		case 2:
			pause := time.Duration(c.random.IntN(1500)) * time.Millisecond
			c.note("pause server %s for %v", server.addr, pause)
			server.signal(syscall.SIGSTOP)
			time.Sleep(pause) // this is what happens
			server.signal(syscall.SIGCONT)
		case 3:
			c.redis(c)
		}
	}
}

func (c *chaos) pauseRedis(s *redistest.Server) {
	pause := time.Duration(c.random.IntN(3000)) * time.Millisecond // the store's timeout is 2 s
	c.note("pause redis %s for %v", s.Addr, pause)
	s.Pause()
	time.Sleep(pause) // this is what happens
	s.Continue()
}

func (c *chaos) killRedis(s *redistest.Server) {
	away := time.Duration(c.random.IntN(1000)) * time.Millisecond
	c.note("kill redis %s for %v", s.Addr, away)
	s.Kill()
	time.Sleep(away) // this is what happens
	s.Restart()
}

// failover kills the master and waits until another one has its place.
func (c *chaos) failover(g *redistest.Guarded) {
	master := g.CurrentMaster()
	c.note("kill redis master %s", master.Addr)
	master.Kill()
	g.WaitForAnotherMaster(master)
	master.Restart()
	master.Follow(g.CurrentMaster())
}

// waitForResumes waits until clients have gone on so often.
func (c *chaos) waitForResumes(n int) {
	_, before := c.findings.Totals()
	eventually(c.t, "the clients go on", func() bool {
		_, resumes := c.findings.Totals()
		return resumes >= before+n
	})
}

func (c *chaos) note(format string, args ...any) {
	c.events = append(c.events, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// settle resumes every session once more, with everything in order again.
func (c *chaos) settle(sessions []*oracle.Session) {
	for _, p := range c.servers {
		p.waitReady()
	}
	for i, s := range sessions {
		var conn *oracle.Conn
		eventually(c.t, "a session is resumed", func() bool {
			var err error
			conn, err = s.Dial(c.addrs[i%2], chaosPatience)
			return err == nil
		})
		s.CheckEnd(conn.Start)
		conn.Close()
	}
}

func (c *chaos) report() {
	violations := c.findings.Violations()
	answers, resumes := c.findings.Totals()
	c.t.Logf("%d events, %d resumes, %d answers", len(c.events), resumes, answers)
	if fenceIsBroken {
		if len(violations) == 0 {
			c.t.Error("the fence is broken and the oracle has not noticed")
		}
		return
	}
	if len(violations) > 0 {
		c.t.Errorf("%s\nthe schedule:\n%s", strings.Join(violations, "\n"), strings.Join(c.events, "\n"))
	}
	if !c.hasShownEnough() {
		c.t.Error("too little happened: the run shows nothing")
	}
}

func (c *chaos) hasShownEnough() bool {
	answers, resumes := c.findings.Totals()
	return answers >= 1000 && resumes >= 100 && len(c.events) >= 3
}

// live connects again and again until the end. A client that is alone knows
// exactly what each message's count must be.
func (c *chaos) live(s *oracle.Session, random *rand.Rand, alone bool) {
	for c.ctx.Err() == nil {
		conn, err := s.Dial(c.addrs[random.IntN(2)], chaosPatience)
		if err != nil {
			time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond) // as a client does before it tries again
			continue
		}
		c.converse(conn, random, alone)
		if random.IntN(2) == 0 {
			conn.Conn.(*net.TCPConn).SetLinger(0) // a reset
		}
		conn.Close()
	}
}

// converse sends bursts and reads the answers, until it breaks or has enough.
func (c *chaos) converse(conn *oracle.Conn, random *rand.Rand, alone bool) {
	for range random.IntN(40) {
		if c.ctx.Err() != nil {
			return
		}
		if random.IntN(20) == 0 {
			conn.Burst(random, alone)
			return // without a look at what comes back
		}
		if conn.Round(random, alone) != nil {
			return
		}
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond) // as a client that has nothing to say
	}
}
