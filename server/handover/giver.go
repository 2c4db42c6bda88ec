package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// This file is the old process's end.

// Hear waits for the new process's Hello.
func (x *Exchange) Hear() (h Hello, err error) {
	err = x.wantJSON(wordHello, x.patience, &h)
	x.version = h.Common()
	return h, err
}

// Welcome tells the new process what this one has, and waits until the new process
// begins. That one gives up first: it closes its end after PreparedFor. The version is
// the exchange's.
func (x *Exchange) Welcome(w Welcome) (g Go, err error) {
	w.Version = x.version
	if err := x.sendJSON(wordWelcome, w); err != nil {
		return g, err
	}
	return g, x.wantJSON(wordGo, x.preparedFor+x.patience, &g)
}

// Refuse tells the new process why it gets nothing.
func (x *Exchange) Refuse(e *RefusedError) error { return x.sendJSON(wordRefused, e) }

// OfferConnections gives connections, with one file descriptor for each record. If they
// are given, the new process owns them, and the caller closes its copies. If not, the
// caller still owns them. After an error the exchange is over; the last batch may have
// been given all the same.
func (x *Exchange) OfferConnections(records []Record, fds []int) (given bool, err error) {
	body := appendAll(&codec{version: x.version, data: x.sent}, records, (*Record).fields)
	x.sent = reusable(body)
	return x.offer(wordConnections, body, fds...)
}

// OfferListeners gives listening sockets, likewise.
func (x *Exchange) OfferListeners(addresses []string, fds []int) (given bool, err error) {
	body, err := json.Marshal(addresses)
	if err != nil {
		return false, err
	}
	return x.offer(wordListeners, body, fds...)
}

// OfferSessions gives sessions that no connection holds, likewise.
func (x *Exchange) OfferSessions(sessions []Session) (given bool, err error) {
	return x.offer(wordSessions, appendAll(&codec{version: x.version}, sessions, (*Session).fields))
}

func (x *Exchange) offer(w word, body []byte, fds ...int) (given bool, err error) {
	if len(fds) > MostFDs {
		panic(fmt.Sprintf("BUG: %d file descriptors in one batch", len(fds)))
	}
	if x.version == 1 {
		return x.offerByWords(w, body, fds)
	}
	d, err := newDecision()
	if err != nil {
		return false, err
	}
	defer d.close()
	if err = x.offerAndWait(w, body, append([]int{int(d)}, fds...)); err == nil {
		return true, nil
	}
	AtStep("settle")
	given = d.settle(isEnd(err))
	AtStep("settled")
	x.Close()
	if given {
		return true, fmt.Errorf("given, and no more after it: %w", err)
	}
	return false, fmt.Errorf("taken back: %w", err)
}

// offerAndWait sends an offer, and waits until the new process says that it owns it.
func (x *Exchange) offerAndWait(w word, body []byte, fds []int) error {
	AtStep("offer")
	if err := x.send(w, body, fds...); err != nil {
		return err
	}
	AtStep("offered")
	if _, err := x.want(wordOwned, x.patience); err != nil {
		return err
	}
	AtStep("given")
	return nil
}

// isEnd reports whether err says that the other process has closed its end.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// Done tells the new process that it has everything.
func (x *Exchange) Done() error {
	AtStep("done")
	return x.send(wordDone, nil)
}

// AtStep is called with the name of each step of an exchange, on either side.
// A test replaces it to break the process there.
var AtStep = func(step string) {}
