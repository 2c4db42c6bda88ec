package proto

import (
	"bytes"
	"encoding/base64"
	"io"

	"github.com/gobwas/ws"
)

// An Upgrader answers upgrade requests with gobwas/ws. It keeps its buffers
// between calls, so each user has one of its own.
//
// gobwas/ws gets each request in one form, whatever legal form the client has used: it
// refuses some of those (RFC 9110 §5.3, §7.8), and is spared the headers that it does not
// need.
type Upgrader struct {
	ws      ws.Upgrader
	deflate bool
	request []byte // what gobwas reads
	in, out []byte
}

// NewUpgrader returns an Upgrader that agrees on protocol wherever a client
// offers it, and on permessage-deflate if that is wanted.
func NewUpgrader(protocol string, deflate bool) *Upgrader {
	return &Upgrader{deflate: deflate, ws: ws.Upgrader{
		ReadBufferSize:  MaxRequestHeader,
		WriteBufferSize: 512, // a 101 goes into it whole
		ProtocolCustom:  func(offers []byte) (string, bool) { return choose(offers, protocol), true },
	}}
}

// Upgrade appends the 101 for a request that was read whole, and sets its Protocol and
// Window. If the request is no valid upgrade, dst comes back as it was. See RFC 6455 §4.2.
func (u *Upgrader) Upgrade(dst []byte, r *Request) ([]byte, *Refusal) {
	if refusal := r.checkUpgrade(); refusal != nil {
		return dst, refusal
	}
	agreed, ok := compression{}, true
	if u.deflate {
		agreed, ok = r.negotiate()
	}
	if !ok {
		return dst, errBadExtensions
	}
	u.ws.Header, r.Window = agreed.header(), agreed.window
	u.request = r.appendUpgrade(u.request[:0])
	u.in, u.out = u.request, dst
	hs, err := u.ws.Upgrade((*exchange)(u))
	if err != nil {
		panic("BUG: gobwas/ws refuses a valid upgrade: " + err.Error())
	}
	answer := u.out
	u.in, u.out = nil, nil
	r.Protocol = hs.Protocol
	return answer, nil
}

// checkUpgrade checks what only an upgrade needs.
func (r *Request) checkUpgrade() *Refusal {
	switch {
	case r.minor == 0:
		return errBadProtocol
	case string(r.Method) != "GET":
		return errBadMethod
	case !r.upgrade:
		return errBadUpgrade
	case !r.connection:
		return errBadConnection
	case len(r.version) == 0:
		return errNoVersion
	case string(r.version) != "13":
		return errBadVersion
	case !isKey(r.key):
		return errBadKey
	}
	return nil
}

// isKey reports whether a Sec-WebSocket-Key is 16 bytes in base64 (RFC 6455 §4.1).
func isKey(key []byte) bool {
	const keyBytes = 16
	var decoded [keyBytes + 2]byte // Decode needs room for the padding
	if len(key) != base64.StdEncoding.EncodedLen(keyBytes) {
		return false
	}
	n, err := base64.StdEncoding.Decode(decoded[:], key)
	return err == nil && n == keyBytes
}

// appendUpgrade appends the request in the one form that gobwas gets.
func (r *Request) appendUpgrade(dst []byte) []byte {
	dst = append(dst, "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "...)
	dst = append(dst, r.key...)
	dst = append(dst, "\r\nHost: "...)
	dst = append(dst, r.Host...)
	for _, offers := range r.protocols {
		dst = append(dst, "\r\nSec-WebSocket-Protocol: "...)
		dst = append(dst, offers...)
	}
	return append(dst, "\r\n\r\n"...)
}

// choose is protocol if it is among the offers, a comma-separated list.
func choose(offers []byte, protocol string) string {
	for len(offers) > 0 {
		var offer []byte
		offer, offers, _ = bytes.Cut(offers, []byte(","))
		if string(trimOWS(offer)) == protocol {
			return protocol
		}
	}
	return ""
}

// An exchange is an Upgrader as gobwas sees it: a connection that has exactly
// the header to read.
type exchange Upgrader

func (e *exchange) Read(p []byte) (int, error) {
	if len(e.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, e.in)
	e.in = e.in[n:]
	return n, nil
}

func (e *exchange) Write(p []byte) (int, error) {
	e.out = append(e.out, p...)
	return len(p), nil
}
