package proto

import (
	"net/http"
	"strconv"
)

// A Refusal is the HTTP answer to a request that is not upgraded.
type Refusal struct {
	Status int    // of RFC 9110 §15
	Header string // further header lines, each with its CRLF
	Text   string // the value of "error" in the body; it needs no escaping in JSON
}

func (r *Refusal) Error() string { return r.Text }

// Refusals of what comes to the port. The engine has others. They are compared by
// identity.
var (
	ErrTLS           = &Refusal{http.StatusBadRequest, "", "this port speaks plain HTTP: put TLS into the proxy in front"}
	ErrNotHTTP       = &Refusal{http.StatusBadRequest, "", "this port speaks HTTP/1.1, and this is no HTTP request"}
	ErrHeaderTooLong = &Refusal{http.StatusRequestHeaderFieldsTooLarge, "", "request header over 8 KiB"}
	ErrBody          = &Refusal{http.StatusRequestEntityTooLarge, "", "no request here takes a body"}

	errMalformed = &Refusal{http.StatusBadRequest, "", "malformed request: " +
		"it begins with METHOD PATH HTTP/1.1, and each header line is NAME: VALUE"}
	errHTTP2 = &Refusal{http.StatusHTTPVersionNotSupported, "",
		"this port speaks HTTP/1.1, not HTTP/2: leave HTTP/2 to the proxy in front"}
	errNotHTTP1      = &Refusal{http.StatusHTTPVersionNotSupported, "", "this server speaks HTTP/1.1 and HTTP/1.0"}
	errBadTarget     = &Refusal{http.StatusBadRequest, "", "the request target is neither a path nor http://HOST/PATH"}
	errBadEscape     = &Refusal{http.StatusBadRequest, "", "the path has a % without two hexadecimal digits behind it"}
	errFolded        = &Refusal{http.StatusBadRequest, "", "a header line begins with white space: a header is one line"}
	errSpacedName    = &Refusal{http.StatusBadRequest, "", "white space before the colon of a header line"}
	errControl       = &Refusal{http.StatusBadRequest, "", "a control character in the value of a header"}
	errNoHost        = &Refusal{http.StatusBadRequest, "", "no Host header"}
	errTwoHosts      = &Refusal{http.StatusBadRequest, "", "more than one Host header"}
	errBadHost       = &Refusal{http.StatusBadRequest, "", "the Host header is no host or host:port"}
	errTwoOrigins    = &Refusal{http.StatusBadRequest, "", "more than one Origin header"}
	errTwoKeys       = &Refusal{http.StatusBadRequest, "", "more than one Sec-WebSocket-Key header"}
	errTwoVersions   = &Refusal{http.StatusBadRequest, "", "more than one Sec-WebSocket-Version header"}
	errContentLength = &Refusal{http.StatusBadRequest, "", "Content-Length is not one whole number"}
)

// Refusals of requests that are valid, but no valid upgrades (RFC 6455 §4.2.1).
var (
	errBadMethod     = &Refusal{http.StatusMethodNotAllowed, "Allow: GET\r\n", "a WebSocket upgrade is a GET"}
	errBadProtocol   = &Refusal{http.StatusHTTPVersionNotSupported, "", "a WebSocket upgrade is HTTP/1.1"}
	errBadUpgrade    = &Refusal{http.StatusBadRequest, "", "this is a WebSocket endpoint: Upgrade header is not websocket"}
	errBadConnection = &Refusal{http.StatusBadRequest, "", "Connection header has no Upgrade"}
	errBadKey        = &Refusal{http.StatusBadRequest, "", "Sec-WebSocket-Key is not 16 bytes in base64, which are 24 characters"}
	errBadExtensions = &Refusal{http.StatusBadRequest, "", "Sec-WebSocket-Extensions is not NAME; PARAMETER=VALUE, …"}
	errNoVersion     = &Refusal{http.StatusBadRequest, "", "no Sec-WebSocket-Version header"}
	errBadVersion    = &Refusal{http.StatusUpgradeRequired, "Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Version is not 13"}
)

// AppendRefusal appends the refusal of a request; date is the value of its Date header
// (RFC 9110 §6.6.1). The body is JSON, and the connection ends behind it. A HEAD gets the
// header alone. The request is empty where nothing was read of one.
func AppendRefusal(dst []byte, refusal *Refusal, request *Request, date []byte) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(refusal.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(refusal.Status)...)
	dst = append(dst, "\r\nDate: "...)
	dst = append(dst, date...)
	dst = append(dst, "\r\nContent-Type: application/json\r\nConnection: close\r\n"...)
	dst = append(dst, refusal.Header...)
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(`{"error":""}`)+len(refusal.Text)), 10)
	dst = append(dst, "\r\n\r\n"...)
	if request.IsHead() {
		return dst
	}
	dst = append(dst, `{"error":"`...)
	dst = append(dst, refusal.Text...)
	return append(dst, `"}`...)
}
