package handover

import (
	"encoding/json"
	"fmt"
)

// This file is the old process's end.

// Hear waits for the new process's Hello.
func (x *Exchange) Hear() (h Hello, err error) { return h, x.wantJSON(wordHello, x.patience, &h) }

// Welcome tells the new process what this one has, and waits without a limit until
// the new process begins.
func (x *Exchange) Welcome(w Welcome) (g Go, err error) {
	if err := x.sendJSON(wordWelcome, w); err != nil {
		return g, err
	}
	return g, x.wantJSON(wordGo, 0, &g)
}

// Refuse tells the new process why it gets nothing.
func (x *Exchange) Refuse(e *RefusedError) error { return x.sendJSON(wordRefused, e) }

// OfferConnections gives connections, with one file descriptor for each record. If it
// returns nil, the new process owns them, and the caller closes its copies. If it
// returns an error, the caller still owns them, and the exchange is over.
func (x *Exchange) OfferConnections(records []Record, fds []int) error {
	c := new(codec)
	for i := range records {
		records[i].fields(c)
	}
	return x.offer(wordConnections, c.data, fds...)
}

// OfferListeners gives listening sockets, likewise.
func (x *Exchange) OfferListeners(addresses []string, fds []int) error {
	body, err := json.Marshal(addresses)
	if err != nil {
		return err
	}
	return x.offer(wordListeners, body, fds...)
}

// OfferSessions gives sessions that no connection holds, likewise.
func (x *Exchange) OfferSessions(sessions []Session) error {
	c := new(codec)
	for i := range sessions {
		sessions[i].fields(c)
	}
	return x.offer(wordSessions, c.data)
}

func (x *Exchange) offer(w word, body []byte, fds ...int) error {
	if len(fds) > MostFDs {
		panic(fmt.Sprintf("BUG: %d file descriptors in one batch", len(fds)))
	}
	if err := x.offerAndCommit(w, body, fds); err != nil {
		// The new process must not send an accept after the abort: it would read
		// the end of the stream next, and conclude that it owns the batch.
		x.conn.CloseRead()
		AtStep("abort")
		x.send(wordAbort, nil) // a new process that has accepted must know
		x.Close()
		return fmt.Errorf("taken back: %w", err)
	}
	// Only the end of the new process undoes a commit. A timeout must not: the
	// word that is late may still come.
	AtStep("committed")
	if _, err := x.want(wordOwned, 0); err != nil {
		x.Close()
		return fmt.Errorf("taken back: %w", err)
	}
	return nil
}

// offerAndCommit sends the offer and, after the accept, the commit.
func (x *Exchange) offerAndCommit(w word, body []byte, fds []int) error {
	AtStep("offer")
	if err := x.send(w, body, fds...); err != nil {
		return err
	}
	AtStep("offered")
	if _, err := x.want(wordAccept, x.patience); err != nil {
		return err
	}
	AtStep("commit")
	return x.send(wordCommit, nil)
}

// Done tells the new process that it has everything.
func (x *Exchange) Done() error {
	AtStep("done")
	return x.send(wordDone, nil)
}

// AtStep is called with the name of each step of an exchange, on either side.
// A test replaces it to break the process there.
var AtStep = func(step string) {}
