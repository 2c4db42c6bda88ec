package session

import "time"

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
		if now-renewedAt >= s.times.renewal/4 {
			renewedAt = now
			s.renew()
		}
	}
}

// renew sends the times to live of every held session again before they end.
func (s *Redis) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.leases {
		s.enqueue(r)
	}
}

// sendWaiting sends the commands that Redis refused a while ago.
func (s *Redis) sendWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.waiting
	s.waiting = nil
	s.requeue(waiting)
}

// expire answers the holders that have waited for longer than the timeout, and
// ends the leases that nobody holds and Redis no longer has.
func (s *Redis) expire(now time.Duration) {
	var notes []note
	s.mu.Lock()
	for r := range s.unsettled {
		r.expire(now, &s.times)
		s.dropEnded(r)
		notes = s.appendNote(notes, r, r.giveUp(now-s.config.Timeout))
	}
	s.mu.Unlock()
	s.deliver(notes)
}

// unsettled is every lease of which a command is to be sent or on its way.
// Under mu.
func (s *Redis) unsettled(yield func(*redisLease) bool) {
	for _, n := range s.nodes {
		for i := range n.batch {
			if !yield(n.batch[i].lease) {
				return
			}
		}
		for _, queue := range [...][]*redisLease{n.queue, n.claims} {
			for _, r := range queue {
				if !yield(r) {
					return
				}
			}
		}
	}
	for _, r := range s.waiting {
		if !yield(r) {
			return
		}
	}
}
