package session

import (
	"runtime"
	"time"
)

// watch runs until the store is closed. It renews what is held, sends what had
// to wait, and ends what has waited for too long.
func (s *Redis) watch() {
	ticker := time.NewTicker(s.times.watch)
	defer ticker.Stop()
	for renewedAt := s.config.Now(); ; {
		select {
		case <-s.stopped.Done():
			return
		case <-ticker.C:
		}
		now := s.config.Now()
		s.expire(now)
		s.sendWaiting()
		s.lookAtAdopted(now)
		if now-renewedAt >= s.times.renewal/4 {
			renewedAt = now
			s.renew()
		}
	}
}

// renew sends the times to live of every held session again before they end.
func (s *Redis) renew() { s.visitAll(s.enqueue) }

// sendWaiting sends the commands that Redis refused a while ago.
func (s *Redis) sendWaiting() { s.requeue(&s.waiting, runtime.Gosched) }

// expire answers the holders that have waited for longer than the timeout, and
// ends the leases that nobody holds and Redis no longer has.
func (s *Redis) expire(now time.Duration) {
	var notes []note
	look := func(r *redisLease) {
		r.expire(now, &s.times)
		s.dropEnded(r)
		notes = s.appendNote(notes, r, r.giveUp(now-s.config.Timeout))
	}
	tell := func() {
		s.deliver(notes)
		notes = nil
	}
	for _, list := range s.unsettled() {
		s.visit(list, look, tell)
	}
}

// unsettled is every lease that somebody may wait for, in lists for visit: those of which
// a command is to be sent or on its way, but for mere looks.
func (s *Redis) unsettled() (lists []func() []*redisLease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		lists = append(lists, n.sending, n.commits.waiting, n.claims.waiting)
		for l := range n.openedLanes() {
			lists = append(lists, l.sending, l.queue.waiting)
		}
	}
	return append(lists, s.waiting.waiting)
}
