// Package oracle has clients that keep what they sent and what they were told,
// and say where that breaks a promise of the protocol:
//
//   - never lost: a count that was seen is at least what the next resume gets;
//   - never doubled, never skipped: a session's counts are 1, 2, 3, … over all
//     its connections, and no count is the answer to two messages;
//   - prefix: of what a connection sent, the first messages are those counted;
//   - one owner: nothing is answered on a connection after another one resumed;
//   - the newest wins: a session is taken over only by a connection that asked for
//     it later, and not by one that has left before.
//
// Where a test breaks the store itself, it says so with Session.Lose and
// Session.Bar: what is promised then stands there.
//
// It is for tests. All of it is safe for concurrent use but for a Conn, which
// belongs to one goroutine, and a Crowd, whose methods belong to the test's.
package oracle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Findings are what the sessions of one run have shown.
type Findings struct {
	mu         sync.Mutex
	violations []string
	answers    int
	resumes    int
}

// mostViolations is how many are told; the first ones are the cause of most
// others.
const mostViolations = 20

// Violations are the first of the broken promises so far, each with its time,
// and how many there are in all.
func (f *Findings) Violations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	told := slices.Clone(f.violations[:min(len(f.violations), mostViolations)])
	if len(f.violations) > len(told) {
		told = append(told, fmt.Sprintf("and %d more", len(f.violations)-len(told)))
	}
	return told
}

// Count is how many promises were broken so far.
func (f *Findings) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.violations)
}

// Totals are how many messages were answered and how many sessions resumed.
func (f *Findings) Totals() (answers, resumes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answers, f.resumes
}

func (f *Findings) violation(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.violations = append(f.violations, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// A Session is one session and what is known of it.
type Session struct {
	findings *Findings
	compress bool // its connections agree on compression, and use it

	mu    sync.Mutex
	id    string // "" until the server has made one up
	life  *life  // since the store lost the session the last time
	sent  uint64 // messages, by all connections
	alone bool   // one connection at a time uses it
	loss  loss
	bar   bar
}

// NewSession is a session that no connection has resumed yet. With an empty id
// the server makes one up at the first connect.
func (f *Findings) NewSession(id string) *Session {
	return &Session{findings: f, id: id, life: newLife(0, 0)}
}

// ID is the session's, "" if nobody has resumed it yet.
func (s *Session) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// dialTimeout is short, since clients try again: a server that has not taken a
// connection by then has too many that wait.
const dialTimeout = time.Second

// Dial connects to addr and resumes the session. The error says why the server did
// not. The connection ends after timeout, unless its deadline is set anew.
func (s *Session) Dial(addr string, timeout time.Duration) (*Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, dialTimeout)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(timeout))
	c, err := s.connect(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// DialPatiently is Dial for who does not try again: a machine that others keep busy may need
// more than dialTimeout to connect.
func (s *Session) DialPatiently(addr string) (c *Conn, err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		c, err = s.Dial(addr, patience)
		var dial *net.OpError
		if !errors.As(err, &dial) || dial.Op != "dial" || !dial.Timeout() {
			break
		}
	}
	return c, err
}

// connect resumes the session over conn, which it upgrades.
func (s *Session) connect(conn net.Conn) (*Conn, error) {
	a := s.ask()
	c, hello, err := open(conn, a.target, s.compress)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.awaitEnd(conn)
		}
		return nil, err
	}
	s.resumed(c, hello, a)
	return c, nil
}

// An asked is what was known of a session when it was asked for.
type asked struct {
	target string
	life   *life
	seen   uint64 // the highest count
	losses int    // that were over
	bar    bar
}

func (s *Session) ask() asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := asked{target: "/ws/chat/", life: s.life, seen: s.life.highest, losses: s.loss.over, bar: s.bar}
	if s.id != "" {
		a.target += "?session_id=" + s.id
	}
	return a
}

// resumed checks the count at which the session goes on.
func (s *Session) resumed(c *Conn, hello frame, a asked) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = hello.SessionID
	s.checkBar(hello.Count, a)
	l, seen := s.lifeOf(hello.Count, a)
	if !l.isContested {
		s.checkStart(hello.Count, seen, l)
	}
	s.loss.onSign(a.losses)
	c.session, c.life, c.Start, c.next = s, l, hello.Count, hello.Count
	l.last = c
	s.findings.mu.Lock()
	s.findings.resumes++
	s.findings.mu.Unlock()
}

// checkStart holds the count at which a session is resumed to what was seen of its life
// before it was asked for. Under mu.
func (s *Session) checkStart(count, seen uint64, l *life) {
	if count < seen {
		s.findings.violation("session %s: %d was seen, and it is resumed at %d", s.id, seen, count)
	}
	if count > l.most() {
		s.findings.violation("session %s: resumed at %d, but only %d messages can be counted", s.id, count, l.most())
	}
	if last := l.last; s.alone && last != nil && count > last.next+uint64(len(last.waiting)) {
		s.findings.violation("session %s: resumed at %d, but the last connection had %d answers "+
			"and sent %d more: an older one's were counted late",
			s.id, count, last.next, len(last.waiting))
	}
}

// CheckEnd holds the count at which the session ends to what was seen of it.
func (s *Session) CheckEnd(count uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.life.answered {
		if n > count {
			s.findings.violation("session %s ends at %d, and %d was answered", s.id, count, n)
		}
	}
	l := s.life
	if missing := count - l.start - uint64(len(l.answered)); missing > l.unsolved {
		s.findings.violation("session %s ends at %d with %d answers, and only %d messages had none", s.id, count, len(l.answered), l.unsolved)
	}
}
