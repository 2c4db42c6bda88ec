package counter

import "strconv"

// appendReply appends {"count":N,"session_id":"…","message":"…"}.
func (s *Session) appendReply(dst []byte, count uint64, text []byte) []byte {
	dst = append(dst, `{"count":`...)
	dst = strconv.AppendUint(dst, count, 10)
	dst = append(dst, `,"session_id":"`...)
	dst = append(dst, s.id[:]...)
	dst = append(dst, `","message":"`...)
	dst = appendEscaped(dst, text)
	return append(dst, `"}`...)
}

// appendEscaped appends text as it stands in a JSON string (RFC 8259 §7), in
// runs: most text has nothing to escape.
func appendEscaped(dst, text []byte) []byte {
	copied := 0
	for i, c := range text {
		if escapes[c] == "" {
			continue
		}
		dst = append(dst, text[copied:i]...)
		dst = append(dst, escapes[c]...)
		copied = i + 1
	}
	return append(dst, text[copied:]...)
}

var escapes = func() (escapes [256]string) {
	const digits = "0123456789abcdef"
	for c := range 0x20 {
		escapes[c] = `\u00` + string(digits[c>>4]) + string(digits[c&15])
	}
	for c, escape := range map[byte]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`} {
		escapes[c] = escape
	}
	return escapes
}()
