package session

import (
	"sync"
	"time"
)

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
	return append(notes, note{owner: r.owner, lease: r.owner.Holding(), news: n})
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
	var first *delivery
	for _, n := range notes {
		loop := n.owner.Loop()
		d := first
		for d != nil && d.loop != loop {
			d = d.next
		}
		if d == nil {
			d = s.deliveries.take(s.config.Now)
			d.loop, d.next = loop, first
			first = d
		}
		d.notes = append(d.notes, n)
	}
	for d := first; d != nil; {
		next := d.next // once it is posted, d is the loop's
		d.next = nil
		d.loop.Post(d.task)
		d = next
	}
}

// A delivery is what one loop is told at once. It is the goroutine's that took it, then
// the loop's; a loop that has ended leaves it to the collector.
type delivery struct {
	// Fixed.
	list *deliveries
	now  func() time.Duration
	task func() // run

	loop  Loop
	notes []note
	next  *delivery // in a list
}

// run runs on the loop.
func (d *delivery) run() {
	for i := range d.notes {
		d.notes[i].tell(d.now)
	}
	d.list.takeBack(d)
}

// deliveries are those that are used again.
type deliveries struct {
	mu    sync.Mutex
	first *delivery // Guarded by mu.
	len   int       // Guarded by mu.
}

// deliveriesMost is how many deliveries are kept, notesKept how much room for notes in each.
const deliveriesMost, notesKept = 64, 2 * commitsMost

func (l *deliveries) take(now func() time.Duration) *delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.first
	if d == nil {
		d = &delivery{list: l, now: now}
		d.task = d.run
		return d
	}
	l.first, d.next = d.next, nil
	l.len--
	return d
}

func (l *deliveries) takeBack(d *delivery) {
	clear(d.notes)
	d.loop, d.notes = nil, d.notes[:0]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.len < deliveriesMost && cap(d.notes) <= notesKept {
		l.first, d.next = d, l.first
		l.len++
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
