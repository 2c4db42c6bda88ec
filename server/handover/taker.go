package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// This file is the new process's end.

// Greet sends the new process's Hello, and returns the old one's Welcome. The error is
// a *RefusedError if the old process does not hand over.
func (x *Exchange) Greet(h Hello) (w Welcome, err error) {
	if err := x.sendJSON(wordHello, h); err != nil {
		return w, err
	}
	return w, x.wantJSON(wordWelcome, x.patience, &w)
}

// Begin makes the old process hand over.
func (x *Exchange) Begin(g Go) error { return x.sendJSON(wordGo, g) }

// A Batch is connections, or listeners, or sessions, that were given at once.
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
	m, err := x.receive(0)
	if err != nil {
		return nil, fmt.Errorf("the handover was cut short: %w", err)
	}
	if m.word == wordDone {
		return nil, nil
	}
	b, err := m.batch()
	if err == nil {
		err = x.accept()
	}
	if err != nil {
		closeAll(m.fds)
		return nil, err
	}
	return b, nil
}

// batch reads an offer.
func (m *message) batch() (b *Batch, err error) {
	b = &Batch{FDs: m.fds}
	c := &codec{data: m.body, reading: true}
	switch m.word {
	case wordConnections:
		for len(c.data) > 0 {
			var r Record
			r.fields(c)
			b.Records = append(b.Records, r)
		}
		if err = c.err; err == nil && len(b.Records) != len(m.fds) {
			err = fmt.Errorf("%d records came with %d file descriptors", len(b.Records), len(m.fds))
		}
	case wordListeners:
		if err = json.Unmarshal(m.body, &b.Listeners); err == nil && len(b.Listeners) != len(m.fds) {
			err = fmt.Errorf("%d listeners came with %d file descriptors", len(b.Listeners), len(m.fds))
		}
	case wordSessions:
		for len(c.data) > 0 {
			var s Session
			s.fields(c)
			b.Sessions = append(b.Sessions, s)
		}
		err = c.err
	default:
		err = fmt.Errorf("the other process sent word %d instead of an offer", m.word)
	}
	return b, err
}

// errAborted says that the old process has taken a batch back.
var errAborted = errors.New("the old process has taken the last batch back")

// accept sends the accept and waits for the commit. Then only the old process may take
// the batch back; if it is gone, it cannot.
func (x *Exchange) accept() error {
	AtStep("accept")
	if err := x.send(wordAccept, nil); err != nil {
		return err
	}
	AtStep("accepted")
	m, err := x.receive(0)
	closeAll(m.fds) // a commit comes without any
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return nil
	case err != nil:
		return err
	case m.word != wordCommit:
		return errAborted
	}
	AtStep("own")
	x.send(wordOwned, nil) // it may fail: an old process that is gone need not know
	AtStep("owned")
	return nil
}
