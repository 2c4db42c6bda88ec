package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait; nothing waits for so long that works.
const patience = 2 * time.Minute

// A Crowd is clients that send all the time, each with a session of its own. They
// come back when their connection ends, send again what was not counted, and hold
// every answer to the protocol.
type Crowd struct {
	// Fixed after StartCrowd.
	t       testing.TB
	addr    string
	rest    time.Duration
	clients []*client
	entry   chan struct{} // has those that connect for the first time

	findings Findings
	ctx      context.Context // ends when the clients have to leave
	leave    context.CancelFunc
	running  sync.WaitGroup

	// Guarded by mu, as are the counts of each client.
	mu      sync.Mutex
	changed *sync.Cond
	online  int             // clients that were answered on the connection that they have
	pauses  []time.Duration // from the end of a connection to the first answer on the next
	ends    Ends
	refusal error // why a client could not connect last
}

// A client is one of a crowd. Its goroutine owns what nothing guards.
type client struct {
	crowd   *Crowd
	session *Session
	random  *rand.Rand

	// Guarded by the crowd's mu.
	rounds   int       // bursts that were answered
	answered bool      // on the connection that it has
	lost     time.Time // when the last connection ended on which it was answered
}

// Ends are connections that have ended, by the reason: ErrBye, or the network's.
type Ends []error

// Goodbyes is how many ended with the server's goodbye.
func (e Ends) Goodbyes() (n int) {
	for _, err := range e {
		if errors.Is(err, ErrBye) {
			n++
		}
	}
	return n
}

// String counts the ends, and has the reason of the first one without a goodbye.
func (e Ends) String() string {
	text := fmt.Sprintf("%d with a goodbye, %d cut off", e.Goodbyes(), len(e)-e.Goodbyes())
	if i := slices.IndexFunc(e, func(err error) bool { return !errors.Is(err, ErrBye) }); i >= 0 {
		text += fmt.Sprintf(" (%v)", e[i])
	}
	return text
}

// entryMost is how many clients of a crowd connect for the first time at once. More would wait
// in the queue of a listener (nginx's has 511 places) for longer than dialTimeout; each try
// keeps a port for a minute, and 20,000 clients need most of the ports that there are.
const entryMost = 256

// StartCrowd connects n clients to addr, and waits until each has had an answer.
// Between two bursts of messages a client rests for about as long as rest says.
// The clients leave at the end of the test.
func StartCrowd(t testing.TB, addr string, n int, rest time.Duration) *Crowd {
	t.Helper()
	return startCrowd(t, addr, n, rest, false)
}

// StartCompressingCrowd is StartCrowd with clients that agree on compression. Their messages
// are compressed, and long enough that their answers are shorter so.
func StartCompressingCrowd(t testing.TB, addr string, n int, rest time.Duration) *Crowd {
	t.Helper()
	return startCrowd(t, addr, n, rest, true)
}

func startCrowd(t testing.TB, addr string, n int, rest time.Duration, compress bool) *Crowd {
	t.Helper()
	c := &Crowd{t: t, addr: addr, rest: rest, entry: make(chan struct{}, entryMost)}
	c.changed = sync.NewCond(&c.mu)
	c.ctx, c.leave = context.WithCancel(t.Context())
	for i := range n {
		m := &client{crowd: c, session: c.findings.NewSession(""), random: rand.New(rand.NewPCG(uint64(i), 0))}
		m.session.compress = compress
		c.clients = append(c.clients, m)
		c.running.Go(m.live)
	}
	t.Cleanup(c.Leave)
	c.WaitOnline()
	return c
}

// Size is how many clients there are.
func (c *Crowd) Size() int { return len(c.clients) }

// live connects again and again until the crowd leaves.
func (m *client) live() {
	c := m.crowd
	c.entry <- struct{}{}
	entered := sync.OnceFunc(func() { <-c.entry })
	defer entered()
	for c.ctx.Err() == nil {
		conn, err := m.session.Dial(c.addr, patience)
		if err != nil {
			c.onRefusal(err)
			select {
			case <-c.ctx.Done():
			case <-time.After(time.Duration(10+m.random.IntN(40)) * time.Millisecond):
			}
			continue
		}
		entered()
		err = m.converse(conn)
		conn.Close()
		if err != nil {
			m.onEnd(err)
		}
	}
}

// converse sends bursts and reads the answers until the connection ends; the error
// is nil if the crowd leaves before.
func (m *client) converse(conn *Conn) error {
	for m.crowd.ctx.Err() == nil {
		conn.SetDeadline(time.Now().Add(patience))
		err := conn.Round(m.random, true)
		if err == nil {
			m.onAnswers()
			err = m.takeRest(conn)
		}
		if err != nil {
			return conn.lastWord(err)
		}
	}
	return nil
}

// takeRest rests, half to one and a half times as long as the crowd's rest.
func (m *client) takeRest(conn *Conn) error {
	rest := m.crowd.rest
	if rest == 0 {
		return nil
	}
	return conn.listen(rest/2 + time.Duration(m.random.Int64N(int64(rest))))
}

// onAnswers counts a burst that was answered.
func (m *client) onAnswers() {
	c := m.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	m.rounds++
	if !m.answered {
		m.answered = true
		c.online++
		if !m.lost.IsZero() {
			c.pauses = append(c.pauses, time.Since(m.lost))
		}
	}
	c.changed.Broadcast()
}

func (c *Crowd) onRefusal(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusal = err
}

// onEnd notes that a connection has ended.
func (m *client) onEnd(err error) {
	c := m.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends = append(c.ends, err)
	if m.answered {
		m.answered, m.lost = false, time.Now()
		c.online--
	}
	c.changed.Broadcast()
}

// wait waits until a condition holds; it is asked with mu held.
func (c *Crowd) wait(what string, condition func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	timer := time.AfterFunc(patience, c.changed.Broadcast)
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !condition() {
		if !time.Now().Before(deadline) {
			c.t.Fatalf("not within %v: %s; of %d clients %d are online; connections ended: %v; last refusal: %v",
				patience, what, len(c.clients), c.online, c.ends, c.refusal)
		}
		c.changed.Wait()
	}
}

// WaitRounds waits until every client has had its answers n times more.
func (c *Crowd) WaitRounds(n int) {
	c.t.Helper()
	want := make([]int, len(c.clients))
	c.mu.Lock()
	for i, m := range c.clients {
		want[i] = m.rounds + n
	}
	c.mu.Unlock()
	done := 0 // clients that are
	c.wait(fmt.Sprintf("every client is answered %d times more", n), func() bool {
		for done < len(want) && c.clients[done].rounds >= want[done] {
			done++
		}
		return done == len(want)
	})
}

// WaitOnline waits until every client has a connection on which it was answered.
func (c *Crowd) WaitOnline() {
	c.t.Helper()
	c.wait("every client is connected and answered", func() bool { return c.online == len(c.clients) })
}

// WaitOffline waits until every client has noticed that its connection has ended.
func (c *Crowd) WaitOffline() {
	c.t.Helper()
	c.wait("every client has noticed", func() bool { return c.online == 0 })
}

// WaitBack waits until every client was cut off once and is back.
func (c *Crowd) WaitBack() {
	c.t.Helper()
	c.wait("every client has come back", func() bool { return len(c.pauses) >= len(c.clients) && c.online == len(c.clients) })
}

// Ends are the connections that have ended since the last TakePauses.
func (c *Crowd) Ends() Ends {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ends)
}

// TakePauses returns the pauses since the last call, in order of length, and how
// connections have ended since then.
func (c *Crowd) TakePauses() (pauses []time.Duration, ends Ends) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pauses, ends = c.pauses, c.ends
	c.pauses, c.ends = nil, nil
	slices.Sort(pauses)
	return pauses, ends
}

// WantUndisturbed holds that no connection has ended since the last TakePauses, and
// takes them.
func (c *Crowd) WantUndisturbed() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ends) > 0 || c.online != len(c.clients) {
		c.t.Errorf("clients were disturbed: connections ended: %v; of %d clients %d are online", c.ends, len(c.clients), c.online)
	}
	c.pauses, c.ends = nil, nil
}

// Leave has the clients leave, and waits for them.
func (c *Crowd) Leave() {
	c.leave()
	c.running.Wait()
}

// Settle has the clients leave, resumes every session once more, and holds all
// that they saw to the protocol.
func (c *Crowd) Settle() {
	c.t.Helper()
	c.Leave()
	for _, m := range c.clients {
		conn, err := m.session.DialPatiently(c.addr)
		if err != nil {
			c.t.Fatalf("a session cannot be resumed at the end: %v", err)
		}
		m.session.CheckEnd(conn.Start)
		conn.Close()
	}
	if violations := c.findings.Violations(); len(violations) > 0 {
		c.t.Error(strings.Join(violations, "\n"))
	}
	answers, resumes := c.findings.Totals()
	c.t.Logf("%d sessions, %d connections, %d answers, each held to the protocol", len(c.clients), resumes-len(c.clients), answers)
}
