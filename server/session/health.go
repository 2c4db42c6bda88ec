package session

import (
	"sync/atomic"
	"time"
)

// A health says whether a part of Redis that the store needs answers: a node, or the
// subscription to hints.
type health struct {
	// Fixed.
	store *Redis
	name  string // for people

	// Owned by the goroutine that talks to the part.
	told toldKinds // since it answered

	// Atomic: since when it does not answer, on the store's clock, 0 if it does; whether it
	// ever did; and what the last error of this outage was.
	failing   atomic.Int64
	up        atomic.Bool
	lastError atomic.Pointer[string]
}

// toldKinds are the kinds of error that somebody has been told of in one outage.
type toldKinds [errorKinds]bool

// add adds a kind, and reports whether it is new.
func (t *toldKinds) add(kind errorKind) (isNew bool) {
	isNew = !t[kind]
	t[kind] = true
	return isNew
}

// begin sets up a health that has not answered yet.
func (h *health) begin(s *Redis, name string) {
	h.store, h.name = s, name
	h.failing.Store(int64(s.config.Now()))
}

// isDown reports whether the part has not answered for longer than the timeout, or
// never has.
func (h *health) isDown() bool {
	since := time.Duration(h.failing.Load())
	return since != 0 && (!h.up.Load() || h.store.config.Now()-since > h.store.config.Timeout)
}

// onTrouble notes that the part does not answer. It tells of the first error of each
// kind: the first of all, a lost connection say, may hide the cause.
func (h *health) onTrouble(err error) {
	s, kind := h.store, errorKindOf(err)
	s.config.Metrics.Errors[kind].Inc()
	h.lastError.Store(&errorNames[kind].name)
	h.failing.CompareAndSwap(0, int64(s.config.Now()))
	if h.told.add(kind) {
		s.config.OnTrouble(h.name, kind, s.config.Address.withoutUser(err))
	}
}

// onSuccess notes that the part answers.
func (h *health) onSuccess() {
	s := h.store
	since := time.Duration(h.failing.Swap(0))
	h.up.Store(true)
	h.lastError.Store(nil)
	if since != 0 {
		h.told = toldKinds{}
		s.config.OnRecovered(h.name, s.config.Now()-since)
	}
}

// trouble is the kind of error of this outage, "" without one.
func (h *health) trouble() string {
	if kind := h.lastError.Load(); kind != nil {
		return *kind
	}
	return ""
}
