package proto

import (
	"fmt"

	"github.com/gobwas/ws"
)

// The negotiation of permessage-deflate (RFC 7692 §5, §7). gobwas/ws has one too, but it
// fails the upgrade where an offer is to be declined, and cannot answer with the window
// that a client has asked for.

// A compression is what client and server agree on. The zero compression is none.
type compression struct {
	window uint8 // the largest that the server may use, in bits
	asked  bool  // the client has asked for it, and gets it in the answer (§7.1.2.1)
}

// compressionHeaders are the header lines that accept an offer: for each window that a
// client may ask for, and at 0 where it has not. No memory is kept between messages, on
// either side (§7.1.1).
var compressionHeaders = func() (headers [fullWindow + 1]ws.HandshakeHeader) {
	const line = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	headers[0] = ws.HandshakeHeaderString(line + "\r\n")
	for window := leastWindow; window <= fullWindow; window++ {
		headers[window] = ws.HandshakeHeaderString(fmt.Sprintf("%s; server_max_window_bits=%d\r\n", line, window))
	}
	return headers
}()

// leastWindow is the smallest window, in bits (§7.1.2).
const leastWindow = 8

func (c compression) header() ws.HandshakeHeader {
	switch {
	case c.window == 0:
		return nil
	case c.asked:
		return compressionHeaders[c.window]
	}
	return compressionHeaders[0]
}

// negotiate accepts the first offer of permessage-deflate that it can. ok is false if a
// header is not what RFC 6455 §9.1 says; then the upgrade must fail.
func (r *Request) negotiate() (agreed compression, ok bool) {
	for _, list := range r.extensions {
		s := extensionScanner{text: list, request: r}
		for !s.atEnd() {
			offered, good := s.offer()
			if !good {
				return compression{}, false
			}
			if agreed.window == 0 {
				agreed = offered
			}
		}
	}
	return agreed, true
}

// An extensionScanner reads a Sec-WebSocket-Extensions header (RFC 6455 §9.1).
type extensionScanner struct {
	text    []byte   // what is not read yet
	request *Request // it has memory for quoted values
}

// atEnd skips white space and empty elements of the list.
func (s *extensionScanner) atEnd() bool {
	for s.skip(',') {
	}
	return len(s.text) == 0
}

// skip skips a separator and the white space around it, if it is next.
func (s *extensionScanner) skip(separator byte) bool {
	s.text = trimOWS(s.text)
	if len(s.text) == 0 || s.text[0] != separator {
		return false
	}
	s.text = trimOWS(s.text[1:])
	return true
}

func (s *extensionScanner) token() (token []byte) {
	n := tokenLength(s.text)
	token, s.text = s.text[:n], s.text[n:]
	return token
}

// offer reads one element of the list. Another extension, and an offer that must be
// declined, is no compression; ok is false if it is malformed.
func (s *extensionScanner) offer() (offered compression, ok bool) {
	name := s.token()
	accepted := string(name) == "permessage-deflate"
	offered.window = fullWindow
	var seen parameter
	for ok = len(name) > 0; ok && s.skip(';'); {
		var name, value []byte
		name, value, ok = s.parameter()
		p := parameterOf(name, value)
		if p == serverMaxWindowBits {
			offered = compression{windowBits(value), true}
		}
		accepted = accepted && p != 0 && seen&p == 0
		seen |= p
	}
	if ok = ok && (s.skip(',') || len(s.text) == 0); !accepted || !ok {
		return compression{}, ok
	}
	return offered, true
}

// parameter reads a name, and its value if there is one; value is nil if there is none.
func (s *extensionScanner) parameter() (name, value []byte, ok bool) {
	name = s.token()
	if len(name) == 0 || !s.skip('=') {
		return name, nil, len(name) > 0
	}
	if len(s.text) > 0 && s.text[0] == '"' {
		value, ok = s.quoted()
	} else {
		value = s.token()
		ok = len(value) > 0
	}
	return name, value, ok
}

// quoted reads a quoted string. Without the quotes, it must be a token.
func (s *extensionScanner) quoted() (value []byte, ok bool) {
	r := s.request
	start := len(r.decoded)
	for i := 1; i < len(s.text); i++ {
		b := s.text[i]
		switch {
		case b == '"':
			s.text, value = s.text[i+1:], r.decoded[start:]
			return value, isToken(value)
		case b == '\\' && i+1 < len(s.text):
			i++
			b = s.text[i]
		}
		r.decoded = append(r.decoded, b)
	}
	return nil, false
}

// A parameter is a parameter of an offer that the server can grant (§7.1): a set of them
// has their bits.
type parameter uint8

const (
	serverNoContextTakeover parameter = 1 << iota
	clientNoContextTakeover
	serverMaxWindowBits
	clientMaxWindowBits // the server takes any window, so it need not answer (§7.1.2.2)
)

// parameterOf is the parameter with a name, 0 if there is none, or if it must not have this
// value: then the offer is declined (§7.1).
func parameterOf(name, value []byte) parameter {
	switch string(name) {
	case "server_no_context_takeover":
		return ifValid(serverNoContextTakeover, value == nil)
	case "client_no_context_takeover":
		return ifValid(clientNoContextTakeover, value == nil)
	case "server_max_window_bits":
		return ifValid(serverMaxWindowBits, windowBits(value) > 0)
	case "client_max_window_bits":
		return ifValid(clientMaxWindowBits, value == nil || windowBits(value) > 0)
	}
	return 0
}

func ifValid(p parameter, valid bool) parameter {
	if valid {
		return p
	}
	return 0
}

// windowBits is a window from 8 to 15, without a zero in front (§7.1.2); 0 if it is none.
func windowBits(value []byte) uint8 {
	switch {
	case len(value) == 1 && (value[0] == '8' || value[0] == '9'):
		return value[0] - '0'
	case len(value) == 2 && value[0] == '1' && '0' <= value[1] && value[1] <= '5':
		return 10 + value[1] - '0'
	}
	return 0
}
