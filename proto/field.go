package proto

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// A field is a header field that a Request reads.
type field uint8

const (
	fieldHost field = iota
	fieldOrigin
	fieldRealIP
	fieldRequestID
	fieldForwardedFor
	fieldUpgrade
	fieldConnection
	fieldKey
	fieldVersion
	fieldProtocol
	fieldExtensions
	fieldContentLength
	fieldTransferEncoding
	fieldCount // how many there are
)

// fieldRules are the names, the answers to a second line of a field that may have one
// only, and what a value is read by.
var fieldRules = [fieldCount]struct {
	name  string
	twice *Refusal // nil if there may be several
	read  func(r *Request, value []byte) *Refusal
}{
	fieldHost:             {"Host", errTwoHosts, (*Request).onHost},
	fieldOrigin:           {"Origin", errTwoOrigins, func(r *Request, v []byte) *Refusal { r.Origin = v; return nil }},
	fieldRealIP:           {"X-Real-IP", nil, func(r *Request, v []byte) *Refusal { r.RealIP = v; return nil }},
	fieldRequestID:        {"X-Request-ID", nil, func(r *Request, v []byte) *Refusal { r.RequestID = v; return nil }},
	fieldForwardedFor:     {"X-Forwarded-For", nil, (*Request).onForwardedFor},
	fieldUpgrade:          {"Upgrade", nil, (*Request).onUpgrade},
	fieldConnection:       {"Connection", nil, (*Request).onConnection},
	fieldKey:              {"Sec-WebSocket-Key", errTwoKeys, func(r *Request, v []byte) *Refusal { r.key = v; return nil }},
	fieldVersion:          {"Sec-WebSocket-Version", errTwoVersions, func(r *Request, v []byte) *Refusal { r.version = v; return nil }},
	fieldProtocol:         {"Sec-WebSocket-Protocol", nil, (*Request).onProtocol},
	fieldExtensions:       {"Sec-WebSocket-Extensions", nil, (*Request).onExtensions},
	fieldContentLength:    {"Content-Length", nil, (*Request).onContentLength},
	fieldTransferEncoding: {"Transfer-Encoding", nil, func(*Request, []byte) *Refusal { return nil }},
}

// fieldsOfLength are the fields whose names have a length.
var fieldsOfLength = func() (fields [len("Sec-WebSocket-Extensions") + 1][]field) {
	for f, rule := range fieldRules {
		fields[len(rule.name)] = append(fields[len(rule.name)], field(f))
	}
	return fields
}()

// fieldNamed is the field with this name, in any case; ok is false if it is not read.
func fieldNamed(name []byte) (f field, ok bool) {
	if len(name) >= len(fieldsOfLength) {
		return 0, false
	}
	for _, f := range fieldsOfLength[len(name)] {
		if EqualFold(name, fieldRules[f].name) {
			return f, true
		}
	}
	return 0, false
}

// A fieldSet is a set of fields.
type fieldSet uint16

func (s fieldSet) has(f field) bool { return s&(1<<f) != 0 }

// parseField reads a header line (RFC 9112 §5).
func (r *Request) parseField(line []byte) *Refusal {
	end := tokenLength(line)
	if end == 0 || end == len(line) || line[end] != ':' {
		return badName(line, end)
	}
	value := trimOWS(line[end+1:])
	if !isFieldValue(value) {
		return errControl
	}
	f, ok := fieldNamed(line[:end])
	if !ok {
		return nil
	}
	rule := &fieldRules[f]
	if rule.twice != nil && r.fields.has(f) {
		return rule.twice
	}
	r.fields |= 1 << f
	return rule.read(r, value)
}

// badName says what is wrong with a line that begins with a name of this length, but not
// with a name and a colon.
func badName(line []byte, length int) *Refusal {
	switch {
	case isOWS(line[0]):
		return errFolded
	case length > 0 && bytes.HasPrefix(trimOWS(line[length:]), []byte(":")):
		return errSpacedName
	}
	return errMalformed
}

func (r *Request) onHost(value []byte) *Refusal {
	if _, _, ok := CutPort(value); !ok && len(value) > 0 {
		return errBadHost
	}
	if !r.absolute { // then the target says it: RFC 9112 §3.2.2
		r.Host = value
	}
	return nil
}

func (r *Request) onForwardedFor(value []byte) *Refusal {
	r.ForwardedFor = append(r.ForwardedFor, value)
	return nil
}

func (r *Request) onProtocol(value []byte) *Refusal {
	r.protocols = append(r.protocols, value)
	return nil
}

func (r *Request) onExtensions(value []byte) *Refusal {
	r.extensions = append(r.extensions, value)
	return nil
}

func (r *Request) onUpgrade(value []byte) *Refusal {
	r.upgrade = r.upgrade || hasToken(value, "websocket")
	return nil
}

func (r *Request) onConnection(value []byte) *Refusal {
	r.connection = r.connection || hasToken(value, "upgrade")
	return nil
}

// onContentLength takes several lines if they are the same (RFC 9112 §6.3).
func (r *Request) onContentLength(value []byte) *Refusal {
	if len(value) == 0 || !isNumber(value) || r.contentLength != nil && !bytes.Equal(value, r.contentLength) {
		return errContentLength
	}
	r.contentLength = value
	return nil
}

// hasToken reports whether a comma-separated list has a token, in any case (RFC 9110
// §5.6.1).
func hasToken(list []byte, token string) bool {
	for len(list) > 0 {
		var element []byte
		element, list, _ = bytes.Cut(list, []byte(","))
		if EqualFold(trimOWS(element), token) {
			return true
		}
	}
	return false
}

// CutPort cuts host:port, as it stands in a Host header and in an origin, in two. The
// port may be missing. An IPv6 address has its brackets. ok is false if it is neither
// (RFC 3986 §3.2.2; percent-encoding, which no host of the web needs, is not taken).
func CutPort(hostPort []byte) (host, port []byte, ok bool) {
	host = hostPort
	if i := bytes.LastIndexByte(hostPort, ':'); i > bytes.LastIndexByte(hostPort, ']') {
		host, port = hostPort[:i], hostPort[i+1:]
	}
	return host, port, isNumber(port) && (isHostName(host) || isIPv6(host))
}

// isIPv6 reports whether a host is an IPv6 address in brackets.
func isIPv6(host []byte) bool {
	if len(host) < 2 || host[0] != '[' || host[len(host)-1] != ']' {
		return false
	}
	ip, err := netip.ParseAddr(string(host[1 : len(host)-1]))
	return err == nil && ip.Is6() && ip.Zone() == ""
}

// A class is a set of characters.
type class uint8

const (
	classToken class = 1 << iota // RFC 9110 §5.6.2
	classHost                    // of a name: RFC 3986 §3.2.2, reg-name
	classValue                   // of a header's value: RFC 9110 §5.5
)

var classes = func() (c [256]class) {
	for b := range c {
		if b >= ' ' && b != 0x7f || b == '\t' {
			c[b] |= classValue
		}
	}
	const alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for _, b := range []byte(alphanumeric + "!#$%&'*+-.^_`|~") {
		c[b] |= classToken
	}
	for _, b := range []byte(alphanumeric + "-._~!$&'()*+,;=") {
		c[b] |= classHost
	}
	return c
}()

// tokenLength is the length of the token at the front of text.
func tokenLength(text []byte) int {
	for i, b := range text {
		if classes[b]&classToken == 0 {
			return i
		}
	}
	return len(text)
}

func isToken(text []byte) bool { return len(text) > 0 && tokenLength(text) == len(text) }

func isHostName(text []byte) bool { return len(text) > 0 && consists(text, classHost) }

// isFieldValue looks at eight bytes at once: most of a request is values. A control
// character borrows from, or is zero in, the top bit of its byte.
func isFieldValue(text []byte) bool {
	const (
		ones = 0x0101010101010101
		tops = 0x80 * ones
	)
	for ; len(text) >= 8; text = text[8:] {
		eight := binary.LittleEndian.Uint64(text)
		deletes := eight ^ 0x7f*ones
		if ((eight-' '*ones)&^eight|(deletes-ones)&^deletes)&tops != 0 && !consists(text[:8], classValue) {
			return false
		}
	}
	return consists(text, classValue)
}

// consists reports whether all characters are of a class.
func consists(text []byte, of class) bool {
	for _, b := range text {
		if classes[b]&of == 0 {
			return false
		}
	}
	return true
}

func isNumber(text []byte) bool {
	for _, b := range text {
		if b < '0' || b > '9' {
			return false
		}
	}
	return true
}

func isOWS(b byte) bool { return b == ' ' || b == '\t' }

// trimOWS trims the white space that may stand around a value (RFC 9110 §5.6.3).
func trimOWS(text []byte) []byte {
	for len(text) > 0 && isOWS(text[0]) {
		text = text[1:]
	}
	for len(text) > 0 && isOWS(text[len(text)-1]) {
		text = text[:len(text)-1]
	}
	return text
}

// EqualFold compares in any case. Most clients write what the server does.
func EqualFold(text []byte, s string) bool {
	return string(text) == s || len(text) == len(s) && bytes.EqualFold(text, []byte(s))
}
