// Package session keeps the count of each session and knows which connection
// owns it.
//
// A connection holds a session by a Lease. Counting is two steps: the holder
// adds to Lease.Count as it likes, and Commit makes that the session's count,
// which is when replies may be sent. A claim by another connection revokes the
// lease at once, whatever goroutine holds it: a commit either came before the
// claim, and is in the count that the new owner starts from, or it fails.
package session

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync/atomic"
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

// ErrFull says that the store holds as many connected sessions as it may.
var ErrFull = errors.New("session store is full of connected sessions")

// An Owner is a connection that may hold a session.
type Owner interface {
	// OnTakenOver is called once, from any goroutine and under no lock, when
	// another owner has claimed the session.
	OnTakenOver()
}

// A Store holds the sessions. It is safe for concurrent use; a Lease is used
// by its holder alone.
type Store interface {
	// Claim makes l the only lease on the session, held by owner, and sets
	// l.Count; resumed says that the session was known. The error is ErrFull.
	Claim(l *Lease, id ID, owner Owner) (resumed bool, err error)

	// Commit makes l.Count the session's count. It reports false, and does
	// nothing, when the lease is revoked.
	Commit(l *Lease) bool

	// Release ends the lease; the session waits for its next owner until its
	// time to live is over. A revoked or zero lease is left alone.
	Release(l *Lease)
}

// A Lease is one connection's hold on a session. The zero Lease holds none. It
// must not be copied or used again.
type Lease struct {
	// Fixed after Claim.
	owner  Owner
	record *record

	// Owned by the holder.
	Count uint64 // what the session's count is once committed

	// Atomic: the session's count, with revoked set by the next claim.
	committed atomic.Uint64
}

const revoked = 1 << 63

// Held reports whether the lease was ever granted.
func (l *Lease) Held() bool { return l.record != nil }

// ID is the session that the lease was granted on.
func (l *Lease) ID() ID { return l.record.id }

// Committed is the count that was last committed under this lease.
func (l *Lease) Committed() uint64 { return l.committed.Load() &^ revoked }

// commit sets the count unless the lease is revoked.
func (l *Lease) commit() bool {
	// Only a claim competes for the word, and it comes once.
	before := l.committed.Load()
	return before&revoked == 0 && l.committed.CompareAndSwap(before, l.Count)
}

// revoke ends the lease and returns the count that stands.
func (l *Lease) revoke() uint64 { return l.committed.Or(revoked) &^ revoked }
