package proto

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// Rules are what a Parser demands of its peer. Many Parsers share them.
type Rules struct {
	FromClient bool // the peer is a client: its frames must be masked
	MaxMessage int  // the longest message, in bytes, over all its fragments

	// Inflater restores the messages that the peer compresses; nil if it must not.
	Inflater *Inflater
}

// allowCompressed reports whether reserved bits that are set may be: only the first frame
// of a message says that it is compressed (RFC 7692 §6.1).
func (r *Rules) allowCompressed(h ws.Header) bool {
	return r.Inflater != nil && h.Rsv == rsv1 && (h.OpCode == OpText || h.OpCode == OpBinary)
}

// A Message is a whole data message, or a control frame, with its payload
// unmasked. Op is OpContinuation where there is no message.
type Message struct {
	Op        OpCode
	Payload   []byte // valid until the buffer is changed, or a parser with the same Rules called
	Fragments int    // how many frames before the message's last were taken with it
	Inflated  bool   // it came compressed
}

// A Parser takes messages out of a stream of frames. It holds no bytes of an
// unfinished frame: those stay with the caller, at the front of the buffer of
// the next call. The zero Parser with Rules set is at the start of a stream.
type Parser struct {
	Rules *Rules
	Unfinished
}

// Unfinished is what a Parser knows of an unfinished frame and of an unfinished message. Who
// has many streams with the same Rules keeps only that, and makes a Parser of it for each
// call. The zero Unfinished is at the start of a stream.
type Unfinished struct {
	started *started // nil between messages
}

// started is the state of an unfinished frame and of an unfinished message.
type started struct {
	message    []byte   // the fragments so far
	seen       int      // how much of the frame's payload is unmasked and checked already
	op         OpCode   // of the message, OpContinuation if there is none
	compressed bool     // the message is
	tail       utf8Tail // where the UTF-8 check of the message stands
}

// A ParserState is the state of a Parser without the unfinished frame's bytes, which its
// caller has. Another Parser can go on from it.
type ParserState struct {
	Op         OpCode // of the message whose fragments are in Message, OpContinuation if there is none
	Compressed bool   // that message is
	Message    []byte // the fragments so far
	Seen       int    // bytes of the unfinished frame's payload that are unmasked and checked
	Tail       []byte // the first bytes of a character whose last bytes are still to come
}

// State is u as another process can have it. Message and Tail are u's own memory.
func (u *Unfinished) State() (state ParserState) {
	if s := u.started; s != nil {
		state = ParserState{Op: s.op, Compressed: s.compressed, Message: s.message, Seen: s.seen, Tail: s.tail.bytes[:s.tail.n]}
	}
	return state
}

// BetweenMessages reports whether no frame and no message has begun.
func (u *Unfinished) BetweenMessages() bool { return u.started == nil }

// HeldBytes is how much memory u has for the fragments of an unfinished message.
func (u *Unfinished) HeldBytes() int {
	if u.started == nil {
		return 0
	}
	return cap(u.started.message)
}

// Gathered is how many bytes u has of the fragments of an unfinished message.
func (u *Unfinished) Gathered() int {
	if u.started == nil {
		return 0
	}
	return len(u.started.message)
}

// FrameEnd is where the frame at the front of buf ends, beyond buf or within it; 0 while
// that is not known.
func (p *Parser) FrameEnd(buf []byte) int64 {
	h, n, err := decodeHeader(buf, p.Rules)
	if err != nil || n == 0 {
		return 0
	}
	return int64(n) + h.Length
}

// Restore makes u go on from a State.
func (u *Unfinished) Restore(state ParserState) {
	s := started{message: state.Message, seen: state.Seen, op: state.Op, compressed: state.Compressed}
	s.tail.n = uint8(copy(s.tail.bytes[:utf8.UTFMax-1], state.Tail))
	u.keep(&s)
}

// Next takes the next message out of buf, which starts where the last call
// left off: n bytes of it are used up. When it holds no whole message, m.Op is
// OpContinuation, and the caller keeps buf[n:], with what Next has unmasked in
// it, for the next call. An error is an *Error; the stream cannot be parsed
// any further then.
func (p *Parser) Next(buf []byte) (m Message, n int, err error) {
	var s started
	if p.started != nil {
		s = *p.started
	}
	fragments := 0
	for m.Op == OpContinuation && err == nil {
		var used int
		m, used, err = s.nextFrame(p.Rules, buf[n:])
		if used == 0 {
			break
		}
		n += used
		if m.Op == OpContinuation {
			fragments++
		}
	}
	m.Fragments = fragments
	p.keep(&s)
	return m, n, err
}

// keep keeps s for the next call, if anything is unfinished.
func (u *Unfinished) keep(s *started) {
	switch {
	case s.op == OpContinuation && s.seen == 0:
		u.started = nil
	case u.started == nil:
		kept := *s // so that only what is kept is on the heap
		u.started = &kept
	default:
		*u.started = *s
	}
}

func (s *started) nextFrame(rules *Rules, buf []byte) (m Message, n int, err error) {
	h, n, err := decodeHeader(buf, rules)
	if err == nil && n > 0 {
		err = s.checkSequence(h, s.longest(h, rules))
	}
	if err != nil || n == 0 || len(buf) < n {
		return Message{}, 0, err
	}
	payload := buf[n:]
	whole := int64(len(payload)) >= h.Length
	if whole {
		payload = payload[:h.Length]
	}
	if err := s.consume(h, payload, whole); err != nil {
		return Message{}, 0, err
	}
	if !whole {
		return Message{}, 0, nil
	}
	compressed := s.isCompressed(h)
	m, err = s.finish(h, payload, s.longest(h, rules))
	if compressed && m.Op != OpContinuation {
		m, err = rules.inflate(m)
	}
	return m, n + len(payload), err
}

// isCompressed reports whether a frame is of a message that is compressed.
func (s *started) isCompressed(h ws.Header) bool {
	return h.Rsv != 0 || s.compressed && h.OpCode == OpContinuation
}

// longest is how long a message may be before it is inflated.
func (s *started) longest(h ws.Header, rules *Rules) int {
	if s.isCompressed(h) {
		return CompressedBound(rules.MaxMessage)
	}
	return rules.MaxMessage
}

// inflate restores a message. If it is text, it is checked then.
func (r *Rules) inflate(m Message) (Message, error) {
	var err error
	if m.Payload, err = r.Inflater.inflate(m.Payload, r.MaxMessage); err == nil && m.Op == OpText && !utf8.Valid(m.Payload) {
		err = ErrNotUTF8
	}
	m.Inflated = true
	return m, err
}

// checkSequence checks a header against what came before it.
func (s *started) checkSequence(h ws.Header, longest int) error {
	switch {
	case h.OpCode.IsControl():
		return nil
	case h.OpCode == OpContinuation && s.op == OpContinuation:
		return ErrNoFragment
	case h.OpCode != OpContinuation && s.op != OpContinuation:
		return ErrFragmentOpen
	case h.Length > int64(longest-len(s.message)):
		return ErrTooBig
	}
	return nil
}

// consume unmasks the new bytes of a frame's payload and, if it is text that is not
// compressed, checks them.
func (s *started) consume(h ws.Header, payload []byte, whole bool) error {
	fresh := payload[s.seen:]
	if h.Masked {
		ws.Cipher(fresh, h.Mask, s.seen)
	}
	text := s.isText(h) && !s.isCompressed(h)
	atOnce := whole && h.Fin && s.seen == 0 && text && h.OpCode == OpText
	s.seen = len(payload)
	if whole {
		s.seen = 0
	}
	switch {
	case atOnce && !utf8.Valid(fresh):
		return ErrNotUTF8
	case atOnce || !text:
		return nil
	case !s.tail.accept(fresh) || whole && h.Fin && s.tail.n > 0:
		return ErrNotUTF8
	}
	return nil
}

func (s *started) isText(h ws.Header) bool {
	return h.OpCode == OpText || h.OpCode == OpContinuation && s.op == OpText
}

// finish makes a message of a frame that is whole.
func (s *started) finish(h ws.Header, payload []byte, longest int) (Message, error) {
	switch {
	case h.OpCode == OpClose:
		return Message{Op: OpClose, Payload: payload}, checkClose(payload)
	case h.OpCode.IsControl():
		return Message{Op: h.OpCode, Payload: payload}, nil
	case !h.Fin:
		if h.OpCode != OpContinuation {
			s.op, s.compressed = h.OpCode, h.Rsv != 0
		}
		s.gather(payload, min(2*cap(s.message), longest))
		return Message{}, nil
	case h.OpCode == OpContinuation:
		s.gather(payload, 0)
		m := Message{Op: s.op, Payload: s.message}
		s.op, s.message, s.compressed = OpContinuation, nil, false
		return m, nil
	}
	return Message{Op: h.OpCode, Payload: payload}, nil
}

// gather appends a fragment. If that needs more memory, it takes room for as many bytes,
// or more if that is not enough. append would leave four times the message as garbage.
func (s *started) gather(fragment []byte, room int) {
	if need := len(s.message) + len(fragment); need > cap(s.message) {
		s.message = append(make([]byte, 0, max(need, room)), s.message...)
	}
	s.message = append(s.message, fragment...)
}

// CloseCode is the status code in the payload of a close frame, 0 if there is
// none (RFC 6455 §5.5.1).
func CloseCode(payload []byte) StatusCode {
	if len(payload) < 2 {
		return 0
	}
	return StatusCode(binary.BigEndian.Uint16(payload))
}

// checkClose checks the payload of a close frame. Beside the codes of the RFC,
// 1012 to 1014 may be sent: they are in IANA's registry.
func checkClose(payload []byte) error {
	code := CloseCode(payload)
	switch {
	case len(payload) == 0:
		return nil
	case len(payload) == 1:
		return ErrClosePayload
	case !(1000 <= code && code <= 1014 || 3000 <= code && code <= 4999),
		code == ws.StatusNoMeaningYet, code == ws.StatusNoStatusRcvd, code == ws.StatusAbnormalClosure:
		return ErrCloseCode
	case !utf8.Valid(payload[2:]):
		return ErrCloseReason
	}
	return nil
}

// A utf8Tail checks UTF-8 that comes in pieces. It keeps the first bytes of a character
// until the next piece brings the rest.
type utf8Tail struct {
	bytes [utf8.UTFMax]byte
	n     uint8
}

// accept reports whether p is valid UTF-8 after what came before.
func (t *utf8Tail) accept(p []byte) bool {
	for t.n > 0 && len(p) > 0 {
		t.bytes[t.n] = p[0]
		t.n++
		p = p[1:]
		// A sequence that cannot become a character counts as full, at
		// the first byte that spoils it.
		if character := t.bytes[:t.n]; utf8.FullRune(character) {
			if !utf8.Valid(character) {
				return false
			}
			t.n = 0
		}
	}
	whole := len(p) - unfinished(p)
	if !utf8.Valid(p[:whole]) {
		return false
	}
	t.n += uint8(copy(t.bytes[t.n:], p[whole:]))
	return true
}

// unfinished is how many bytes at the end of p are the start of a character.
func unfinished(p []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(p); i++ {
		end := p[len(p)-i:]
		if utf8.RuneStart(end[0]) {
			if utf8.FullRune(end) {
				return 0
			}
			return i
		}
	}
	return 0
}
