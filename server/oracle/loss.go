package oracle

// A life of a session ends when the store loses it, and it starts anew, at 0 or at an
// older count.
type life struct {
	number      int
	start       uint64
	answered    map[uint64]string // the message that each count was the answer to
	highest     uint64            // count that was seen
	unsolved    uint64            // messages without an answer: they may be counted or not
	last        *Conn
	isContested bool // the store has lost it while connections fought for it
}

func newLife(number int, start uint64) *life {
	return &life{number: number, start: start, highest: start, answered: make(map[uint64]string)}
}

// most is how many messages can be counted.
func (l *life) most() uint64 { return l.start + uint64(len(l.answered)) + l.unsolved }

// A loss says whether the store has lost a session, and nothing has shown yet that
// it has it again.
type loss struct {
	isUnderWay bool
	isOpen     bool // from the loss to the first sign
	over       int  // losses that are over
}

// onSign follows a sign that the store has the session: what was asked for, or sent,
// when so many losses were over is answered.
func (l *loss) onSign(over int) {
	if !l.isUnderWay && over == l.over {
		l.isOpen = false
	}
}

// Lose notes that the store loses the session while lose runs. Less is promised then.
//
// The session may start at 0, once, and counts from 1 again; or at an older count, which
// somebody who had lost it before had not stored yet. It may do so until there is a sign
// that the store has it: a resume that was asked for after lose returned, or the answer to
// a message that was sent after it. Connections that resumed it before are answered nothing
// that they send after it has started anew.
//
// If connections fight for the session, the store loses also who came later. One that
// had lost the session and was not told yet may go on counting until the newer one has
// written again. So what the two are told may be the same counts, until a connection that
// asked for the session after lose returned has resumed it. From there on all is promised.
func Lose(sessions []*Session, lose func()) {
	for _, s := range sessions {
		s.setLoss(func(l *loss) { l.isUnderWay, l.isOpen = true, true })
	}
	lose()
	for _, s := range sessions {
		s.setLoss(func(l *loss) { l.isUnderWay = false; l.over++ })
	}
}

func (s *Session) setLoss(set func(*loss)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set(&s.loss)
	s.life.isContested = s.life.isContested || !s.alone
}

// HasAnswers reports whether a message of the session was answered in this life. Before
// that, a resume does not tell which life it is of.
func (s *Session) HasAnswers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.life.answered) > 0
}

// lifeOf is the life to which a resume at count belongs, and the count that was seen
// of it before. Under mu.
func (s *Session) lifeOf(count uint64, a asked) (l *life, seen uint64) {
	switch {
	case s.loss.isOpen && s.endsLife(count, a):
		s.life, s.loss.isOpen = newLife(s.life.number+1, count), false
		return s.life, count
	case a.life == s.life:
		return s.life, a.seen
	case s.life.start <= count && count <= s.life.most():
		return s.life, 0
	}
	return a.life, a.seen // it was resumed before the loss, and is told of it late
}

// endsLife reports whether a resume at count, after a loss, begins another life. Under mu.
func (s *Session) endsLife(count uint64, a asked) bool {
	if !s.life.isContested {
		return count < s.life.highest
	}
	isAfter := !s.loss.isUnderWay && a.losses == s.loss.over
	return count == 0 && s.life.highest > 0 || isAfter && count <= s.sent
}

// A bar is a time in which nobody may resume a session; the zero bar is none.
type bar struct {
	isDown bool
	number int
}

// Bar notes that the store cannot know who owns the session: until Unbar, who asks for
// it gets no answer.
func (s *Session) Bar() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bar = bar{true, s.bar.number + 1}
}

// Unbar ends what Bar began.
func (s *Session) Unbar() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bar.isDown = false
}

// checkBar holds a resume to what Bar says. Under mu.
func (s *Session) checkBar(count uint64, a asked) {
	if a.bar.isDown && s.bar == a.bar {
		s.findings.violation("session %s: resumed at %d, but its owner cannot be read", s.id, count)
	}
}
