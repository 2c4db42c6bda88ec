package session

import "time"

// A note is what an owner has to be told.
type note struct {
	owner   Owner
	lease   *Lease
	kind    noteKind
	outcome Outcome
	count   uint64
	resumed bool
	asked   time.Duration
	err     error
}

type noteKind uint8

const (
	noteClaimed noteKind = iota
	noteCommitted
	noteTakenOver
)

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

// messages makes the count the lease's, and returns how many it adds.
func (n *note) messages() uint64 {
	if n.outcome != Committed {
		return 0
	}
	return n.count - n.lease.committed.Swap(n.count)
}

// tell runs on the owner's loop.
func (n *note) tell(now func() time.Duration) {
	switch n.kind {
	case noteClaimed:
		if n.err == nil {
			n.lease.grant(n.count)
		}
		n.owner.OnClaimed(n.resumed, n.err)
	case noteCommitted:
		n.owner.OnCommitted(n.outcome, n.messages(), now()-n.asked)
	case noteTakenOver:
		n.owner.OnTakenOver()
	}
}
