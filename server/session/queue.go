package session

import "runtime"

// A queue is leases, first in, first out. Neither end copies what is between.
type queue struct {
	leases []*redisLease
	first  int // of leases: what is before has gone
}

func (q *queue) len() int { return len(q.leases) - q.first }

func (q *queue) push(r *redisLease) { q.leases = append(q.leases, r) }

// pop takes the first lease of a queue that is not empty.
func (q *queue) pop() *redisLease {
	r := q.leases[q.first]
	q.leases[q.first] = nil
	if q.first++; 2*q.first >= len(q.leases) { // each lease is moved once at the most
		rest := copy(q.leases, q.leases[q.first:])
		clear(q.leases[rest:])
		q.leases, q.first = q.leases[:rest], 0
	}
	return r
}

// waiting is what is in the queue, until it changes.
func (q *queue) waiting() []*redisLease { return q.leases[q.first:] }

// takeAll empties the queue.
func (q *queue) takeAll() []*redisLease {
	all := q.waiting()
	*q = queue{}
	return all
}

// visitMost is how many leases are looked at before the lock is let go: well below a
// millisecond.
const visitMost = 512

// visit calls f, under mu, for each lease of a list that changes, which list returns under
// mu. It goes from the end to the front. So what is removed meanwhile, with those behind it
// moved into its place, hides none of those that were there from the beginning.
//
// between is called without the lock, after some leases and at the end.
func (s *Redis) visit(list func() []*redisLease, f func(*redisLease), between func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := len(list()); at > 0; {
		all := list()
		at = min(at, len(all))
		for end := max(at-visitMost, 0); at > end; at-- {
			f(all[at-1])
		}
		s.mu.Unlock()
		between()
		s.mu.Lock()
	}
}

// visitAll visits every lease that this process has.
func (s *Redis) visitAll(f func(*redisLease)) {
	s.visit(func() []*redisLease { return s.leases.all }, f, runtime.Gosched) // for those that wait for the lock
}

// A leaseTable is all leases of this process. They can be looked at some at a time, which
// a map does not allow.
type leaseTable struct {
	byID map[leaseID]*redisLease
	all  []*redisLease // in any order, each at its redisLease.place
}

func (t *leaseTable) len() int { return len(t.all) }

func (t *leaseTable) get(id leaseID) *redisLease { return t.byID[id] }

func (t *leaseTable) add(r *redisLease) {
	r.place = len(t.all)
	t.all = append(t.all, r)
	t.byID[r.token.lease] = r
}

// remove removes r, and reports whether it was there.
func (t *leaseTable) remove(r *redisLease) bool {
	if t.byID[r.token.lease] != r {
		return false
	}
	delete(t.byID, r.token.lease)
	last := t.all[len(t.all)-1]
	t.all[r.place], last.place = last, r.place
	t.all[len(t.all)-1] = nil
	t.all = t.all[:len(t.all)-1]
	return true
}
