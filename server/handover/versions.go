package handover

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The versions of the exchange and its records that this process speaks. A deploy, and
// its rollback, are between neighbours: each version speaks the one before it as well. A
// new field of a record needs no new version, see Record.fields.
const (
	Oldest = 1
	Newest = 2
)

// Common is the newest version that both this process and the one that says Hello speak,
// 0 if there is none.
func (h Hello) Common() int {
	if common := min(max(h.Version, h.Newest), Newest); common >= max(h.Version, Oldest) {
		return common
	}
	return 0
}

// What follows is version 1. There, words decide whose a batch is:
//
//	old  offer   the records, and the file descriptors
//	new  accept  all of them have come, and are not touched yet
//	old  commit  they are the new process's
//	new  owned   it serves them
//
// Until it says commit the old process owns the batch, and takes it back by abort. The
// new one owns it from commit on, or if the stream ends after its accept without an abort:
// then the old process is gone. If the stream ends after commit without owned, the new
// process has died, and the old one owns.
//
// These words have no deadline, unlike those of a process of version 1: a word that is
// not said because a process stood still would make two owners.

// offerByWords is offer.
func (x *Exchange) offerByWords(w word, body []byte, fds []int) (given bool, err error) {
	err = x.persuade(w, body, fds)
	if err != nil {
		// An accept that comes now must not follow the abort: the new process would
		// take the end of the stream for this one's.
		x.conn.CloseRead()
		x.send(wordAbort, nil)
	} else {
		AtStep("committed")
		_, err = x.want(wordOwned, 0)
	}
	if err != nil {
		x.Close()
		return false, fmt.Errorf("taken back: %w", err)
	}
	AtStep("given")
	return true, nil
}

// persuade says what comes before owned.
func (x *Exchange) persuade(w word, body []byte, fds []int) error {
	AtStep("offer")
	if err := x.send(w, body, fds...); err != nil {
		return err
	}
	AtStep("offered")
	if _, err := x.want(wordAccept, x.patience); err != nil {
		return err
	}
	return x.send(wordCommit, nil)
}

// ownByWords is own. Once it has accepted, it waits for the decision whatever Stop says.
func (x *Exchange) ownByWords() error {
	AtStep("take")
	x.bound.Store(true)
	defer x.bound.Store(false)
	if x.stopped.Load() { // after bound is set: see Stop
		return errStopped
	}
	if err := x.send(wordAccept, nil); err != nil {
		return err
	}
	AtStep("accepted")
	m, err := x.receive(0)
	closeAll(m.fds)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
		return nil
	case err != nil:
		return err
	case m.word != wordCommit || len(m.body) > 0: // a body would overwrite the offer's
		return errTakenBack
	}
	AtStep("begun")
	x.send(wordOwned, nil) // it may fail: the old process may be gone
	AtStep("owned")
	return nil
}
