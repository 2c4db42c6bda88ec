// Package session keeps the count of each session and knows which connection
// owns it.
//
// A connection holds a session by a Lease. Counting is two steps: the holder
// adds to Lease.Count as it likes, and Commit makes that the session's count,
// which is when replies may be sent. A claim by another connection revokes the
// lease at once, whatever goroutine or process holds it: a commit either came
// before the claim, and is in the count that the new owner starts from, or it
// fails.
//
// There are two stores. Memory is within this process and answers at once. Redis
// outlives the process and answers on the owner's loop; README.md says how.
package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync/atomic"
	"time"
)

// An ID names a session: a UUID (RFC 9562).
type ID [16]byte

// TextLen is the length of an ID as text.
const TextLen = 36

// NewID returns a random (version 4) ID.
func NewID() ID {
	var id ID
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseID reads the 36 characters of a UUID of any version, in either case.
func ParseID(text []byte) (id ID, ok bool) {
	if len(text) != TextLen || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return ID{}, false
	}
	at := 0
	for _, group := range [...][]byte{text[:8], text[9:13], text[14:18], text[19:23], text[24:]} {
		n, err := hex.Decode(id[at:], group)
		if err != nil {
			return ID{}, false
		}
		at += n
	}
	return id, true
}

// Text is the ID in lower case.
func (id ID) Text() (text [TextLen]byte) {
	at := 0
	for i, b := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		hex.Encode(text[at:], []byte{b})
		at += 2
	}
	return text
}

func (id ID) String() string {
	text := id.Text()
	return string(text[:])
}

// The errors of Mint and Claim.
var (
	// ErrFull says that the store holds as many sessions as it may that are
	// connected, or not stored yet.
	ErrFull = errors.New("session store is full")
	// ErrUnavailable says that the store cannot be reached.
	ErrUnavailable = errors.New("session store is out of reach")
	// ErrPending says that the store will call the owner's OnClaimed.
	ErrPending = errors.New("session claim is pending")
)

// An Outcome is what became of a commit.
type Outcome uint8

const (
	Committed   Outcome        = iota // the count is the session's
	Revoked                           // another owner has claimed the session: nothing was stored
	Unavailable                       // the store was out of reach for too long: whether it was stored is not known
	Pending                           // the owner's OnCommitted will tell which of these
	Outcomes    = int(Pending)        // how many a commit can end in
)

var outcomeNames = [...]string{"committed", "revoked", "unavailable", "pending"}

func (o Outcome) String() string { return outcomeNames[o] }

// A Loop runs tasks one at a time, each owner's on its own loop. *netpoll.Loop
// is one.
type Loop interface {
	Post(task func()) bool
}

// An Owner is a connection that may hold a session.
type Owner interface {
	// Loop is where OnClaimed and OnCommitted are called; always the same.
	Loop() Loop
	// Holding is the lease by which it holds the session, or claims it; always the same.
	Holding() *Lease
	// OnClaimed ends a claim that was pending; err is nil or ErrUnavailable.
	OnClaimed(resumed bool, err error)
	// OnCommitted ends a commit that was pending. took is how long that was. If
	// the outcome is Committed, so many messages are now part of the count.
	OnCommitted(outcome Outcome, messages uint64, took time.Duration)
	// OnTakenOver says that another owner has claimed the session. The store
	// calls it at most once, from any goroutine and under no lock. If a
	// commit is pending, it ends as Revoked instead.
	OnTakenOver()
}

// A Store holds the sessions. It is safe for concurrent use; a Lease is used
// by its holder alone.
type Store interface {
	// Mint makes l the lease on a new session with a random ID. The error is
	// ErrFull or ErrUnavailable.
	Mint(l *Lease, owner Owner) error

	// Claim makes l the only lease on the session, held by owner, and sets
	// l.Count; resumed says that the session was known. With
	// ErrPending, l.Count and resumed come later, with OnClaimed. Other errors are
	// ErrFull and ErrUnavailable.
	Claim(l *Lease, id ID, owner Owner) (resumed bool, err error)

	// Commit makes l.Count the session's count. While one is Pending, there
	// must be no other.
	Commit(l *Lease) Outcome

	// Release ends the lease and whatever is pending for it. The session
	// waits for its next owner until its time to live ends. A revoked or
	// zero lease stays as it is.
	Release(l *Lease)

	// Lend prepares a lease to go to another process: until TakeBack or
	// GiveAway the store stores nothing for it. It reports false while a
	// command for the lease is under way: the caller asks again later.
	Lend(l *Lease) (State, bool)
	// TakeBack ends what Lend began: the lease has not gone.
	TakeBack(l *Lease)
	// GiveAway ends a lease that another process has adopted.
	GiveAway(l *Lease)
	// Adopt makes l the lease that another process has given away.
	Adopt(l *Lease, state State, owner Owner)

	// Available reports whether new sessions can be had.
	Available() bool
	// Trouble says, for people, which part of the store keeps it from being available, and
	// why: "" if none does.
	Trouble() string

	// Len is how many sessions the process holds.
	Len() int

	// Shrink gives up the memory that sessions of the past have left in
	// tables: maps do not shrink by themselves.
	Shrink()

	// Close waits until all that was committed is stored, or ctx is done.
	// Every lease has to be released before.
	Close(ctx context.Context) error
}

// A Lease is one connection's hold on a session. The zero Lease holds none. It
// must not be copied or used again.
type Lease struct {
	// Fixed after Mint or Claim.
	id    ID
	entry entry // nil if it holds none

	// Owned by the holder.
	Count uint64 // what the session's count is once committed

	// Atomic: the session's count, and marks.
	committed atomic.Uint64

	next *Lease // Guarded by the mutex of Memory's shard: in its table
}

// An entry is what a store has to know of a lease. In Memory it is the Owner, or a
// *pendingClaim while there is none yet; in Redis a *redisLease.
type entry any

// The marks beside the count of a lease.
const (
	revoked = 1 << 63 // the session has another owner
	moved   = 1 << 62 // in another process; it is revoked too
	marks   = revoked | moved
)

// Held reports whether the lease was ever asked for. It stays true when the lease is
// revoked or released.
func (l *Lease) Held() bool { return l.entry != nil }

// ID is the session that the lease is on.
func (l *Lease) ID() ID { return l.id }

// Committed is the count that was last committed under this lease.
func (l *Lease) Committed() uint64 { return l.committed.Load() &^ marks }

// IsRevoked reports whether another owner of this process's has claimed the
// session.
func (l *Lease) IsRevoked() bool { return l.committed.Load()&revoked != 0 }

// HasMoved reports whether the session was exported to another process.
func (l *Lease) HasMoved() bool { return l.committed.Load()&moved != 0 }

// commit sets the count unless the lease is revoked.
func (l *Lease) commit() bool {
	// Only a claim competes for the word, and it comes once.
	before := l.committed.Load()
	return before&revoked == 0 && l.committed.CompareAndSwap(before, l.Count)
}

// revoke ends the lease and returns the count that stands.
func (l *Lease) revoke() uint64 { return l.committed.Or(revoked) &^ marks }

// export is revoke for another process.
func (l *Lease) export() uint64 { return l.committed.Or(revoked|moved) &^ marks }

// grant sets the count from which the holder goes on.
func (l *Lease) grant(count uint64) {
	l.Count = count
	l.committed.Store(count)
}
