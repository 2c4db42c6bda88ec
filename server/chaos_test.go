package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/server/oracle"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// The oracle: clients that keep what they sent and what they were told, over
// two servers and one Redis, while a seeded random schedule goes through all
// faults. The promises that must hold are in the comment of package oracle: a count
// that was seen is never lost, none is given twice or left out, those that are
// counted are the first ones, a session has one owner, and the newest wins.
//
// TURNSTILE_CHAOS_SECONDS makes each run longer, TURNSTILE_CHAOS_ONLY picks faults,
// TURNSTILE_CHAOS_SEED repeats a schedule (as far as the machine lets it). Built with the
// tag unfenced, whose commits do not look who owns the session, the oracle has to complain.

func TestChaos(t *testing.T) {
	t.Parallel()
	options := append([]string{"--appendonly", "yes", "--appendfsync", "always"}, chaosUser...)
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		redis := redistest.Start(t, options...)
		proxy := redistest.StartProxy(t, redis)
		runChaos(t, singleForm(redis, proxy, redis.URL(), proxy.URL), 20*time.Second)
	})
	t.Run("tls", func(t *testing.T) {
		t.Parallel()
		redis, addr := redistest.StartTLS(t, options...)
		proxy := redistest.StartProxyTo(t, addr)
		const query = "?skip_verify=true"
		runChaos(t, singleForm(redis, proxy, "rediss://"+addr+query, "rediss://"+proxy.Addr+query), 10*time.Second)
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		runChaos(t, clusterForm(redistest.StartCluster(t, 3, options...)), 10*time.Second)
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		guarded := redistest.StartGuarded(t, 2, append(options, "--repl-diskless-sync-delay", "0")...)
		runChaos(t, sentinelForm(guarded), 20*time.Second)
	})
}

const (
	chaosSolos = 24 // sessions of one client each, which sends again what was not counted
	chaosDuels = 8  // sessions that two clients fight for

	chaosPatience = 10 * time.Second // of a client with a connection
)

// chaosOnly, in the environment, is a part of the names of those faults that happen, without
// the others: "killed", to have many kills in little time.
const chaosOnly = "TURNSTILE_CHAOS_ONLY"

type chaos struct {
	t       *testing.T
	form    form
	random  *rand.Rand // of the schedule's goroutine
	seed    uint64
	isLong  bool
	addrs   [2]string   // of the servers
	servers [2]*process // of the schedule's goroutine

	sessions []*oracle.Session
	ctx      context.Context // ends when the clients have to leave
	clients  sync.WaitGroup
	left     atomic.Int64 // claims whose client has left

	findings oracle.Findings
	events   []string
	faults   int
	counts   map[string]int // of faults, by name
}

func runChaos(t *testing.T, f form, length time.Duration) {
	length = secondsOf(t, "TURNSTILE_CHAOS_SECONDS", length)
	seed := rand.Uint64()
	if text := os.Getenv("TURNSTILE_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TURNSTILE_CHAOS_SEED=%d", seed)
	c := &chaos{
		t: t, form: f, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), counts: make(map[string]int),
		isLong: os.Getenv("TURNSTILE_CHAOS_SECONDS") != "",
	}
	if len(c.deck()) == 0 {
		t.Fatalf("%s=%q is in no fault's name", chaosOnly, os.Getenv(chaosOnly))
	}
	t.Cleanup(c.tellSchedule)
	c.startServers()
	var leave context.CancelFunc
	c.ctx, leave = context.WithCancel(t.Context())
	c.startClients()
	c.unfold(length)
	leave()
	c.clients.Wait()
	c.settle()
	c.report()
}

func (c *chaos) startServers() {
	for i := range c.servers {
		c.servers[i] = startServer(c.t, "-redis", c.form.urls[i], "-store-timeout", "2s",
			"-drain-timeout", "1s", "-write-timeout", "2s", "-heartbeat", "2s", "-workers", "2")
		c.addrs[i] = c.servers[i].addr
	}
	for _, p := range c.servers {
		p.waitReady()
	}
}

func (c *chaos) startClients() {
	for i := range uint64(chaosSolos + chaosDuels) {
		id, rivals := session.NewID().String(), uint64(1)
		if i >= chaosSolos {
			rivals = 2
		} else if i%2 == 0 {
			id = "" // the server makes it up
		}
		s := c.findings.NewSession(id)
		c.sessions = append(c.sessions, s)
		for side := range rivals {
			c.clients.Go(func() { c.live(s, rand.New(rand.NewPCG(c.seed, 1+2*i+side)), rivals == 1) })
		}
	}
}

// unfold goes through all faults, in another order each time, for about length; for
// longer on a machine on which little happens in that time.
func (c *chaos) unfold(length time.Duration) {
	deadline := time.Now().Add(length)
	var deck []fault
	for time.Now().Before(deadline) || !c.hasShownEnough() && time.Since(deadline) < patience {
		if len(deck) == 0 {
			deck = c.shuffled()
		}
		time.Sleep(time.Duration(c.random.IntN(400)) * time.Millisecond) // in which the clients go on
		c.faults++
		c.counts[deck[0].name]++
		deck[0].happen(c)
		deck = deck[1:]
	}
}

// deck is the faults that a run has: all, or those whose names have a part in common.
func (c *chaos) deck() []fault {
	return slices.DeleteFunc(slices.Concat(c.form.faults, faultsOfAllForms), func(f fault) bool {
		return !strings.Contains(f.name, os.Getenv(chaosOnly))
	})
}

// shuffled is the deck in random order, but for the first one, which with all faults is one
// that the form has for Redis.
func (c *chaos) shuffled() (deck []fault) {
	deck = c.deck()
	c.random.Shuffle(len(deck)-1, func(i, j int) { deck[i+1], deck[j+1] = deck[j+1], deck[i+1] })
	return deck
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
func (c *chaos) settle() {
	for _, p := range c.servers {
		p.waitReady()
	}
	for i, s := range c.sessions {
		conn := c.resume(s, i%2)
		s.CheckEnd(conn.Start)
		conn.Close()
	}
}

// resume resumes a session at a server, as soon as that lets it.
func (c *chaos) resume(s *oracle.Session, server int) (conn *oracle.Conn) {
	c.t.Helper()
	eventually(c.t, "a session is resumed", func() bool {
		var err error
		conn, err = s.Dial(c.addrs[server], chaosPatience)
		return err == nil
	})
	return conn
}

func (c *chaos) report() {
	violations := c.findings.Count()
	answers, resumes := c.findings.Totals()
	c.t.Logf("%d violations in %d faults (%s); %d answers checked, %d resumes, %d claims whose client left",
		violations, c.faults, c.told(), answers, resumes, c.left.Load())
	if fenceIsBroken {
		if violations == 0 {
			c.t.Error("the fence is broken and the oracle has not noticed")
		}
		return
	}
	if violations > 0 {
		c.t.Error(strings.Join(c.findings.Violations(), "\n"))
	}
	if !c.hasShownEnough() {
		c.t.Error("too little happened: the run shows nothing")
	}
}

// tellSchedule says what happened, if the test has failed.
func (c *chaos) tellSchedule() {
	if c.t.Failed() {
		c.t.Logf("the schedule:\n%s", strings.Join(c.events, "\n"))
	}
}

// told says how often each fault happened.
func (c *chaos) told() string {
	var counts []string
	for name, n := range c.counts {
		counts = append(counts, fmt.Sprint(name, ": ", n))
	}
	slices.Sort(counts)
	return strings.Join(counts, ", ")
}

// hasShownEnough reports whether enough happened; in a long run, every fault has to.
func (c *chaos) hasShownEnough() bool {
	answers, resumes := c.findings.Totals()
	every := len(c.counts) == len(c.deck())
	return answers >= 1000 && resumes >= 100 && c.faults >= 3 && (every || !c.isLong)
}

// live connects again and again until the end. A client that is alone knows
// exactly what each message's count must be, and sometimes asks one server and leaves
// before it resumes at the other one.
func (c *chaos) live(s *oracle.Session, random *rand.Rand, alone bool) {
	for c.ctx.Err() == nil {
		i := random.IntN(2)
		if alone && s.ID() != "" && random.IntN(8) == 0 {
			c.leave(s, 1-i, time.Duration(random.IntN(20))*time.Millisecond)
		}
		conn, err := s.Dial(c.addrs[i], chaosPatience)
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

// leave asks a server for a session, and leaves.
func (c *chaos) leave(s *oracle.Session, server int, after time.Duration) {
	if s.Leave(c.addrs[server], after) == nil {
		c.left.Add(1)
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
