package proto

import (
	"bytes"
	"encoding/hex"
	"slices"
)

// MaxRequestHeader is the longest request header, in bytes, that is read.
const MaxRequestHeader = 8 << 10

// A Request is one HTTP request, read as RFC 9110 and 9112 say. Whatever the server
// decides about a request, it decides by this one reading, for endpoints and plain pages
// alike. Read fills a Request, and keeps its memory between calls.
//
// The slices are parts of the buffer that was given to Read, or of memory of the
// Request's own, and valid until the next Read. They are nil where the request does not
// say.
type Request struct {
	Method       []byte
	Path         []byte   // without percent-encoding, but for %2F, which is no slash
	Query        []byte   // as it came
	Host         []byte   // of an absolute target, else of the Host header
	Origin       []byte   // the Origin header
	ForwardedFor [][]byte // the X-Forwarded-For headers, which are one list
	RealIP       []byte   // the last X-Real-IP
	RequestID    []byte   // the last X-Request-ID
	Protocol     string   // the subprotocol that Upgrade has agreed on
	Window       uint8    // the window of compressed answers that it has agreed on, in bits; 0 is no compression
	Skipped      int      // how long the empty line before the request is, which net/http does not take

	// What an upgrade is made of.
	protocols  [][]byte // the Sec-WebSocket-Protocol headers, which are one list
	extensions [][]byte // the Sec-WebSocket-Extensions headers, likewise
	key        []byte
	version    []byte
	upgrade    bool // "websocket" is in the Upgrade headers
	connection bool // "upgrade" is in the Connection headers

	// What the rules for all requests need.
	contentLength []byte
	fields        fieldSet // the fields of the table that were there
	minor         byte     // of HTTP/1.minor
	absolute      bool     // the target is in absolute form
	decoded       []byte   // what had percent-encoding, or quotes
}

// Read reads the request at the front of buf. Its header, blank line included, is used
// bytes long; used is 0 while it is not whole. The first seen bytes of buf were there at
// the last call. Bytes that no request can begin with are refused before the header is
// whole. After a refusal, the Request has what was read before.
func (r *Request) Read(buf []byte, seen int) (used int, refusal *Refusal) {
	r.Reset()
	header := buf[:min(len(buf), MaxRequestHeader)]
	if seen == 0 || HeaderEnd(header, seen) > 0 { // who sends byte by byte is not parsed as often
		used, refusal = r.parse(header)
	}
	switch {
	case used > 0 || refusal != nil:
		return used, refusal
	case len(buf) >= MaxRequestHeader:
		return 0, ErrHeaderTooLong
	}
	return 0, r.checkBeginning(buf)
}

// Reset empties the Request, so that nothing is left of the buffer.
func (r *Request) Reset() {
	*r = Request{ForwardedFor: r.ForwardedFor[:0], protocols: r.protocols[:0], extensions: r.extensions[:0], decoded: r.decoded[:0]}
}

// IsHead reports whether the answer must have no body (RFC 9110 §9.3.2).
func (r *Request) IsHead() bool { return string(r.Method) == "HEAD" }

// HeaderEnd is the length of the HTTP header at the front of buf, its blank
// line included; 0 while that is not there. The first checked bytes have been
// looked at before. Lines may end in LF alone (RFC 9112 §2.2).
func HeaderEnd(buf []byte, checked int) int {
	const longestEnd = len("\n\r\n")
	for i := max(0, checked-longestEnd+1); i < len(buf); {
		lf := bytes.IndexByte(buf[i:], '\n')
		if lf < 0 {
			return 0
		}
		i += lf + 1
		switch rest := buf[i:]; {
		case bytes.HasPrefix(rest, []byte("\n")):
			return i + 1
		case bytes.HasPrefix(rest, []byte("\r\n")):
			return i + 2
		}
	}
	return 0
}

// skipEmptyLine skips one empty line before a request (RFC 9112 §2.2).
func (r *Request) skipEmptyLine(buf []byte) []byte {
	switch {
	case bytes.HasPrefix(buf, []byte("\r\n")):
		r.Skipped = 2
	case bytes.HasPrefix(buf, []byte("\n")):
		r.Skipped = 1
	}
	return buf[r.Skipped:]
}

// checkBeginning refuses the beginning of what is no request.
func (r *Request) checkBeginning(buf []byte) *Refusal {
	line, rest, whole := cutLine(r.skipEmptyLine(buf))
	if whole {
		return r.parseLine(line)
	}
	method, rest, hasMethod := bytes.Cut(rest, []byte(" "))
	switch {
	case len(method) == 0 && !hasMethod || string(buf) == "\r":
		return nil
	case !isToken(method) || len(method) > longestMethod:
		return notHTTP(buf)
	case hasMethod && !isFieldValue(bytes.TrimSuffix(rest, []byte("\r"))):
		return ErrNotHTTP
	}
	return nil
}

// longestMethod is longer than all methods that IANA knows.
const longestMethod = 32

// notHTTP is the answer to a client that begins with something else than a method.
func notHTTP(buf []byte) *Refusal {
	const handshakeRecord = 0x16 // RFC 8446 §5.1
	if buf[0] == handshakeRecord {
		return ErrTLS
	}
	return ErrNotHTTP
}

// parse reads a header, which is used bytes long; used is 0 if it is not whole.
func (r *Request) parse(buf []byte) (used int, refusal *Refusal) {
	line, rest, ok := cutLine(r.skipEmptyLine(buf))
	if !ok {
		return 0, nil
	}
	if refusal = r.parseLine(line); refusal != nil {
		return 0, refusal
	}
	for {
		line, rest, ok = cutLine(rest)
		switch {
		case !ok:
			return 0, nil
		case len(line) == 0:
			return len(buf) - len(rest), r.check()
		}
		if refusal = r.parseField(line); refusal != nil {
			return 0, refusal
		}
	}
}

// cutLine cuts off the first line, without its end; ok is false if it has no end yet.
func cutLine(lines []byte) (line, rest []byte, ok bool) {
	lf := bytes.IndexByte(lines, '\n')
	if lf < 0 {
		return nil, lines, false
	}
	line = lines[:lf]
	if lf > 0 && line[lf-1] == '\r' {
		line = line[:lf-1]
	}
	return line, lines[lf+1:], true
}

// parseLine reads the request line (RFC 9112 §3).
func (r *Request) parseLine(line []byte) *Refusal {
	end := tokenLength(line)
	switch {
	case len(line) == 0 || end == len(line):
		return errMalformed
	case end == 0 || end > longestMethod || line[end] != ' ':
		return notHTTP(line)
	}
	r.Method = line[:end]
	target, version, _ := bytes.Cut(line[end+1:], []byte(" "))
	switch major, minor, ok := parseVersion(version); {
	case !ok:
		return errMalformed
	case major == 2 && string(r.Method) == "PRI":
		return errHTTP2
	case major != 1:
		return errNotHTTP1
	default:
		r.minor = minor
	}
	return r.parseTarget(target)
}

// parseVersion reads HTTP/major.minor, of one digit each (RFC 9112 §2.3).
func parseVersion(version []byte) (major, minor byte, ok bool) {
	if len(version) != len("HTTP/1.1") || string(version[:5]) != "HTTP/" || version[6] != '.' {
		return 0, 0, false
	}
	major, minor = version[5]-'0', version[7]-'0'
	return major, minor, major <= 9 && minor <= 9
}

// parseTarget reads the request target: a path, http://host/path, or * for the whole
// server (RFC 9112 §3.2).
func (r *Request) parseTarget(target []byte) *Refusal {
	if !isFieldValue(target) || bytes.IndexByte(target, '\t') >= 0 {
		return errBadTarget
	}
	if string(target) == "*" && string(r.Method) == "OPTIONS" {
		r.Path = target
		return nil
	}
	if !bytes.HasPrefix(target, root) {
		if r.Host, target, r.absolute = cutAuthority(target); !r.absolute {
			return errBadTarget
		}
	}
	path, query, _ := bytes.Cut(target, []byte("?"))
	r.Path, r.Query = path, query
	if len(path) == 0 {
		r.Path = root
	}
	if bytes.IndexByte(path, '%') < 0 {
		return nil
	}
	var ok bool
	if r.Path, ok = r.decode(path, keepSlash); !ok {
		return errBadEscape
	}
	return nil
}

var root = []byte("/")

// cutAuthority cuts a target in absolute form (RFC 9112 §3.2.2). The path may be empty.
func cutAuthority(target []byte) (authority, path []byte, ok bool) {
	scheme, rest, _ := bytes.Cut(target, []byte("://"))
	if !slices.ContainsFunc(schemes, func(s string) bool { return EqualFold(scheme, s) }) {
		return nil, nil, false
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	_, _, ok = CutPort(rest[:end])
	return rest[:end], rest[end:], ok
}

// schemes are those of targets in absolute form. RFC 6455 §3 adds the last two.
var schemes = []string{"http", "https", "ws", "wss"}

// check checks what needs the whole header.
func (r *Request) check() *Refusal {
	switch {
	case r.minor > 0 && !r.fields.has(fieldHost):
		return errNoHost // in absolute form too: RFC 9112 §3.2
	case r.fields.has(fieldTransferEncoding) || len(bytes.Trim(r.contentLength, "0")) > 0:
		return ErrBody
	}
	return nil
}

// QueryValue is the first value of a name in the query; ok is false if it is not there.
// Percent-encoding is decoded, in names too; a value whose encoding is broken is returned
// as it came. Between two & without anything there is no name (URL Standard §5.1).
func (r *Request) QueryValue(name string) (value []byte, ok bool) {
	for rest := r.Query; len(rest) > 0; {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte("&"))
		key, value, _ := bytes.Cut(pair, []byte("="))
		if key, _ = r.decode(key, spacePlus); len(pair) > 0 && string(key) == name {
			value, _ = r.decode(value, spacePlus)
			return value, true
		}
	}
	return nil, false
}

// What decode treats in a way of its own.
type decoding int

const (
	keepSlash decoding = iota // in a path %2F is no separator (RFC 3986 §2.2)
	spacePlus                 // in a query a + is a space
)

// decode decodes percent-encoding (RFC 3986 §2.1). If it is broken, ok is false, and the
// text is returned as it came.
func (r *Request) decode(text []byte, how decoding) (decoded []byte, ok bool) {
	if bytes.IndexAny(text, "%+") < 0 {
		return text, true
	}
	start := len(r.decoded)
	for i := 0; i < len(text); i++ {
		b := text[i]
		switch {
		case b == '+' && how == spacePlus:
			b = ' '
		case b == '%':
			var one [1]byte
			if _, err := hex.Decode(one[:], text[i+1:min(i+3, len(text))]); err != nil || i+2 >= len(text) {
				return text, false
			}
			if one[0] == '/' && how == keepSlash {
				break
			}
			b = one[0]
			i += 2
		}
		r.decoded = append(r.decoded, b)
	}
	return r.decoded[start:], true
}
