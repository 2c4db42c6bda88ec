package oracle

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"turnstile/proto"
)

// A Conn is one connection of a session's. The embedded Conn's deadlines are
// its caller's to set.
type Conn struct {
	net.Conn
	Start uint64 // the count at which the session was resumed

	session *Session
	life    *life         // of the session
	next    uint64        // the count of the last answer
	waiting []sentMessage // what was sent and has no answer
	parser  proto.Parser
	unread  []byte // in memory
	memory  []byte // for what is read; used again, since 20,000 of these may send all the time
}

// readBytes is how much a Conn reads at once, at least: some answers.
const readBytes = 1 << 10

// A sentMessage is a message, and what was known of its session when it was sent.
type sentMessage struct {
	text   string
	life   int // the number of the session's
	losses int // that were over
}

// ErrBye ends a connection whose server has said goodbye.
var ErrBye = errors.New("the server said goodbye")

var (
	rules = proto.Rules{MaxMessage: 1 << 20}
	mask  = [4]byte{0xa1, 0x2b, 0x3c, 0x4d}
)

// A frame is any of the server's text frames.
type frame struct {
	Count     uint64 `json:"count"`
	SessionID string `json:"session_id"`
	Message   string `json:"message"`
	Type      string `json:"type"`
	Error     string `json:"error"`
	Reason    string `json:"reason"`
	Bye       bool   `json:"bye"`
	Total     uint64 `json:"total"`
}

// open upgrades conn and reads the first frame, which says where the session
// stands.
func open(conn net.Conn, target string, compress bool) (c *Conn, hello frame, err error) {
	c = &Conn{Conn: conn, parser: proto.Parser{Rules: &rules}}
	request := proto.AppendRequest(nil, "turnstile", target, proto.Subprotocol)
	if compress {
		c.parser.Rules = &proto.Rules{MaxMessage: rules.MaxMessage}
		request = offerCompression(request)
	}
	if _, err := conn.Write(request); err != nil {
		return nil, hello, err
	}
	for proto.HeaderEnd(c.unread, 0) == 0 {
		if err := c.more(); err != nil {
			return nil, hello, err
		}
	}
	header := c.unread[:proto.HeaderEnd(c.unread, 0)]
	if err := proto.CheckUpgrade(header); err != nil {
		return nil, hello, err
	}
	if compress && !agreesOnCompression(header) {
		return nil, hello, fmt.Errorf("the server does not compress: %q", header)
	}
	c.unread = c.unread[len(header):]
	hello, err = c.read()
	if err == nil && hello.Type != "session" {
		err = fmt.Errorf("the first frame is of type %q", hello.Type)
	}
	return c, hello, err
}

// Waiting is how many messages have no answer yet.
func (c *Conn) Waiting() int { return len(c.waiting) }

// Round sends a burst and waits for all the answers.
func (c *Conn) Round(random *rand.Rand, alone bool) error {
	if err := c.Burst(random, alone); err != nil {
		return err
	}
	return c.ReceiveAll()
}

// Burst sends one to eight messages.
func (c *Conn) Burst(random *rand.Rand, alone bool) error {
	for range 1 + random.IntN(8) {
		if err := c.Send(alone); err != nil {
			return err
		}
	}
	return nil
}

// Send sends one message. With alone, which says that no other connection uses
// the session, the message names the count that it must get: what of an earlier
// connection was not counted is so sent again.
func (c *Conn) Send(alone bool) error {
	s := c.session
	s.mu.Lock()
	s.sent++
	c.life.unsolved++
	s.alone = alone
	message := fmt.Sprintf("message %d", s.sent)
	if alone {
		message = fmt.Sprintf("must be %d", c.next+uint64(len(c.waiting))+1)
	}
	var request []byte
	if s.compress {
		message += padding
		request = appendCompressed(nil, message)
	} else {
		request = proto.AppendMaskedFrame(nil, proto.OpText, true, mask, []byte(message))
	}
	c.waiting = append(c.waiting, sentMessage{message, s.life.number, s.loss.over})
	s.mu.Unlock()
	_, err := c.Write(request)
	return err
}

// ReceiveAll waits until nothing is waiting.
func (c *Conn) ReceiveAll() error {
	for len(c.waiting) > 0 {
		if err := c.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// Receive waits for the answer to the message that waits longest, and checks
// it. The error is the end of the connection: ErrBye, net.ErrClosed after a
// close frame without a goodbye, or the network's.
func (c *Conn) Receive() error {
	for {
		f, err := c.read()
		switch {
		case err != nil:
			return err
		case f.Bye || f.Error != "":
			c.checkBye(f)
			return ErrBye
		case f.Type == "": // neither a heartbeat nor the like
			c.answered(f)
			return nil
		}
	}
}

// IsOpen pings the server, and reports whether that answers: it has not ended the
// connection.
func (c *Conn) IsOpen() bool {
	c.SetDeadline(time.Now().Add(patience))
	c.Write(proto.AppendMaskedFrame(nil, proto.OpPing, true, mask, nil))
	for {
		f, err := c.read()
		if err != nil || f.Bye || f.Error != "" {
			return false
		}
		if f.Type == typePong {
			return true
		}
	}
}

// listen receives for a while, in which nothing should come but heartbeats.
func (c *Conn) listen(d time.Duration) error {
	c.SetReadDeadline(time.Now().Add(d))
	if err := c.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// lastWord is how a connection has ended: a goodbye that was not read yet may
// have come before the error of a write.
func (c *Conn) lastWord(err error) error {
	for err == nil || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		before := err
		if err = c.Receive(); err != nil && !errors.Is(err, ErrBye) {
			return errors.Join(before, err)
		}
	}
	return err
}

// checkBye holds a goodbye to the promise that the newest connection wins: one that is
// alone is the newest, since all that asked before have left.
func (c *Conn) checkBye(f frame) {
	c.session.mu.Lock()
	alone := c.session.alone
	c.session.mu.Unlock()
	if alone && f.Reason == "session_taken_over" {
		c.violation("taken over at %d, but nobody has asked for it since", f.Total)
	}
}

func (c *Conn) answered(f frame) {
	s, l := c.session, c.life
	s.mu.Lock()
	defer s.mu.Unlock()
	c.next++
	if len(c.waiting) == 0 {
		s.findings.violation("session %s: count %d of %q answers nothing", s.id, f.Count, f.Message)
		return
	}
	sent := c.waiting[0]
	if f.Count != c.next || f.Message != sent.text || f.SessionID != s.id {
		s.findings.violation("session %s, resumed at %d: got count %d of %q, want %d of %q",
			s.id, c.Start, f.Count, f.Message, c.next, sent.text)
	}
	if before, double := l.answered[f.Count]; double && !l.isContested {
		s.findings.violation("session %s: count %d is the answer to %q and to %q", s.id, f.Count, before, f.Message)
	}
	if sent.life > l.number {
		s.findings.violation("session %s: count %d was given after the session had started anew elsewhere", s.id, f.Count)
	}
	c.waiting = c.waiting[1:]
	l.answered[f.Count] = f.Message
	l.highest = max(l.highest, f.Count)
	l.unsolved--
	if !l.isContested { // or it may be one that does not know that it has lost the session
		s.loss.onSign(sent.losses)
	}
	s.findings.mu.Lock()
	s.findings.answers++
	s.findings.mu.Unlock()
}

// typePong is the type of a pong, which read returns like a text frame.
const typePong = "pong"

// read reads the next text frame, or pong. What breaks the protocol is a violation.
func (c *Conn) read() (f frame, err error) {
	if c.parser.Rules != &rules {
		inflater := inflaters.Get().(*proto.Inflater)
		c.parser.Rules.Inflater = inflater
		defer inflaters.Put(inflater)
	}
	for {
		m, n, err := c.parser.Next(c.unread)
		if err != nil {
			c.violation("a frame against the protocol: %v", err)
			return f, err
		}
		c.unread = c.unread[n:]
		switch m.Op {
		case proto.OpText:
			if err = json.Unmarshal(m.Payload, &f); err != nil {
				c.violation("a frame that is not JSON: %q", m.Payload)
			}
			return f, err
		case proto.OpClose:
			return f, net.ErrClosed
		case proto.OpPing:
			_, err = c.Write(proto.AppendMaskedFrame(nil, proto.OpPong, true, mask, m.Payload))
		case proto.OpPong:
			return frame{Type: typePong}, nil
		case proto.OpContinuation:
			err = c.more()
		}
		if err != nil {
			return f, err
		}
	}
}

// more reads what comes next into unread.
func (c *Conn) more() error {
	c.memory = slices.Grow(append(c.memory[:0], c.unread...), readBytes)
	n, err := c.Conn.Read(c.memory[len(c.memory):cap(c.memory)])
	c.memory = c.memory[:len(c.memory)+n]
	c.unread = c.memory
	if n > 0 {
		return nil
	}
	return err
}

func (c *Conn) violation(format string, args ...any) {
	if c.session != nil { // there is none before the first frame
		c.session.findings.violation("session %s: %s", c.session.id, fmt.Sprintf(format, args...))
	}
}
