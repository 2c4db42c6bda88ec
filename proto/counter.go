package proto

import (
	"slices"
	"strconv"
	"time"
)

// Subprotocol is the second version of the counter's messages.
const Subprotocol = "message-counter.v2"

// AppendCount appends the reply to a counted message, whose text must be UTF-8:
// {"count":N,"session_id":"…","message":"…"}. Here and below, session is the
// session's id as text, which needs no escaping.
func AppendCount(dst []byte, count uint64, session []byte, message []byte) []byte {
	if len(message) >= longMessage {
		dst = slices.Grow(dst, escapedLength(message)+len(session)+maxHeaderBytes+len(`{"count":,"session_id":"","message":""}`)+maxDigits)
	}
	dst, f := beginText(dst, len(`{"count":N,"session_id":"","message":""}`)+len(session)+len(message))
	dst = append(dst, `{"count":`...)
	dst = strconv.AppendUint(dst, count, 10)
	dst = append(dst, `,"session_id":"`...)
	dst = append(dst, session...)
	dst = append(dst, `","message":"`...)
	dst = appendEscaped(dst, message)
	return endText(append(dst, `"}`...), f)
}

// AppendSession appends the first frame of the second version:
// {"type":"session","session_id":"…","count":N,"resumed":true}.
func AppendSession(dst []byte, session []byte, count uint64, resumed bool) []byte {
	dst, f := beginText(dst, 0)
	dst = append(dst, `{"type":"session","session_id":"`...)
	dst = append(dst, session...)
	dst = append(dst, `","count":`...)
	dst = strconv.AppendUint(dst, count, 10)
	dst = append(dst, `,"resumed":`...)
	dst = strconv.AppendBool(dst, resumed)
	return endText(append(dst, '}'), f)
}

// AppendHeartbeat appends {"type":"heartbeat","ts":"…"}, with at in UTC to the
// microsecond.
func AppendHeartbeat(dst []byte, at time.Time) []byte {
	dst, f := beginText(dst, 0)
	dst = append(dst, `{"type":"heartbeat","ts":"`...)
	dst = at.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
	return endText(append(dst, `"}`...), f)
}

// AppendShuttingDown appends the answer to a message that comes during a drain:
// {"error":"Server is shutting down","session_id":"…"}.
func AppendShuttingDown(dst []byte, session []byte) []byte {
	dst, f := beginText(dst, 0)
	dst = append(dst, `{"error":"Server is shutting down","session_id":"`...)
	dst = append(dst, session...)
	return endText(append(dst, `"}`...), f)
}

// AppendGoodbye appends the answer to a goodbye: {"bye":true,"total":N}.
func AppendGoodbye(dst []byte, total uint64) []byte {
	dst, f := beginBye(dst, total)
	return endText(append(dst, '}'), f)
}

// AppendTakenOver appends the bye to a connection whose session another one
// has resumed: {"bye":true,"total":N,"reason":"session_taken_over"}.
func AppendTakenOver(dst []byte, total uint64) []byte {
	dst, f := beginBye(dst, total)
	return endText(append(dst, `,"reason":"session_taken_over"}`...), f)
}

// AppendShutdown appends the bye of a drain: {"bye":true,"total":N,"reason":
// "server_shutdown","inflight_completed":true}, with "retry_after_ms" in
// addition if retryAfter is not negative.
func AppendShutdown(dst []byte, total uint64, retryAfter time.Duration) []byte {
	dst, f := beginBye(dst, total)
	dst = append(dst, `,"reason":"server_shutdown","inflight_completed":true`...)
	if retryAfter >= 0 {
		dst = append(dst, `,"retry_after_ms":`...)
		dst = strconv.AppendInt(dst, retryAfter.Milliseconds(), 10)
	}
	return endText(append(dst, '}'), f)
}

func beginBye(dst []byte, total uint64) ([]byte, textFrame) {
	dst, f := beginText(dst, 0)
	dst = append(dst, `{"bye":true,"total":`...)
	return strconv.AppendUint(dst, total, 10), f
}

// A textFrame is a frame that is being appended: where its header and where
// its payload start.
type textFrame struct{ header, payload int }

// beginText leaves room for the header of a text frame whose payload has about length
// bytes.
func beginText(dst []byte, length int) ([]byte, textFrame) {
	header := len(dst)
	dst = appendHeader(dst, OpText, true, false, length)
	return dst, textFrame{header, len(dst)}
}

// endText writes the header in front of the payload. It moves the payload if the header
// needs more or less room than beginText has left.
func endText(dst []byte, f textFrame) []byte {
	length := len(dst) - f.payload
	var room [maxHeaderBytes]byte
	header := appendHeader(room[:0], OpText, true, false, length)
	if move := len(header) - (f.payload - f.header); move != 0 {
		dst = append(dst, header[:max(move, 0)]...) // grows it where the payload moves up
		copy(dst[f.header+len(header):], dst[f.payload:f.payload+length])
		dst = dst[:f.header+len(header)+length]
	}
	copy(dst[f.header:], header)
	return dst
}

// appendEscaped appends text, which must be UTF-8, as the inside of a JSON
// string (RFC 8259 §7). U+2028 and U+2029 are escaped too: older JavaScript
// takes them for the end of a line.
func appendEscaped(dst, text []byte) []byte {
	copied := 0
	for i := 0; i < len(text); i++ {
		if !special[text[i]] {
			continue
		}
		escape, size := escapeAt(text[i:])
		if size == 0 {
			continue
		}
		dst = append(dst, text[copied:i]...)
		dst = append(dst, escape...)
		i += size - 1
		copied = i + 1
	}
	return append(dst, text[copied:]...)
}

// longMessage is the length above which appendEscaped gets its memory at once. append,
// which takes more and more, would leave several times the answer as garbage.
const longMessage = 64 << 10

const maxDigits = 20 // of a count

// escapedLength is how many bytes appendEscaped appends.
func escapedLength(text []byte) int {
	n := len(text)
	for i := 0; i < len(text); i++ {
		if special[text[i]] {
			if escape, size := escapeAt(text[i:]); size > 0 {
				n += len(escape) - size
				i += size - 1
			}
		}
	}
	return n
}

// escapeAt is the escape of the character that p starts with and how many
// bytes of p it stands for; 0 if that needs none.
func escapeAt(p []byte) (escape string, size int) {
	const lineSeparators = "\xe2\x80" // U+2028 and U+2029, but for the last byte
	if p[0] != lineSeparators[0] {
		return escapes[p[0]], 1
	}
	if len(p) < 3 || string(p[:2]) != lineSeparators {
		return "", 0
	}
	switch p[2] {
	case 0xa8:
		return `\u2028`, 3
	case 0xa9:
		return `\u2029`, 3
	}
	return "", 0
}

// special marks the bytes at which a character that is escaped may start;
// escapes are their escapes where one byte is the character.
var special, escapes = func() (special [256]bool, escapes [256]string) {
	for c := range 0x20 {
		special[c] = true
		escapes[c] = `\u00` + string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
	}
	for c, escape := range map[byte]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`} {
		special[c], escapes[c] = true, escape
	}
	special[0xe2] = true
	return special, escapes
}()
