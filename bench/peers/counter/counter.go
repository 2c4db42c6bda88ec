// Package counter is the job that every Go peer does, so that the libraries
// differ and nothing else: sessions that outlive their connections, and the
// reply to a message. A session is looked up once, at the upgrade; counting is
// one atomic addition. Everything here is safe for concurrent use.
//
// It leaves out what no load here needs: sessions are never forgotten, and a
// session may have several connections at once.
package counter

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"log"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

// Path is the endpoint of the job; MaxMessageBytes the longest message.
const (
	Path            = "/ws/chat/"
	MaxMessageBytes = 64 << 10
)

// The reasons for refusing an upgrade or ending a connection.
var (
	ErrSession = errors.New("invalid session_id")
	ErrUTF8    = errors.New("text is not UTF-8")
	ErrBinary  = errors.New("binary message")
)

// Session is the count of one session.
type Session struct {
	id    [36]byte // Fixed after Open: lower case.
	count atomic.Uint64
}

var (
	mu       sync.Mutex
	sessions = map[[16]byte]*Session{}
)

// Open returns the session that the query of a request names, a new one if the
// query names none, and ErrSession if what it names is not a UUID.
func Open(query string) (*Session, error) {
	id, err := sessionID(query)
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	s := sessions[id]
	if s == nil {
		s = &Session{id: format(id)}
		sessions[id] = s
	}
	return s, nil
}

func sessionID(query string) ([16]byte, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return [16]byte{}, ErrSession
	}
	if !values.Has("session_id") {
		return random(), nil
	}
	return parse(values.Get("session_id"))
}

// random returns a UUID of version 4 (RFC 9562 §5.4).
func random() (id [16]byte) {
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func parse(text string) (id [16]byte, err error) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return id, ErrSession
	}
	digits := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return id, ErrSession
	}
	return id, nil
}

func format(id [16]byte) (text [36]byte) {
	b := hex.AppendEncode(text[:0], id[:4])
	for _, group := range [][]byte{id[4:6], id[6:8], id[8:10], id[10:]} {
		b = append(b, '-')
		b = hex.AppendEncode(b, group)
	}
	return text
}

// Reply counts text and returns the reply, which stands in the free space of
// buf: valid until buf is written to or given back. text may be what buf holds.
// Blank text has no reply and does not count.
func (s *Session) Reply(buf *bytes.Buffer, text []byte) ([]byte, error) {
	if !utf8.Valid(text) {
		return nil, ErrUTF8
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	const around = len(`{"count":18446744073709551615,"session_id":"","message":""}`) + len(s.id)
	// Room for the usual reply, so that the pool keeps it; text survives Grow,
	// which copies what buf holds and leaves the old bytes as they are.
	buf.Grow(around + 2*len(text))
	return s.appendReply(buf.AvailableBuffer(), s.count.Add(1), text), nil
}

// The buffers are kept here between messages, so that an idle connection holds
// none.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// GetBuffer returns an empty buffer, for one message.
func GetBuffer() *bytes.Buffer {
	return buffers.Get().(*bytes.Buffer)
}

// PutBuffer takes buf back: neither it nor a reply in it may be used any more.
func PutBuffer(buf *bytes.Buffer) {
	buf.Reset()
	buffers.Put(buf)
}

// Listener opens what the flag -listen says, or ends the program.
func Listener() net.Listener {
	l, err := net.Listen("tcp", Address())
	if err != nil {
		log.Fatalf("cannot listen: %v", err)
	}
	return l
}

// Address returns what the flag -listen says.
func Address() string {
	address := flag.String("listen", "127.0.0.1:8000", "`host:port` to serve the counter on")
	flag.Parse()
	return *address
}
