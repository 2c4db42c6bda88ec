package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"turnstile/proto"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// The oracle: clients that keep what they sent and what they were told, over
// two servers and one Redis, while a seeded random schedule kills, pauses,
// drains and restarts all of them. What must hold is PROTOCOL's: a count that
// was seen is never lost, none is given twice or left out, those that are
// counted are the first ones, and a session has one owner.
//
// TURNSTILE_CHAOS_SECONDS makes each run longer, TURNSTILE_CHAOS_SEED repeats a
// schedule (as far as the machine lets it). Built with the tag unfenced, whose
// commits do not look who owns the session, the oracle has to complain.

func TestChaos(t *testing.T) {
	t.Run("single", func(t *testing.T) {
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
)

type chaos struct {
	t       *testing.T
	random  *rand.Rand // of the schedule's goroutine
	seed    uint64
	servers [2]*chaosServer
	redis   func(*chaos) // does something to Redis
	stop    chan struct{}
	clients sync.WaitGroup

	mu         sync.Mutex
	violations []string
	events     []string
	answered   int
	resumes    int
}

// A chaosServer is killed and started again at the same address.
type chaosServer struct {
	addr  string
	flags []string
	p     *process
}

func runChaos(t *testing.T, url string, length time.Duration, redis func(*chaos)) {
	if text := os.Getenv("TURNSTILE_CHAOS_SECONDS"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		length = time.Duration(seconds) * time.Second
	}
	seed := rand.Uint64()
	if text := os.Getenv("TURNSTILE_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TURNSTILE_CHAOS_SEED=%d", seed)
	c := &chaos{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), redis: redis, stop: make(chan struct{})}
	for i := range c.servers {
		c.servers[i] = &chaosServer{flags: []string{"-redis", url, "-store-timeout", "2s", "-drain-timeout", "1s", "-write-timeout", "2s", "-heartbeat", "2s", "-workers", "2"}}
		c.start(c.servers[i], testHost+":0")
		c.servers[i].addr = c.servers[i].p.addr
	}
	for _, s := range c.servers {
		s.p.waitReady()
	}
	oracles := c.startClients()
	c.unfold(length)
	close(c.stop)
	c.clients.Wait()
	c.settle(oracles)
	c.report()
}

func (c *chaos) start(s *chaosServer, addr string) {
	s.p = startServer(c.t, append([]string{"-listen", addr}, s.flags...)...)
}

func (c *chaos) startClients() (oracles []*oracle) {
	for i := range uint64(chaosSolos + chaosDuels) {
		o := &oracle{chaos: c, id: session.NewID().String(), minted: i%2 == 0 && i < chaosSolos, acked: make(map[uint64]string)}
		oracles = append(oracles, o)
		rivals := uint64(1)
		if i >= chaosSolos {
			rivals = 2
		}
		for side := range rivals {
			c.clients.Go(func() { o.live(rand.New(rand.NewPCG(c.seed, 1+2*i+side)), rivals == 1) })
		}
	}
	return oracles
}

// unfold does something to Redis, then one thing after the other, for about
// length; three things at the least, since a failover takes long.
func (c *chaos) unfold(length time.Duration) {
	deadline := time.Now().Add(length)
	for n := 0; n < 3 || time.Now().Before(deadline); n++ {
		time.Sleep(time.Duration(c.random.IntN(400)) * time.Millisecond)
		server := c.servers[c.random.IntN(len(c.servers))]
		what := c.random.IntN(4)
		if n == 0 {
			what = 3
		}
		switch what {
		case 0:
			c.note("kill server %s", server.addr)
			server.p.signal(syscall.SIGKILL)
			server.p.wait()
			c.start(server, server.addr)
		case 1:
			c.note("drain server %s", server.addr)
			server.p.signal(syscall.SIGTERM)
			server.p.wait()
			c.start(server, server.addr)
		case 2:
			pause := time.Duration(c.random.IntN(1500)) * time.Millisecond
			c.note("pause server %s for %v", server.addr, pause)
			server.p.signal(syscall.SIGSTOP)
			time.Sleep(pause)
			server.p.signal(syscall.SIGCONT)
		case 3:
			c.redis(c)
		}
	}
}

func (c *chaos) pauseRedis(s *redistest.Server) {
	pause := time.Duration(c.random.IntN(3000)) * time.Millisecond // the store's timeout is 2 s
	c.note("pause redis %s for %v", s.Addr, pause)
	s.Pause()
	time.Sleep(pause)
	s.Continue()
}

func (c *chaos) killRedis(s *redistest.Server) {
	away := time.Duration(c.random.IntN(1000)) * time.Millisecond
	c.note("kill redis %s for %v", s.Addr, away)
	s.Kill()
	time.Sleep(away)
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
	resumes := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.resumes
	}
	before := resumes()
	eventually(c.t, "the clients go on", func() bool { return resumes() >= before+n })
}

func (c *chaos) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

func (c *chaos) violation(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violations = append(c.violations, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// settle resumes every session once more, with everything in order again.
func (c *chaos) settle(oracles []*oracle) {
	for _, s := range c.servers {
		s.p.waitReady()
	}
	for i, o := range oracles {
		var conn *chaosConn
		eventually(c.t, "a session is resumed", func() bool {
			conn = o.connect(c.servers[i%2].addr)
			return conn != nil
		})
		o.checkEnd(conn.start)
		conn.Close()
	}
}

func (c *chaos) report() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Logf("%d events, %d resumes, %d answers", len(c.events), c.resumes, c.answered)
	if fenceIsBroken {
		if len(c.violations) == 0 {
			c.t.Error("the fence is broken and the oracle has not noticed")
		}
		return
	}
	if len(c.violations) > 0 {
		c.t.Errorf("%s\nthe schedule:\n%s", strings.Join(c.violations, "\n"), strings.Join(c.events, "\n"))
	}
	if c.answered < 1000 || c.resumes < 100 || len(c.events) < 3 {
		c.t.Error("too little happened: the run shows nothing")
	}
}

// An oracle is one session and what is known of it.
type oracle struct {
	chaos  *chaos
	minted bool // the server makes up the ID

	mu       sync.Mutex
	id       string
	acked    map[uint64]string // what was answered with each count
	highest  uint64            // count that was seen
	sent     uint64            // messages, by all connections
	unsolved uint64            // of them without an answer: they may be counted or not
}

// live connects again and again until the end. A solo client, which nobody
// takes over, knows exactly what each message's count must be.
func (o *oracle) live(random *rand.Rand, solo bool) {
	for {
		select {
		case <-o.chaos.stop:
			return
		default:
		}
		conn := o.connect(o.chaos.servers[random.IntN(2)].addr)
		if conn == nil {
			time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
			continue
		}
		conn.converse(random, solo)
		if random.IntN(2) == 0 {
			conn.Conn.(*net.TCPConn).SetLinger(0) // a reset
		}
		conn.Close()
	}
}

// connect resumes the session; nil if that did not work out.
func (o *oracle) connect(addr string) *chaosConn {
	o.mu.Lock()
	seen, target := o.highest, "/ws/chat/?session_id="+o.id
	if o.minted {
		target = "/ws/chat/"
	}
	o.mu.Unlock()
	conn, err := dialChaos(addr, target)
	if err != nil {
		return nil
	}
	var hello reply
	if err := conn.read(&hello); err != nil || hello.Type != "session" {
		conn.Close()
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.minted, o.id = false, hello.SessionID
	conn.oracle, conn.start, conn.next = o, hello.Count, hello.Count
	if hello.Count < seen {
		o.chaos.violation("session %s: %d was seen, and it is resumed at %d", o.id, seen, hello.Count)
	}
	if most := uint64(len(o.acked)) + o.unsolved; hello.Count > most {
		o.chaos.violation("session %s: resumed at %d, but only %d messages can be counted", o.id, hello.Count, most)
	}
	o.chaos.mu.Lock()
	o.chaos.resumes++
	o.chaos.mu.Unlock()
	return conn
}

// checkEnd holds the count at which the session ends to what was seen.
func (o *oracle) checkEnd(count uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n := range o.acked {
		if n > count {
			o.chaos.violation("session %s ends at %d, and %d was answered", o.id, count, n)
		}
	}
	if missing := count - uint64(len(o.acked)); missing > o.unsolved {
		o.chaos.violation("session %s ends at %d with %d answers, and only %d messages had none", o.id, count, len(o.acked), o.unsolved)
	}
	o.chaos.mu.Lock()
	o.chaos.answered += len(o.acked)
	o.chaos.mu.Unlock()
}

// A chaosConn is one connection of a session's.
type chaosConn struct {
	net.Conn
	oracle  *oracle
	start   uint64   // the count at which it was resumed
	next    uint64   // the count of the last answer
	waiting []string // what was sent and has no answer
	reader  *bufio.Reader
	parser  proto.Parser
	unread  []byte
}

func dialChaos(addr, target string) (*chaosConn, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return nil, err
	}
	c := &chaosConn{Conn: conn, reader: bufio.NewReader(conn), parser: proto.Parser{Rules: &clientRules}}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	conn.Write([]byte(upgradeRequest(target, v2Header)))
	response, err := http.ReadResponse(c.reader, nil)
	if err == nil && response.StatusCode != http.StatusSwitchingProtocols {
		err = errors.New(response.Status)
	}
	if err != nil {
		conn.Close()
	}
	return c, err
}

// converse sends bursts and reads the answers, until it breaks or has enough.
func (c *chaosConn) converse(random *rand.Rand, solo bool) {
	for range random.IntN(40) {
		select {
		case <-c.oracle.chaos.stop:
			return
		default:
		}
		for range 1 + random.IntN(8) {
			c.send(solo)
		}
		if random.IntN(20) == 0 {
			return // without a look at what comes back
		}
		for len(c.waiting) > 0 {
			if !c.receive() {
				return
			}
		}
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
	}
}

// send sends one message. A solo client's says which count it must get: what
// was not counted of a connection before is so sent again.
func (c *chaosConn) send(solo bool) {
	o := c.oracle
	o.mu.Lock()
	o.sent++
	o.unsolved++
	message := fmt.Sprintf("message %d", o.sent)
	if solo {
		message = fmt.Sprintf("must be %d", c.next+uint64(len(c.waiting))+1)
	}
	o.mu.Unlock()
	c.waiting = append(c.waiting, message)
	c.Write(text(message))
}

// receive takes one frame; false is the connection's end.
func (c *chaosConn) receive() bool {
	var r reply
	if err := c.read(&r); err != nil || r.Bye || r.Error != "" {
		return false
	}
	if r.Type != "" {
		return true // a heartbeat
	}
	o := c.oracle
	o.mu.Lock()
	defer o.mu.Unlock()
	c.next++
	if r.Count != c.next || r.Message != c.waiting[0] || r.SessionID != o.id {
		o.chaos.violation("session %s, resumed at %d: got count %d of %q, want %d of %q", o.id, c.start, r.Count, r.Message, c.next, c.waiting[0])
	}
	if before, double := o.acked[r.Count]; double {
		o.chaos.violation("session %s: count %d is the answer to %q and to %q", o.id, r.Count, before, r.Message)
	}
	c.waiting = c.waiting[1:]
	o.acked[r.Count] = r.Message
	o.highest = max(o.highest, r.Count)
	o.unsolved--
	return true
}

// read reads the next text frame.
func (c *chaosConn) read(r *reply) error {
	for {
		m, n, err := c.parser.Next(c.unread)
		if err != nil {
			c.oracle.chaos.violation("a frame against the protocol: %v", err)
			return err
		}
		c.unread = c.unread[n:]
		switch m.Op {
		case proto.OpText:
			return json.Unmarshal(m.Payload, r)
		case proto.OpClose:
			return net.ErrClosed
		case proto.OpPing:
			c.Write(frame(proto.OpPong, true, string(m.Payload)))
			continue
		}
		chunk := make([]byte, 16<<10)
		if n, err = c.reader.Read(chunk); err != nil {
			return err
		}
		c.unread = append(c.unread, chunk[:n]...)
	}
}
