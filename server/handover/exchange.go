// Package handover lets one process give its live connections to another, over a unix
// socket between them.
//
// Connections are given in batches:
//
//	old  offer  here are the records, and the file descriptors by SCM_RIGHTS
//	new  owned  they are mine, and I serve them
//
// Words can be late, and a stream can end. So no word decides whose a batch is: a
// decision does, a counter in the kernel that comes with the offer and that both
// processes hold (decision.go). The new process takes the decision before it touches
// anything. The old one takes it before it takes a batch back. Only one of them can. So
// a batch never has two owners, and always has one. README.md has the argument.
//
// Processes of version 1 know no decision; versions.go has their words.
//
// The package knows no event loop; it neither logs nor reads flags.
// An Exchange belongs to one goroutine, except for Stop, and for Begin, which may be called
// while Take waits.
package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A word is the kind of a message. The message is: its word (1 byte), how many
// file descriptors come with it (1 byte), the length of what follows (4 bytes,
// big-endian), and that.
type word uint8

const (
	wordHello       word = iota + 1 // new: Hello, as JSON
	wordWelcome                     // old: Welcome, as JSON
	wordRefused                     // old: RefusedError, as JSON
	wordGo                          // new: begin; Go, as JSON
	wordConnections                 // old: an offer of connections
	wordListeners                   // old: an offer of listening sockets, addresses as JSON
	wordSessions                    // old: an offer of sessions that no connection holds
	wordAccept                      // new, version 1 only
	wordCommit                      // old, version 1 only
	wordOwned                       // new: an offer's batch is mine
	wordAbort                       // old, version 1 only
	wordDone                        // old: there are no more batches
)

const (
	headerBytes = 6
	// MostFDs is how many file descriptors a batch has at the most, without that of its
	// decision; the kernel takes 253 in one message (SCM_MAX_FD, unix(7)).
	MostFDs = 128
	// pieceBytes is how much of a message is sent or read at once.
	pieceBytes = 1 << 20
	// maxBytes bounds a message, so that a stream of another protocol is noticed.
	maxBytes = 1 << 30
	// Patience is how long the other end may take for its next word once the
	// exchange has begun.
	Patience = 5 * time.Second
	// PreparedFor is how long a process stays prepared to take over without beginning.
	PreparedFor = 30 * time.Second
)

// A Hello is the new process's description of itself.
type Hello struct {
	Version         int      // the oldest that it speaks
	Newest          int      // the newest; 0 means the same one
	LastField       int      // it knows the fields of records up to this number, from version 2 on
	Store           string   // which store the sessions are in, without credentials
	Endpoints       []string // paths at which it serves
	Subprotocols    []string
	MaxMessage      int  // bytes
	Connections     int  // how many more it may serve
	FileDescriptors int  // how many more connections its limit of open files leaves room for
	Compress        bool // it goes on with connections that have compression
}

// A Welcome is what the old process can give.
type Welcome struct {
	Version     int // that of the exchange and its records; 0 means 1
	Connections int
	Listeners   []string // addresses as they were asked for: ":8000", "unix:/run/t.sock"
}

// A Go says which listeners the new process wants, besides the connections.
type Go struct{ Listeners []string }

// A Refusal is why the old process does not hand over; it is also a label of
// the metrics.
type Refusal string

// The reasons. For subprotocols and -max-message only a process of version 1 refuses.
const (
	RefusedVersion         Refusal = "record_version"
	RefusedStore           Refusal = "store"
	RefusedEndpoints       Refusal = "endpoints"
	RefusedSubprotocols    Refusal = "subprotocols"
	RefusedMaxMessage      Refusal = "max_message"
	RefusedConnections     Refusal = "max_connections"
	RefusedFileDescriptors Refusal = "file_descriptors"
	RefusedBusy            Refusal = "busy"
	RefusedDraining        Refusal = "draining"
)

// Refusals are all of them.
var Refusals = []Refusal{
	RefusedVersion, RefusedStore, RefusedEndpoints, RefusedSubprotocols, RefusedMaxMessage,
	RefusedConnections, RefusedFileDescriptors, RefusedBusy, RefusedDraining,
}

// A RefusedError is a Refusal, with the figures, as it reaches the new process.
type RefusedError struct {
	Reason Refusal
	Text   string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("refused (%s): %s", e.Reason, e.Text) }

// An Exchange is one end of the socket between the two processes.
type Exchange struct {
	// Fixed after NewExchange.
	conn        *net.UnixConn
	patience    time.Duration // Patience
	preparedFor time.Duration // PreparedFor

	version int // fixed after Hear, or Greet

	// The memory of a batch, which the next one uses again. A handover makes no garbage: the
	// heap of a process with few connections is small, and would be collected again and again.
	sent     []byte   // old: an offer
	received []byte   // both: what follows the header of a message
	rights   []byte   // both: the file descriptors of a message, as the kernel writes them
	records  []Record // new: those of a batch; their bytes are in received

	// Atomic.
	stopped atomic.Bool
	bound   atomic.Bool // the new process has accepted a batch: it must hear who owns it
}

// NewExchange makes an end of conn, and owns conn from then on.
func NewExchange(conn *net.UnixConn) *Exchange {
	return &Exchange{
		conn: conn, patience: Patience, preparedFor: PreparedFor,
		rights: make([]byte, unix.CmsgSpace(4*(1+MostFDs))),
	}
}

// errStopped says that this process has ended the exchange.
var errStopped = errors.New("this process has ended the exchange")

// Stop makes the new process's Take return an error soon: no batch is taken from then
// on, but one may have been. It may be called from any goroutine. It closes nothing: to
// the old process, the end of the stream between take and begin is the new one's death.
func (x *Exchange) Stop() {
	x.stopped.Store(true)
	if !x.bound.Load() {
		x.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// Close ends the exchange.
func (x *Exchange) Close() error { return x.conn.Close() }

// A message is a word and all that comes with it. Its body is valid until the next one is
// received.
type message struct {
	word word
	body []byte
	fds  []int
}

// send sends a message; the file descriptors stay open here.
func (x *Exchange) send(w word, body []byte, fds ...int) error {
	header := binary.BigEndian.AppendUint32([]byte{byte(w), byte(len(fds))}, uint32(len(body)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	// A header cannot block: the other end has read everything before it. A deadline
	// could pass while this process stands still, and the word would be lost.
	err := x.conn.SetWriteDeadline(time.Time{})
	if err == nil {
		_, _, err = x.conn.WriteMsgUnix(header, rights, nil)
	}
	for piece := range slices.Chunk(body, pieceBytes) {
		if err == nil {
			err = x.sendPiece(piece)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot send to the other process: %w", err)
	}
	return nil
}

func (x *Exchange) sendPiece(piece []byte) error {
	if err := x.conn.SetWriteDeadline(time.Now().Add(x.patience)); err != nil {
		return err
	}
	_, err := x.conn.Write(piece)
	return err
}

func (x *Exchange) sendJSON(w word, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return x.send(w, body)
}

// errNoServer says that the other end does not speak this protocol.
var errNoServer = errors.New("the process that answers there is no server of this kind")

// receive waits for the next message, for ever if patience is 0. The error is
// io.EOF when the other end is closed.
func (x *Exchange) receive(patience time.Duration) (m message, err error) {
	deadline := time.Time{}
	if patience > 0 {
		deadline = time.Now().Add(patience)
	}
	if err := x.conn.SetReadDeadline(deadline); err != nil {
		return m, err
	}
	if x.stopped.Load() && !x.bound.Load() { // after the deadline is set: that could undo Stop's
		return m, errStopped
	}
	header := make([]byte, headerBytes)
	if m.fds, err = x.receiveHeader(header); err != nil {
		closeAll(m.fds)
		return message{}, err
	}
	m.word = word(header[0])
	length := binary.BigEndian.Uint32(header[2:])
	switch {
	case m.word < wordHello || m.word > wordDone || length > maxBytes:
		err = errNoServer
	case len(m.fds) != int(header[1]):
		err = fmt.Errorf("only %d of %d file descriptors arrived: is the limit of open files too low?", len(m.fds), header[1])
	}
	if err != nil {
		closeAll(m.fds)
		return message{}, err
	}
	if m.body, err = x.readBody(x.received, int(length)); err != nil {
		closeAll(m.fds)
		return message{}, err
	}
	x.received = reusable(m.body)
	return m, nil
}

// reusable is the memory of a message for the next one, or nil if it is more than most need.
func reusable(body []byte) []byte {
	if cap(body) > pieceBytes {
		return nil
	}
	return body[:0]
}

// readBody reads so many bytes into the memory of body, which is empty. It takes more as they
// come, since a length proves nothing.
func (x *Exchange) readBody(body []byte, length int) ([]byte, error) {
	var err error
	for len(body) < length && err == nil {
		n := len(body)
		piece := min(length-n, max(n, pieceBytes)) // twice as much each time
		body = slices.Grow(body, piece)[:n+piece]
		err = x.readRest(body[n:])
	}
	return body, err
}

// readRest reads the rest of a message. An end of the stream within it is
// io.ErrUnexpectedEOF.
func (x *Exchange) readRest(buf []byte) error {
	_, err := io.ReadFull(x.conn, buf)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// receiveHeader reads a header and the file descriptors that come with its
// first byte.
func (x *Exchange) receiveHeader(header []byte) (fds []int, err error) {
	n, size, _, _, err := x.conn.ReadMsgUnix(header, x.rights)
	if n == 0 && err == nil {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(x.rights[:size])
	if err != nil {
		return nil, err
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, more...)
	}
	return fds, x.readRest(header[n:])
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// want receives a message that must have word w, which is no offer. A refusal comes as
// a *RefusedError.
func (x *Exchange) want(w word, patience time.Duration) (message, error) {
	m, err := x.receive(patience)
	closeAll(m.fds)
	switch {
	case err != nil:
		return m, err
	case m.word == w:
		return m, nil
	case m.word == wordRefused:
		refused := new(RefusedError)
		if err := json.Unmarshal(m.body, refused); err != nil {
			return m, err
		}
		return m, refused
	}
	return m, fmt.Errorf("the other process sent word %d instead of %d", m.word, w)
}

func (x *Exchange) wantJSON(w word, patience time.Duration, value any) error {
	m, err := x.want(w, patience)
	if err != nil {
		return err
	}
	return json.Unmarshal(m.body, value)
}
