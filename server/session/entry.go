package session

import (
	"time"
)

// A remote is one lease of this process on a session in Redis: what is known of
// it there, what its holder wants, and so which command comes next. At most one
// command of it is on its way at a time.
type remote struct {
	// Fixed after Redis.begin.
	id   ID
	slot uint16

	// Guarded by Redis.mu.
	owner   Owner // nil once it is released
	lease   *Lease
	token   token
	phase   phase
	rival   string // the token that is expected to be the owner's, "" for none
	loser   string // the token that is replaced, until it has been told
	known   bool   // somebody has had the session before
	proven  bool   // the token was the owner's once
	queued  bool   // in a node's queue
	flying  bool   // on its way to a node
	asking  bool   // the next command follows an ASK redirection
	doubted bool   // somebody may have taken the session: the next command has to look
	lent    bool   // on its way to another process: nothing is sent
	count   uint64 // what is stored
	want    uint64 // what is to be stored

	waiting time.Duration // since when the owner waits for an answer, 0 if it does not
	renewed time.Duration // when the owner's key was last given its time to live
}

// A phase is what a remote's next command is.
type phase uint8

const (
	phaseFind    phase = iota // look who is the owner
	phaseTake                 // become the owner, and learn the count
	phaseRestore              // become the owner again, with the count known here
	phaseHeld                 // store the count
	phaseGone                 // none: released, or another one's
)

// ID implements entry.
func (r *remote) ID() ID { return r.id }

// claiming reports whether the count is not known yet.
func (r *remote) claiming() bool { return r.phase == phaseFind || r.phase == phaseTake }

// due reports whether there is anything to send.
func (r *remote) due(now, every time.Duration) bool {
	switch {
	case r.lent || r.phase == phaseGone:
		return false
	case r.phase == phaseHeld:
		return r.owner == nil || r.want != r.count || r.renews(now, every)
	}
	return true
}

// renews reports whether the next command has to see that the owner's key is
// there, and give it its time to live again.
func (r *remote) renews(now, every time.Duration) bool {
	return r.doubted || now-r.renewed >= every
}

// doubt follows a command of which nothing is known: it may have been carried
// out, or may yet be.
func (r *remote) doubt() {
	switch r.phase {
	case phaseFind:
		return
	case phaseTake:
		r.phase = phaseFind
	case phaseHeld:
		r.phase, r.rival = phaseRestore, r.token.String()
	}
	r.token.attempt++
}

// onOwner follows a command that found another owner, or, in phaseFind, who it
// is. It reports whether the session is lost.
func (r *remote) onOwner(owner string) (lost bool) {
	other := parseToken(owner)
	r.rival = owner
	switch {
	case other.holder == r.token.holder:
		// an attempt of this lease that was in doubt
	case r.claiming():
		r.known, r.loser = true, owner
		r.token.epoch = max(r.token.epoch, other.epoch+1) // clocks differ
	case !r.proven || other.epoch >= r.token.epoch:
		return true
	default: // one that this came after: Redis has lost what it had stored last
		r.loser = owner
	}
	return false
}
