package proto

import (
	"encoding/binary"
	"math"
)

// A Skipper looks for a close frame in a stream whose messages nobody wants any more:
// behind an error, or behind a close frame of our own. It keeps no payload and checks
// nothing, since the stream may be against the protocol. The zero Skipper is at the start
// of a frame.
type Skipper struct {
	payload int64 // bytes of the frame's payload that are still to come
	n       uint8 // bytes of header that are there
	header  [maxHeaderBytes + 4]byte
}

// Skip goes on with p, and reports whether a whole close frame has come.
func (s *Skipper) Skip(p []byte) (closed bool) {
	for len(p) > 0 && !closed {
		switch whole := s.headerLength(); {
		case s.n < whole:
			n := copy(s.header[s.n:whole], p)
			s.n += uint8(n)
			p = p[n:]
			if s.n == s.headerLength() {
				s.payload = s.payloadLength()
			}
		default:
			n := min(s.payload, int64(len(p)))
			s.payload -= n
			p = p[n:]
		}
		if s.n == s.headerLength() && s.payload == 0 {
			closed = OpCode(s.header[0]&0x0f) == OpClose
			s.n = 0
		}
	}
	return closed
}

// headerLength is the length of the frame's header, as far as what is there tells: at
// least 2.
func (s *Skipper) headerLength() (n uint8) {
	n = 2
	if s.n < n {
		return n
	}
	switch s.header[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if s.header[1]&0x80 != 0 {
		n += 4
	}
	return n
}

func (s *Skipper) payloadLength() int64 {
	switch length7 := s.header[1] & 0x7f; length7 {
	case 126:
		return int64(binary.BigEndian.Uint16(s.header[2:]))
	case 127:
		return int64(binary.BigEndian.Uint64(s.header[2:]) & math.MaxInt64)
	default:
		return int64(length7)
	}
}
