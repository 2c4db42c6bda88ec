package deploy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"turnstile/server/oracle"
)

// A crowd is clients that send all the time, come back whenever they are cut
// off, send again what was not counted, and hold every answer to PROTOCOL.md §4.
type crowd struct {
	t        testing.TB
	addr     string
	pace     time.Duration
	findings oracle.Findings
	sessions []*oracle.Session
	stop     chan struct{}
	clients  sync.WaitGroup
	online   atomic.Int64 // clients that have had an answer on the connection they have

	mu     sync.Mutex
	pauses []time.Duration // Guarded by mu: from the end of a connection to the first answer on the next.
	ends   map[string]int  // Guarded by mu: connections by how they ended.
}

// paceFor is about how long each of n clients rests between two bursts of
// messages: as many clients as two cores can serve send one every second.
func paceFor(n int) time.Duration { return time.Second * time.Duration(max(1, n/2000)) }

// newCrowd connects n clients to addr, and waits until each has had an answer.
func newCrowd(t testing.TB, addr string, n int) *crowd {
	t.Helper()
	c := &crowd{t: t, addr: addr, pace: paceFor(n), stop: make(chan struct{}), ends: make(map[string]int)}
	for i := range n {
		s := c.findings.NewSession("")
		c.sessions = append(c.sessions, s)
		random := rand.New(rand.NewPCG(uint64(i), 0))
		c.clients.Go(func() { c.live(s, random) })
	}
	t.Cleanup(c.leave)
	c.wantAllOnline()
	return c
}

// wantAllOnline waits until every client has a connection on which it was
// answered.
func (c *crowd) wantAllOnline() {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d clients are connected and answered", len(c.sessions)), func() bool {
		return c.online.Load() == int64(len(c.sessions))
	})
}

func (c *crowd) isOver() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// rest waits for a while, or until the end.
func (c *crowd) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.stop:
	}
}

func (c *crowd) live(s *oracle.Session, random *rand.Rand) {
	var lost time.Time // zero before the first connection
	for !c.isOver() {
		conn := c.connect(s)
		if conn == nil {
			c.rest(time.Duration(10+random.IntN(40)) * time.Millisecond)
			continue
		}
		answered, err := c.converse(conn, random, lost)
		conn.Close()
		if answered {
			lost = time.Now()
		}
		if !c.isOver() {
			c.note(err)
		}
	}
}

// connect resumes the session; nil if that did not work out.
func (c *crowd) connect(s *oracle.Session) *oracle.Conn {
	socket, err := net.DialTimeout("tcp", c.addr, time.Second)
	if err != nil {
		return nil
	}
	socket.SetDeadline(time.Now().Add(patience))
	conn, err := s.Connect(socket)
	if err != nil {
		return nil
	}
	return conn
}

// converse sends bursts and reads the answers until the connection ends.
func (c *crowd) converse(conn *oracle.Conn, random *rand.Rand, lost time.Time) (answered bool, err error) {
	for !c.isOver() {
		conn.SetDeadline(time.Now().Add(patience))
		err := conn.Round(random, true)
		if err == nil && !answered {
			answered = true
			c.addPause(lost)
			c.online.Add(1)
		}
		if err == nil {
			err = listen(conn, c.pace/2+time.Duration(random.Int64N(int64(c.pace))))
		}
		if err != nil {
			if answered {
				c.online.Add(-1)
			}
			return answered, lastWord(conn, err)
		}
	}
	return answered, nil
}

// listen reads for a while, in which nothing should come but heartbeats.
func listen(conn *oracle.Conn, d time.Duration) error {
	conn.SetReadDeadline(time.Now().Add(d))
	if err := conn.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// lastWord is how a connection has ended: what could not be written to it may
// have been preceded by a goodbye that was not read yet.
func lastWord(conn *oracle.Conn, err error) error {
	for err == nil || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		before := err
		if err = conn.Receive(); err != nil && !errors.Is(err, oracle.ErrBye) {
			return errors.Join(before, err)
		}
	}
	return err
}

func (c *crowd) addPause(lost time.Time) {
	if lost.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pauses = append(c.pauses, time.Since(lost))
}

func (c *crowd) note(err error) {
	reason := "cut off"
	if errors.Is(err, oracle.ErrBye) {
		reason = "goodbye"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends[reason]++
}

// wantAllBack waits until every client was cut off once and is back.
func (c *crowd) wantAllBack() {
	c.t.Helper()
	eventually(c.t, "every client has come back", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.pauses) >= len(c.sessions)
	})
	c.wantAllOnline()
}

// takePauses returns the pauses since the last call, in order of length, and
// how the connections before them had ended.
func (c *crowd) takePauses() (pauses []time.Duration, ends map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pauses, ends = c.pauses, c.ends
	c.pauses, c.ends = nil, make(map[string]int)
	slices.Sort(pauses)
	return pauses, ends
}

// wantUndisturbed holds that no connection has ended since the last look.
func (c *crowd) wantUndisturbed() {
	c.t.Helper()
	if _, ends := c.takePauses(); len(ends) > 0 || c.online.Load() != int64(len(c.sessions)) {
		c.t.Errorf("clients were disturbed: connections ended: %v; %d of %d are online", ends, c.online.Load(), len(c.sessions))
	}
}

// leave ends all clients.
func (c *crowd) leave() {
	if !c.isOver() {
		close(c.stop)
	}
	c.clients.Wait()
}

// settle ends all clients, resumes every session once more, and holds all that
// they saw to the protocol.
func (c *crowd) settle() {
	c.t.Helper()
	c.leave()
	for _, s := range c.sessions {
		conn := c.connect(s)
		if conn == nil {
			c.t.Fatal("a session cannot be resumed at the end")
		}
		s.CheckEnd(conn.Start)
		conn.Close()
	}
	if violations := c.findings.Violations(); len(violations) > 0 {
		c.t.Errorf("%d violations:\n%s", len(violations), strings.Join(violations[:min(len(violations), 20)], "\n"))
	}
	answers, resumes := c.findings.Totals()
	c.t.Logf("%d sessions, %d connections, %d answers, each held to the protocol", len(c.sessions), resumes-len(c.sessions), answers)
}
