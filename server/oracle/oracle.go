// Package oracle has clients that keep what they sent and what they were told,
// and say where that breaks a promise of the protocol:
//
//   - never lost: a count that was seen is at least what the next resume gets;
//   - never doubled, never skipped: a session's counts are 1, 2, 3, … over all
//     its connections, and no count is the answer to two messages;
//   - prefix: of what a connection sent, the first messages are those counted;
//   - one owner: nothing is answered on a connection after another one resumed.
//
// It is for tests. All of it is safe for concurrent use but for a Conn, which
// belongs to one goroutine, and a Crowd, whose methods belong to the test's.
package oracle

import (
	"fmt"
	"net"
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

	mu       sync.Mutex
	id       string            // "" until the server has made one up
	answered map[uint64]string // the message that each count was the answer to
	highest  uint64            // count that was seen
	sent     uint64            // messages, by all connections
	unsolved uint64            // of them without an answer: they may be counted or not
	alone    bool              // one connection at a time uses it
	last     *Conn
}

// NewSession is a session that no connection has resumed yet. With an empty id
// the server makes one up at the first connect.
func (f *Findings) NewSession(id string) *Session {
	return &Session{findings: f, id: id, answered: make(map[uint64]string)}
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

// connect resumes the session over conn, which it upgrades.
func (s *Session) connect(conn net.Conn) (*Conn, error) {
	s.mu.Lock()
	seen, target := s.highest, "/ws/chat/"
	if s.id != "" {
		target += "?session_id=" + s.id
	}
	s.mu.Unlock()
	c, hello, err := open(conn, target, s.compress)
	if err != nil {
		return nil, err
	}
	s.resumed(hello, seen)
	c.session, c.Start, c.next = s, hello.Count, hello.Count
	s.mu.Lock()
	s.last = c
	s.mu.Unlock()
	return c, nil
}

// resumed checks the count at which the session goes on; seen is the highest
// that was known before it was asked for.
func (s *Session) resumed(hello frame, seen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = hello.SessionID
	if hello.Count < seen {
		s.findings.violation("session %s: %d was seen, and it is resumed at %d", s.id, seen, hello.Count)
	}
	if most := uint64(len(s.answered)) + s.unsolved; hello.Count > most {
		s.findings.violation("session %s: resumed at %d, but only %d messages can be counted", s.id, hello.Count, most)
	}
	if l := s.last; s.alone && hello.Count > l.next+uint64(len(l.waiting)) {
		s.findings.violation("session %s: resumed at %d, but the last connection had %d answers "+
			"and sent %d more: an older one's were counted late",
			s.id, hello.Count, l.next, len(l.waiting))
	}
	s.findings.mu.Lock()
	s.findings.resumes++
	s.findings.mu.Unlock()
}

// CheckEnd holds the count at which the session ends to what was seen of it.
func (s *Session) CheckEnd(count uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.answered {
		if n > count {
			s.findings.violation("session %s ends at %d, and %d was answered", s.id, count, n)
		}
	}
	if missing := count - uint64(len(s.answered)); missing > s.unsolved {
		s.findings.violation("session %s ends at %d with %d answers, and only %d messages had none", s.id, count, len(s.answered), s.unsolved)
	}
}
