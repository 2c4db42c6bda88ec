package session

import "runtime"

// A queue is leases, first in, first out. Neither end copies what is between. Each lease
// knows that it is in one.
type queue struct {
	leases  []*redisLease
	first   int  // of leases: what is before has gone
	ofLooks bool // it is a node's looks; fixed
}

func (q *queue) len() int { return len(q.leases) - q.first }

func (q *queue) push(r *redisLease) {
	*q.flag(r) = true
	q.leases = append(q.leases, r)
}

// flag is what says that r is in a queue such as this one.
func (q *queue) flag(r *redisLease) *bool {
	if q.ofLooks {
		return &r.inLooks
	}
	return &r.queued
}

// pop takes the first lease of a queue that is not empty.
func (q *queue) pop() *redisLease {
	r := q.leases[q.first]
	*q.flag(r) = false
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

// requeue puts the leases of a queue that changes into those where they belong now. between
// is called as visit does. What comes to its end meanwhile stays.
func (s *Redis) requeue(q *queue, between func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for left := q.len(); left > 0; {
		left = min(left, q.len())
		for end := max(left-visitMost, 0); left > end; left-- {
			s.enqueue(q.pop())
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
