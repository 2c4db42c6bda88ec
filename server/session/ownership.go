package session

import "time"

// An ownership is what this process knows of one lease on a session in Redis:
// whether the lease owns the session, which count Redis has, which count the
// holder wants there, and so which command comes next.
//
// It is a state machine without queue, lock, clock or connection. Its user asks
// isDue, sends the command that next returns, and gives the answer to onAnswer,
// which returns what the lease's holder and the replaced owner have to be told.
//
// Most of them wait for nothing, and there is one for each connection. So what only few of
// them need stands elsewhere.
type ownership struct {
	token token
	rival *rival // nil for none

	stored uint64 // the count that Redis has
	wanted uint64 // the count that Redis is to have

	askedAt   time.Duration // when the holder asked for what it waits for; 0 if it does not wait
	renewedAt time.Duration // when the owner's key last got its time to live

	phase phase

	inFlight   bool // a command is on its way: no other one is sent
	lent       bool // the lease may go to another process: no command is sent
	released   bool // the holder has left
	mustVerify bool // somebody may have taken the session: the next command looks at the owner's key
	hadOwner   bool // the session had an owner before this lease
	confirmed  bool // Redis has had the token as the owner
	late       bool // the claim is in doubt, or has waited: somebody may have come after it
}

// A rival is whom a lease that is not the owner may find in its place. It is never changed,
// so an ownership can be copied.
type rival struct {
	expected string // the token that the owner's key is expected to have, "" for no key
	replaced token  // the owner that a command in progress replaces; zero for none
}

// expected is the token that the owner's key is expected to have, "" for no key.
func (o *ownership) expected() string {
	if o.rival == nil {
		return ""
	}
	return o.rival.expected
}

// replaced is the owner that a command in progress replaces; zero for none.
func (o *ownership) replaced() token {
	if o.rival == nil {
		return token{}
	}
	return o.rival.replaced
}

// expect says whom the owner's key is expected to name, and whom a command replaces.
func (o *ownership) expect(expected string, replaced token) {
	o.rival = nil
	if expected != "" || replaced != (token{}) {
		o.rival = &rival{expected, replaced}
	}
}

// lateAfter is how long a claim may wait until the clocks of two servers say which of two
// claims came later: they differ by less.
const lateAfter = time.Second

// A phase says what the next command does.
type phase uint8

const (
	phaseFind    phase = iota // reads who is the owner
	phaseTake                 // makes the lease the owner, and reads the count
	phaseRestore              // makes the lease the owner again, with the count known here
	phaseOwned                // stores the count
	phaseEnded                // there is none: the session is released, or another lease's
)

// A command is what next wants to be sent, as plain values.
type command struct {
	phase    phase
	token    token         // the lease's, which names its record
	expected string        // the owner that the command replaces, "" for none
	count    uint64        // the count to store
	ttl      time.Duration // the record's time to live
	renew    bool          // the owner's key gets its time to live again
	last     bool          // the holder has left: when this is stored, the lease ends
	at       time.Duration // when the command was made
}

// isClaim reports whether the command is a claim's.
func (c *command) isClaim() bool { return c.phase == phaseFind || c.phase == phaseTake }

// An answer is what Redis has answered to a command, as plain values.
type answer struct {
	kind     answerKind
	owner    string // with answerOwner
	count    uint64 // with answerDone, of phaseTake
	hadCount bool   // with answerDone, of phaseTake: the replaced owner had a record
}

type answerKind uint8

const (
	answerDone    answerKind = iota // the command did what it was to do
	answerMissing                   // the record, or the owner's key, is not there
	answerOwner                     // that is the owner's key, "" if there is none; nothing was changed
	answerRefused                   // Redis did nothing
	answerUnknown                   // no answer: Redis may have done it, or may do it later
)

// An effect is what follows from an answer outside of the ownership.
type effect struct {
	news     news
	replaced token // an owner that has just lost the session, and has to look; zero for none
}

// A news is what the lease's holder has to be told.
type news struct {
	kind    newsKind
	count   uint64        // with newsClaimed and newsCommitted: the session's count
	resumed bool          // with newsClaimed: the session was known
	askedAt time.Duration // when the holder asked, 0 if it did not
}

type newsKind uint8

const (
	newsNone              newsKind = iota
	newsClaimed                    // the session is the holder's
	newsCommitted                  // the count is stored
	newsRevoked                    // the commit failed: another lease owns the session
	newsTakenOver                  // another lease owns the session; the holder did not wait for anything
	newsClaimUnavailable           // Redis was out of reach for too long
	newsCommitUnavailable          // the same, for a commit
)

// newOwnership is that of a new lease. A holder that claims waits for the count.
func newOwnership(token token, first phase, now time.Duration) ownership {
	o := ownership{token: token, phase: first, renewedAt: now}
	if o.isClaiming() {
		o.askedAt = now
	}
	return o
}

// adoptedOwnership is that of a lease that another process has given away. Its
// first command verifies that the lease is still the owner.
func adoptedOwnership(state State, now time.Duration) ownership {
	o := ownership{
		phase: phaseRestore, token: parseToken(state.Token),
		hadOwner: state.Known, confirmed: state.Owned, mustVerify: true, wanted: state.Count, renewedAt: now,
	}
	if state.Held {
		o.phase, o.stored = phaseOwned, o.wanted
	} else {
		o.expect(state.Rival, token{})
	}
	return o
}

// isClaiming reports whether the count is not known yet.
func (o *ownership) isClaiming() bool { return o.phase == phaseFind || o.phase == phaseTake }

// isLook reports whether nobody waits for the next command: all that is known of the
// session has been stored once, and is only looked at.
func (o *ownership) isLook() bool { return o.confirmed && !o.released && o.askedAt == 0 }

// isDue reports whether there is a command to send now.
func (o *ownership) isDue(now time.Duration, times *lifetimes) bool {
	switch {
	case o.inFlight || o.lent || o.phase == phaseEnded:
		return false
	case o.phase == phaseOwned:
		return o.released || o.wanted != o.stored || o.mustRenew(now, times)
	}
	return true
}

// mustRenew reports whether the next command has to see that the owner's key is
// there, and to give it its time to live again.
func (o *ownership) mustRenew(now time.Duration, times *lifetimes) bool {
	return o.mustVerify || now-o.renewedAt >= times.renewal
}

// next is the command that is due. It is on its way until onAnswer.
func (o *ownership) next(now time.Duration, times *lifetimes) command {
	c := command{
		phase: o.phase, token: o.token, expected: o.expected(), count: o.wanted,
		ttl: times.record, renew: o.mustRenew(now, times), last: o.released, at: now,
	}
	if c.last {
		c.ttl = times.released
	}
	o.inFlight, o.mustVerify = true, false
	o.late = o.late || o.isClaiming() && now-o.askedAt >= lateAfter
	return c
}

// onAnswer ends the command that is on its way.
func (o *ownership) onAnswer(c *command, a answer) (e effect) {
	o.inFlight = false
	switch a.kind {
	case answerDone:
		e = o.onDone(c, a)
	case answerMissing:
		o.restore(c.token)
	case answerOwner:
		e.news = o.onOwner(a.owner)
	case answerUnknown:
		o.doubt()
		fallthrough
	case answerRefused:
		o.mustVerify = o.mustVerify || c.renew
	}
	o.endUnclaimed()
	return e
}

// restore has the next command make the lease the owner again, whose key should name it, by
// that token.
func (o *ownership) restore(token token) {
	o.phase = phaseRestore
	o.expect(token.String(), o.replaced())
}

// onDone follows a command that did what it was to do.
func (o *ownership) onDone(c *command, a answer) effect {
	o.stored = c.count
	if c.phase == phaseTake {
		o.stored, o.wanted = a.count, a.count
	}
	if c.phase != phaseOwned || c.renew {
		o.renewedAt = c.at
	}
	e := effect{replaced: o.replaced()}
	o.phase, o.confirmed, o.rival, o.late = phaseOwned, true, nil, false
	if c.last {
		o.phase = phaseEnded
	}
	if o.askedAt == 0 || o.stored != o.wanted {
		return e
	}
	e.news = news{kind: newsCommitted, count: o.stored, askedAt: o.askedAt}
	if c.phase == phaseTake {
		e.news.kind, e.news.resumed = newsClaimed, o.hadOwner && a.hadCount
	}
	o.askedAt = 0
	return e
}

// onOwner follows a command that found out who is the owner.
func (o *ownership) onOwner(owner string) news {
	if o.phase == phaseFind {
		o.phase = phaseTake
	}
	other, replaced := parseToken(owner), o.replaced()
	defer func() { o.expect(owner, replaced) }()
	switch {
	case owner == "" || other.lease == o.token.lease:
		// Nobody, or an attempt of this lease of which no answer came.
	case o.isClaiming() && o.late && other.epoch >= o.token.epoch:
		return o.yield()
	case o.isClaiming():
		o.hadOwner, replaced = true, other
		o.token.epoch = max(o.token.epoch, other.epoch+1) // clocks differ
	case !o.confirmed || other.epoch >= o.token.epoch:
		return o.lose()
	default: // This lease came after that one: Redis has lost what it had stored last.
		replaced = other
	}
	return news{}
}

// doubt follows a command without an answer. The lease goes on under a new
// token, so that the command does no harm if Redis carries it out later.
func (o *ownership) doubt() {
	o.late = o.isClaiming()
	switch o.phase {
	case phaseFind:
		return
	case phaseTake:
		o.phase = phaseFind
	case phaseOwned:
		o.restore(o.token)
	}
	o.token.attempt++
}

// lose ends a lease whose session is another lease's.
func (o *ownership) lose() news {
	o.phase = phaseEnded
	switch {
	case o.released:
		return news{}
	case o.askedAt == 0:
		return news{kind: newsTakenOver}
	}
	return news{kind: newsRevoked, askedAt: o.askedAt}
}

// yield ends a claim: somebody who came later has the session.
func (o *ownership) yield() news {
	n := o.giveUp(o.askedAt + 1)
	o.phase = phaseEnded
	return n
}

// commit asks for a count to be stored. It reports false if the lease has ended.
func (o *ownership) commit(count uint64, now time.Duration) bool {
	if o.phase == phaseEnded {
		return false
	}
	o.wanted, o.askedAt = count, now
	return true
}

// release notes that the holder has left. It reports whether it waited for a
// claim.
func (o *ownership) release() (abandoned bool) {
	abandoned = o.isClaiming() && o.askedAt != 0
	o.released, o.askedAt = true, 0
	if !o.inFlight {
		o.endUnclaimed()
	}
	return abandoned
}

// endUnclaimed ends a claim that nobody waits for any more.
func (o *ownership) endUnclaimed() {
	if o.released && o.isClaiming() {
		o.phase = phaseEnded
	}
}

// giveUp ends the holder's wait if it asked before then. What it asked for may
// be stored yet.
func (o *ownership) giveUp(then time.Duration) (n news) {
	if o.askedAt == 0 || o.askedAt >= then {
		return n
	}
	n = news{kind: newsCommitUnavailable, askedAt: o.askedAt}
	if o.isClaiming() {
		n.kind = newsClaimUnavailable
	}
	o.askedAt = 0
	return n
}

// expire ends a lease that nobody holds and that Redis no longer has.
func (o *ownership) expire(now time.Duration, times *lifetimes) {
	if o.released && !o.inFlight && now-o.renewedAt > times.owner {
		o.phase = phaseEnded
	}
}

// lend stops commands while the lease may go to another process. It reports
// false if one is on its way, or the holder waits for one.
func (o *ownership) lend() bool {
	if o.inFlight || o.isClaiming() || o.askedAt != 0 || o.phase == phaseEnded {
		return false
	}
	o.lent = true
	return true
}

// takeBack goes on after lend. Somebody may have taken the session meanwhile.
func (o *ownership) takeBack() { o.lent, o.mustVerify = false, true }

// giveAway ends a lease that another process has adopted.
func (o *ownership) giveAway() { o.phase = phaseEnded }

// state is the ownership as another process adopts it.
func (o *ownership) state(id ID) State {
	return State{
		ID: id, Count: o.wanted, Token: o.token.String(), Rival: o.expected(),
		Held: o.phase == phaseOwned && o.wanted == o.stored, Known: o.hadOwner, Owned: o.confirmed,
	}
}
