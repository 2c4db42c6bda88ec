package proto

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/gobwas/ws"
)

// MaxRequestHeader is the longest request header, in bytes, that is read.
const MaxRequestHeader = 8 << 10

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

// RequestPath is the path of the request whose header is given, without its
// query; nil if the first line is no request line.
func RequestPath(header []byte) []byte {
	_, rest, _ := bytes.Cut(header, []byte(" "))
	target, _, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return nil
	}
	path, _, _ := bytes.Cut(target, []byte("?"))
	return path
}

// HasBody reports whether the request whose header is given announces a body.
func HasBody(header []byte) bool {
	for line := range bytes.Lines(header) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			return true
		case bytes.EqualFold(name, []byte("Content-Length")) && !bytes.Equal(value, []byte("0")):
			return true
		}
	}
	return false
}

// IsTLS reports whether what a client begins with is a TLS handshake record
// (RFC 8446 §5.1), which no request begins with.
func IsTLS(buf []byte) bool { return len(buf) > 0 && buf[0] == 0x16 }

// CheckRequest looks at the header of a request that is for no endpoint, before
// net/http does: that refuses a malformed one in plain text, and takes the
// beginning of HTTP/2 for a method. It returns nil if net/http will serve it.
func CheckRequest(header []byte) *Refusal {
	if bytes.HasPrefix(header, http2Preface) {
		return errHTTP2
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(header)))
	hosts := hostsOf(header)
	switch {
	case len(hosts) > 1:
		return errTwoHosts
	case err != nil || hasSpacedName(r.Header):
		return errMalformedPlain
	case r.ProtoMajor != 1:
		return errNotHTTP1
	case len(hosts) == 0 && r.ProtoAtLeast(1, 1):
		return errBadHost
	case len(hosts) == 1 && strings.Trim(hosts[0], hostCharacters) != "":
		return errHostCharacters
	}
	return nil
}

// http2Preface is the first line of a client that speaks HTTP/2 without asking first
// (RFC 9113 §3.4).
var http2Preface = []byte("PRI * HTTP/2.0\r\n")

// hostCharacters may stand in a Host header (RFC 3986 §3.2.2).
const hostCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!$%&'()*+,-.:;=[]_~"

// hasSpacedName reports whether white space stands before a header's colon, which
// http.ReadRequest lets pass (RFC 9112 §5.1).
func hasSpacedName(header http.Header) bool {
	for name := range header {
		if strings.Contains(name, " ") {
			return true
		}
	}
	return false
}

// hostsOf are the values of the Host headers.
func hostsOf(header []byte) (hosts []string) {
	for line := range bytes.Lines(header) {
		if name, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.EqualFold(name, []byte("Host")) {
			hosts = append(hosts, string(bytes.TrimSpace(value)))
		}
	}
	return hosts
}

// A Request is what an upgrade request asks for. Its slices are parts of the
// header that was given to Upgrade, nil where the request does not say.
type Request struct {
	Query        []byte // of the request target, as it came
	Host         []byte
	Origin       []byte
	ForwardedFor []byte // the last X-Forwarded-For
	RealIP       []byte // X-Real-IP
	RequestID    []byte // X-Request-ID
	Protocol     string // the subprotocol that is agreed on
}

// QueryValue is the first value of a name in the query, as it came; ok is false
// if it is not there.
func (r *Request) QueryValue(name string) (value []byte, ok bool) {
	for rest := r.Query; len(rest) > 0; {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte("&"))
		key, value, _ := bytes.Cut(pair, []byte("="))
		if string(key) == name {
			return value, true
		}
	}
	return nil, false
}

// A Refusal is the HTTP answer to a request that is not upgraded.
type Refusal struct {
	Status int    // of RFC 9110 §15
	Header string // further header lines, each with its CRLF
	Text   string // the value of "error" in the body; it needs no escaping in JSON
}

func (r *Refusal) Error() string { return r.Text }

// Refusals of requests that ask for no upgrade, or for an invalid one. The engine has
// others.
var (
	ErrHeaderTooLong = &Refusal{http.StatusRequestHeaderFieldsTooLarge, "", "request header over 8 KiB"}
	errMalformed     = &Refusal{http.StatusBadRequest, "", "malformed request"}
	errBadMethod     = &Refusal{http.StatusMethodNotAllowed, "Allow: GET\r\n", "a WebSocket upgrade is a GET"}
	errBadProtocol   = &Refusal{http.StatusHTTPVersionNotSupported, "", "a WebSocket upgrade is HTTP/1.1"}
	errBadHost       = &Refusal{http.StatusBadRequest, "", "no Host header"}
	errBadUpgrade    = &Refusal{http.StatusBadRequest, "", "this is a WebSocket endpoint: Upgrade header is not websocket"}
	errBadConnection = &Refusal{http.StatusBadRequest, "", "Connection header has no Upgrade"}
	errBadKey        = &Refusal{http.StatusBadRequest, "", "Sec-WebSocket-Key is not 24 characters"}
	errNoVersion     = &Refusal{http.StatusBadRequest, "", "no Sec-WebSocket-Version header"}
	errBadVersion    = &Refusal{http.StatusUpgradeRequired, "Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Version is not 13"}
)

// Refusals of requests that are no valid HTTP requests for a page.
var (
	errMalformedPlain = &Refusal{http.StatusBadRequest, "", "malformed request: " +
		"it begins with METHOD PATH HTTP/1.1, and each header line is NAME: VALUE"}
	errTwoHosts       = &Refusal{http.StatusBadRequest, "", "more than one Host header"}
	errHostCharacters = &Refusal{http.StatusBadRequest, "", "the Host header is no host or host:port"}
	errNotHTTP1       = &Refusal{http.StatusHTTPVersionNotSupported, "", "this server speaks HTTP/1.1 and HTTP/1.0"}
	errHTTP2          = &Refusal{http.StatusHTTPVersionNotSupported, "",
		"this port speaks HTTP/1.1, not HTTP/2: leave HTTP/2 to the proxy in front"}
)

var refusals = map[error]*Refusal{
	ws.ErrHandshakeBadMethod:       errBadMethod,
	ws.ErrHandshakeBadProtocol:     errBadProtocol,
	ws.ErrHandshakeBadHost:         errBadHost,
	ws.ErrHandshakeBadUpgrade:      errBadUpgrade,
	ws.ErrHandshakeBadConnection:   errBadConnection,
	ws.ErrHandshakeBadSecKey:       errBadKey,
	ws.ErrHandshakeBadSecVersion:   errNoVersion,
	ws.ErrHandshakeUpgradeRequired: errBadVersion,
}

// AppendRefusal appends the answer to a request that is refused. The body is
// JSON, and the connection ends behind it.
func AppendRefusal(dst []byte, r *Refusal) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(r.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(r.Status)...)
	dst = append(dst, "\r\nContent-Type: application/json\r\nConnection: close\r\n"...)
	dst = append(dst, r.Header...)
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(`{"error":""}`)+len(r.Text)), 10)
	dst = append(dst, "\r\n\r\n"+`{"error":"`...)
	dst = append(dst, r.Text...)
	return append(dst, `"}`...)
}

// An Upgrader answers upgrade requests with gobwas/ws. It keeps its buffers
// between calls, so each user has one of its own.
type Upgrader struct {
	ws      ws.Upgrader
	request Request
	values  []byte // what request's slices are parts of: gobwas reuses its own buffer
	in, out []byte
}

// NewUpgrader returns an Upgrader that agrees on protocol wherever a client
// offers it.
func NewUpgrader(protocol string) *Upgrader {
	u := &Upgrader{}
	u.ws = ws.Upgrader{
		ReadBufferSize:  MaxRequestHeader,
		WriteBufferSize: 512, // a 101 goes into it whole
		OnRequest:       u.onRequest,
		OnHost:          func(host []byte) error { u.request.Host = u.keep(host); return nil },
		OnHeader:        u.onHeader,
		ProtocolCustom:  func(offers []byte) (string, bool) { return choose(offers, protocol), true },
	}
	return u
}

// Upgrade answers the upgrade request whose header, blank line included, is
// given: it appends the 101 to dst. The Request is valid until the next call.
// A request that is not valid is a *Refusal, and dst comes back as it was. See
// RFC 6455 §4.2.
func (u *Upgrader) Upgrade(dst, header []byte) ([]byte, *Request, error) {
	u.request, u.values = Request{}, u.values[:0]
	u.in, u.out = header, dst
	hs, err := u.ws.Upgrade((*exchange)(u))
	answer := u.out
	u.in, u.out = nil, nil
	if err != nil {
		return dst, nil, refusalOf(err)
	}
	u.request.Protocol = hs.Protocol
	return answer, &u.request, nil
}

func refusalOf(err error) *Refusal {
	if r, ok := refusals[err]; ok {
		return r
	}
	return errMalformed
}

func (u *Upgrader) onRequest(target []byte) error {
	_, query, _ := bytes.Cut(target, []byte("?"))
	u.request.Query = u.keep(query)
	return nil
}

func (u *Upgrader) onHeader(key, value []byte) error {
	switch string(key) {
	case "Origin":
		u.request.Origin = u.keep(value)
	case "X-Forwarded-For":
		u.request.ForwardedFor = u.keep(value)
	case "X-Real-Ip":
		u.request.RealIP = u.keep(value)
	case "X-Request-Id":
		u.request.RequestID = u.keep(value)
	}
	return nil
}

func (u *Upgrader) keep(value []byte) []byte {
	start := len(u.values)
	u.values = append(u.values, value...)
	return u.values[start:]
}

// choose is protocol if it is among the offers, a comma-separated list.
func choose(offers []byte, protocol string) string {
	for len(offers) > 0 {
		var offer []byte
		offer, offers, _ = bytes.Cut(offers, []byte(","))
		if string(bytes.TrimSpace(offer)) == protocol {
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
