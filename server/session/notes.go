package session

import "time"

// A note is news for the holder of a lease.
type note struct {
	owner Owner
	lease *Lease
	news
}

// appendNote counts the news and adds it to what is to be delivered. Under mu.
func (s *Redis) appendNote(notes []note, r *redisLease, n news) []note {
	if n.kind == newsNone {
		return notes
	}
	s.count(n)
	return append(notes, note{owner: r.owner, lease: r.lease, news: n})
}

// count updates the metrics.
func (s *Redis) count(n news) {
	m := s.config.Metrics
	switch n.kind {
	case newsClaimed:
		result := claimStarted
		if n.resumed {
			result = claimResumed
		}
		m.Claims[result].Inc()
	case newsClaimUnavailable:
		m.Claims[claimUnavailable].Inc()
	case newsCommitted:
		m.Commits[Committed].Inc()
		m.CommitLatency.Update((s.config.Now() - n.askedAt).Seconds())
	case newsCommitUnavailable:
		m.Commits[Unavailable].Inc()
	case newsRevoked:
		m.Commits[Revoked].Inc()
		m.Takeovers[takeoverFenced].Inc()
	case newsTakenOver:
		m.Takeovers[takeoverTold].Inc()
	}
}

// deliver posts the notes to their owners' loops: one task for each loop.
func (s *Redis) deliver(notes []note) {
	type batch struct {
		loop  Loop
		notes []note
	}
	var batches []*batch
	for _, n := range notes {
		loop := n.owner.Loop()
		var b *batch
		for _, other := range batches {
			if other.loop == loop {
				b = other
			}
		}
		if b == nil {
			b = &batch{loop: loop, notes: make([]note, 0, len(notes))}
			batches = append(batches, b)
		}
		b.notes = append(b.notes, n)
	}
	for _, b := range batches {
		b.loop.Post(func() {
			for i := range b.notes {
				b.notes[i].tell(s.config.Now)
			}
		})
	}
}

// tell runs on the owner's loop.
func (n *note) tell(now func() time.Duration) {
	switch n.kind {
	case newsClaimed:
		n.lease.grant(n.count)
		n.owner.OnClaimed(n.resumed, nil)
	case newsClaimUnavailable:
		n.owner.OnClaimed(false, ErrUnavailable)
	case newsCommitted:
		messages := n.count - n.lease.committed.Swap(n.count)
		n.owner.OnCommitted(Committed, messages, now()-n.askedAt)
	case newsCommitUnavailable:
		n.owner.OnCommitted(Unavailable, 0, now()-n.askedAt)
	case newsRevoked:
		n.owner.OnCommitted(Revoked, 0, now()-n.askedAt)
	case newsTakenOver:
		n.owner.OnTakenOver()
	}
}
