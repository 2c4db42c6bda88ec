package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The new process's end.

// Greet says what the new process is, and learns what the old one has. The
// error is a *RefusedError if it does not hand over.
func (x *Exchange) Greet(h Hello) (w Welcome, err error) {
	if err := x.sendJSON(wordHello, h); err != nil {
		return w, err
	}
	return w, x.wantJSON(wordWelcome, x.patience, &w)
}

// Begin has the old process hand over.
func (x *Exchange) Begin(g Go) error { return x.sendJSON(wordGo, g) }

// A Batch is what was given at once: of one kind.
type Batch struct {
	Records   []Record
	FDs       []int    // of Records, or of Listeners
	Listeners []string // addresses
	Sessions  []Session
}

// Take waits for the next batch, and returns it once it is owned here. A nil
// Batch without an error says that there are no more. With an error nothing
// more will come, and what was on its way is the old process's.
func (x *Exchange) Take() (*Batch, error) {
	m, err := x.receive(0)
	if err != nil {
		return nil, fmt.Errorf("the handover is cut short: %w", err)
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
		err = fmt.Errorf("the other process says %d where an offer is due", m.word)
	}
	return b, err
}

// errAborted says that the old process has taken a batch back.
var errAborted = errors.New("the old process has taken the last batch back")

// accept says the second word and waits for the third. Once it is said, only
// the old process may take the batch back; if it is gone, it cannot.
func (x *Exchange) accept() error {
	AtStep("accept")
	if err := x.send(wordAccept, nil); err != nil {
		return err
	}
	AtStep("accepted")
	m, err := x.receive(0)
	closeAll(m.fds) // there ought to be none
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return nil
	case err != nil:
		return err
	case m.word != wordCommit:
		return errAborted
	}
	AtStep("own")
	x.send(wordOwned, nil) // an old process that is gone need not hear it
	AtStep("owned")
	return nil
}
