package handover

import (
	"encoding/json"
	"errors"
	"fmt"
)

// This file is the new process's end.

// Greet sends the new process's Hello, and returns the old one's Welcome. The error is
// a *RefusedError if the old process does not hand over.
func (x *Exchange) Greet(h Hello) (w Welcome, err error) {
	if err := x.sendJSON(wordHello, h); err != nil {
		return w, err
	}
	err = x.wantJSON(wordWelcome, x.patience, &w)
	x.version = max(1, w.Version)
	return w, err
}

// Begin makes the old process hand over.
func (x *Exchange) Begin(g Go) error { return x.sendJSON(wordGo, g) }

// A Batch is connections, or listeners, or sessions, that were given at once. It is valid
// until the next Take.
type Batch struct {
	Records   []Record
	FDs       []int    // the file descriptors of Records, or of Listeners
	Listeners []string // addresses
	Sessions  []Session
}

// Take waits for the next batch, and returns it once this process owns it. A nil Batch
// without an error says that there are no more. After an error nothing more comes, and
// the old process owns the batch that was under way.
func (x *Exchange) Take() (*Batch, error) {
	clear(x.records[:cap(x.records)]) // it would keep the bytes of the batch before
	b, err := x.take()
	if b == nil {
		x.received, x.records = nil, nil // the Exchange may be kept for as long as its process lives
	}
	return b, err
}

func (x *Exchange) take() (*Batch, error) {
	m, err := x.receive(0)
	if err != nil {
		return nil, fmt.Errorf("the handover was cut short: %w", err)
	}
	if m.word == wordDone {
		closeAll(m.fds)
		return nil, nil
	}
	b, err := x.takeOffer(m)
	if err != nil {
		closeAll(m.fds)
		return nil, err
	}
	return b, nil
}

// takeOffer returns a batch once this process owns it.
func (x *Exchange) takeOffer(m message) (b *Batch, err error) {
	if x.version == 1 {
		if b, err = x.batch(m); err == nil {
			err = x.ownByWords()
		}
		return b, err
	}
	d, b, err := x.readOffer(m)
	if err == nil {
		err = x.own(d)
	}
	if err == nil {
		d.close()
	}
	return b, err
}

// errTakenBack says that the old process has taken a batch back.
var errTakenBack = errors.New("the old process has taken the last batch back")

// own makes this process the owner of a batch, unless the old one has taken it back.
func (x *Exchange) own(d decision) error {
	AtStep("take")
	if x.stopped.Load() {
		return errStopped
	}
	if !d.take() {
		return errTakenBack
	}
	// From here to begin, the end of the stream tells the old process that this one
	// has died. So nothing here may close it.
	AtStep("taken")
	d.begin()
	AtStep("begun")
	x.send(wordOwned, nil) // it may fail: the decision says it too
	AtStep("owned")
	return nil
}

// readOffer reads an offer. Its first file descriptor is its decision's.
func (x *Exchange) readOffer(m message) (d decision, b *Batch, err error) {
	if len(m.fds) == 0 {
		return 0, nil, errors.New("an offer came without its decision")
	}
	b, err = x.batch(message{word: m.word, body: m.body, fds: m.fds[1:]})
	return decision(m.fds[0]), b, err
}

// batch reads an offer.
func (x *Exchange) batch(m message) (b *Batch, err error) {
	b = &Batch{FDs: m.fds}
	switch m.word {
	case wordConnections:
		b.Records, err = readAll(x.records, x.version, m.body, (*Record).fields)
		x.records = b.Records
		for i := 0; i < len(b.Records) && err == nil; i++ {
			err = b.Records[i].check()
		}
		if err == nil && len(b.Records) != len(m.fds) {
			err = fmt.Errorf("%d records came with %d file descriptors", len(b.Records), len(m.fds))
		}
	case wordListeners:
		if err = json.Unmarshal(m.body, &b.Listeners); err == nil && len(b.Listeners) != len(m.fds) {
			err = fmt.Errorf("%d listeners came with %d file descriptors", len(b.Listeners), len(m.fds))
		}
	case wordSessions:
		b.Sessions, err = readAll[Session](nil, x.version, m.body, (*Session).fields)
	default:
		err = fmt.Errorf("the other process sent word %d instead of an offer", m.word)
	}
	return b, err
}
