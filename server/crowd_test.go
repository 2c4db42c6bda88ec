package main

import (
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstile/server/oracle"
)

// A crowd is clients that keep what they are told, each with a session of its
// own, and that come back when their connection ends.
type crowd struct {
	t        *testing.T
	findings oracle.Findings
	sessions []*oracle.Session
	addr     string
	stop     chan struct{}
	clients  sync.WaitGroup

	mu     sync.Mutex
	more   *sync.Cond
	rounds []int   // of each client
	ends   []error // of connections
}

func startCrowd(t *testing.T, n int, addr string) *crowd {
	c := &crowd{t: t, addr: addr, stop: make(chan struct{}), rounds: make([]int, n)}
	c.more = sync.NewCond(&c.mu)
	for i := range n {
		s := c.findings.NewSession("")
		c.sessions = append(c.sessions, s)
		c.clients.Go(func() { c.live(i, s) })
	}
	c.awaitRounds(1)
	return c
}

func (c *crowd) isOver() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

func (c *crowd) live(i int, s *oracle.Session) {
	random := rand.New(rand.NewPCG(uint64(i), 7))
	for !c.isOver() {
		conn, err := c.connect(s)
		if err != nil {
			select {
			case <-c.stop:
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		for err == nil && !c.isOver() {
			if err = conn.Round(random, true); err == nil {
				c.count(i)
			}
		}
		conn.Close()
		if err != nil {
			c.mu.Lock()
			c.ends = append(c.ends, err)
			c.mu.Unlock()
		}
	}
}

// connect resumes a session.
func (c *crowd) connect(s *oracle.Session) (*oracle.Conn, error) {
	socket, err := net.DialTimeout("tcp", c.addr, patience)
	if err != nil {
		return nil, err
	}
	socket.SetDeadline(time.Now().Add(patience))
	return s.Connect(socket)
}

func (c *crowd) count(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rounds[i]++
	c.more.Broadcast()
}

// awaitRounds waits until every client has had its answers n times more.
func (c *crowd) awaitRounds(n int) {
	c.t.Helper()
	timer := time.AfterFunc(patience, c.more.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, had := range append([]int(nil), c.rounds...) {
		for c.rounds[i] < had+n {
			if time.Now().After(deadline) {
				c.t.Fatalf("client %d gets no answers any more", i)
			}
			c.more.Wait()
		}
	}
}

// leave stops the clients; ends is nobody else's then.
func (c *crowd) leave() {
	close(c.stop)
	c.clients.Wait()
}

// end stops the clients, resumes every session once more, and reports what
// broke.
func (c *crowd) end() {
	c.t.Helper()
	c.leave()
	for _, s := range c.sessions {
		var conn *oracle.Conn
		eventually(c.t, "a session is resumed", func() (ok bool) {
			var err error
			conn, err = c.connect(s)
			return err == nil
		})
		s.CheckEnd(conn.Start)
		conn.Close()
	}
	if broken := c.findings.Violations(); len(broken) > 0 {
		c.t.Errorf("%s", strings.Join(broken, "\n"))
	}
	answers, resumes := c.findings.Totals()
	c.t.Logf("%d answers, %d resumes, %d connections ended", answers, resumes, len(c.ends))
}
