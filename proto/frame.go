// Package proto is the WebSocket protocol (RFC 6455) on byte slices, for both
// ends of a connection, and the JSON frames of the message counter.
//
// It is pure: it knows no fd, no clock, no log and no goroutine. Functions
// named Append… append to the slice they are given and allocate nothing beyond
// what it needs to grow. Nothing in the package is safe for concurrent use.
package proto

import (
	"encoding/binary"

	"github.com/gobwas/ws"
)

// A frame's opcode and a close's status code, as RFC 6455 §5.2 and §7.4 number
// them.
type (
	OpCode     = ws.OpCode
	StatusCode = ws.StatusCode
)

// The opcodes of RFC 6455 §5.2.
const (
	OpContinuation = ws.OpContinuation
	OpText         = ws.OpText
	OpBinary       = ws.OpBinary
	OpClose        = ws.OpClose
	OpPing         = ws.OpPing
	OpPong         = ws.OpPong
)

// The status codes that the server closes with, beside those of an Error.
const (
	StatusNormalClosure   = ws.StatusNormalClosure
	StatusGoingAway       = ws.StatusGoingAway
	StatusUnsupportedData = ws.StatusUnsupportedData
	StatusPolicyViolation = ws.StatusPolicyViolation
	StatusTryAgainLater   = StatusCode(1013) // IANA's registry, not the RFC
	StatusTakenOver       = StatusCode(4001)
)

const (
	maxHeaderBytes  = 10 // of a frame without a mask
	maxControlBytes = ws.MaxControlFramePayloadSize
	longest7        = 125 // the longest payload whose length fits into the second byte
	longest16       = 1<<16 - 1
)

// decodeHeader reads the frame header at the front of buf. n is the header's
// length in bytes, mask included; it is 0 while h.Length is not known. The
// mask is there once buf holds n bytes. An error in the first two bytes is returned as
// soon as they are there.
func decodeHeader(buf []byte, rules *Rules) (h ws.Header, n int, err error) {
	if len(buf) < 2 {
		return h, 0, nil
	}
	h.Fin = buf[0]&0x80 != 0
	h.Rsv = buf[0] >> 4 & 7
	h.OpCode = OpCode(buf[0] & 0x0f)
	h.Masked = buf[1]&0x80 != 0
	length7 := buf[1] & 0x7f
	if err := checkHeader(h, length7, rules); err != nil {
		return h, 0, err
	}
	if h.Length, n, err = decodeLength(length7, buf); n == 0 || err != nil {
		return h, 0, err
	}
	if h.Masked {
		copy(h.Mask[:], buf[n:])
		n += len(h.Mask)
	}
	return h, n, nil
}

func checkHeader(h ws.Header, length7 byte, rules *Rules) error {
	switch {
	case h.Rsv != 0 && !rules.allowCompressed(h):
		return ErrReservedBits
	case h.OpCode.IsReserved():
		return ErrReservedOpCode
	case h.OpCode.IsControl() && !h.Fin:
		return ErrControlFragment
	case h.OpCode.IsControl() && length7 > maxControlBytes:
		return ErrControlTooLong
	case rules.FromClient && !h.Masked:
		return ErrNotMasked
	case !rules.FromClient && h.Masked:
		return ErrMasked
	}
	return nil
}

// decodeLength reads the payload length of the frame at the front of buf; n is
// where it ends, 0 while it is not all there.
func decodeLength(length7 byte, buf []byte) (length int64, n int, err error) {
	switch {
	case length7 <= longest7:
		return int64(length7), 2, nil
	case length7 == 126 && len(buf) >= 4:
		length, n = int64(binary.BigEndian.Uint16(buf[2:])), 4
		if length <= longest7 {
			return 0, 0, ErrLengthNotMinimal
		}
	case length7 == 127 && len(buf) >= 10:
		length, n = int64(binary.BigEndian.Uint64(buf[2:])), 10
		if length < 0 {
			return 0, 0, ErrLengthTooLong
		}
		if length <= longest16 {
			return 0, 0, ErrLengthNotMinimal
		}
	}
	return length, n, nil
}

// AppendFrame appends a whole message, or a control frame, as a server sends
// it: in one frame, not masked.
func AppendFrame(dst []byte, op OpCode, payload []byte) []byte {
	return append(appendHeader(dst, op, true, false, len(payload)), payload...)
}

// AppendMaskedFrame appends a frame as a client sends it (RFC 6455 §5.3).
func AppendMaskedFrame(dst []byte, op OpCode, fin bool, mask [4]byte, payload []byte) []byte {
	dst = appendHeader(dst, op, fin, true, len(payload))
	dst = append(dst, mask[:]...)
	start := len(dst)
	dst = append(dst, payload...)
	ws.Cipher(dst[start:], mask, 0)
	return dst
}

// AppendClose appends a server's close frame. Code 0 is a close without a code;
// a reason longer than the 123 bytes that fit is cut.
func AppendClose(dst []byte, code StatusCode, reason string) []byte {
	if code == 0 {
		return AppendFrame(dst, OpClose, nil)
	}
	reason = reason[:min(len(reason), maxControlBytes-2)]
	dst = appendHeader(dst, OpClose, true, false, 2+len(reason))
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, reason...)
}

func appendHeader(dst []byte, op OpCode, fin, masked bool, length int) []byte {
	first, maskBit := byte(op), byte(0)
	if fin {
		first |= 0x80
	}
	if masked {
		maskBit = 0x80
	}
	switch {
	case length <= longest7:
		return append(dst, first, maskBit|byte(length))
	case length <= longest16:
		return binary.BigEndian.AppendUint16(append(dst, first, maskBit|126), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(dst, first, maskBit|127), uint64(length))
	}
}
