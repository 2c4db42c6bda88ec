package proto

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"net/textproto"
	"regexp"
	"strings"
	"testing"
)

// FuzzHandshake compares with net/http: what is taken is taken there, and read the same;
// what is refused is refused there, or is one of the differences below. A request that
// comes in two parts is read as one that comes whole.
func FuzzHandshake(f *testing.F) {
	for _, request := range []string{
		validRequest, validRequest + "\x81\x80", strings.ReplaceAll(validRequest, "\r\n", "\n"), "\r\n" + validRequest,
		"GET http://a.example:1/ws/ch%61t?session%5Fid=a HTTP/1.1\r\nHost: b\r\n\r\n",
		"HEAD / HTTP/1.1\r\nHost: [::1]:80\r\nX : a\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST / HTTP/1.1000\r\nContent-Length: 0\r\nX: a\r\n b\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01", "GET / HTTP/1.1\r\nX: \x00\ra\r\n\r\n",
		replaceAll(validRequest, "keep-alive, Upgrade", "keep-alive\r\nConnection: Upgrade", "websocket\r", "websocket, h2c\r"),
	} {
		f.Add([]byte(request), uint16(20))
	}
	f.Fuzz(func(t *testing.T, all []byte, cut uint16) {
		kept := bytes.Clone(all)
		var r Request
		used, refusal := r.Read(all, 0)
		checkInParts(t, all, int(cut), used, refusal)
		want, left, wantErr := readByNetHTTP(kept[r.Skipped:])
		switch {
		case refusal != nil:
			if wantErr == nil && !isStricter(refusal, want, kept) {
				t.Fatalf("%q is refused with %q", all, refusal.Text)
			}
		case used == 0:
			if wantErr == nil {
				t.Fatalf("%q is not taken as whole", all)
			}
		case wantErr != nil:
			t.Fatalf("%q is taken; net/http says %v", all, wantErr)
		case left != len(all)-used:
			t.Fatalf("%q has a header of %d bytes; net/http leaves %d", all, used, left)
		default:
			compareRequest(t, &r, want)
			compareUpgrade(t, &r, want)
		}
		if !bytes.Equal(all, kept) {
			t.Fatal("the buffer was changed")
		}
	})
}

func replaceAll(s string, oldnew ...string) string { return strings.NewReplacer(oldnew...).Replace(s) }

// checkInParts reads what was read whole again, in two parts.
func checkInParts(t *testing.T, all []byte, cut, used int, refusal *Refusal) {
	t.Helper()
	cut %= len(all) + 1
	var r Request
	usedBefore, refusalBefore := r.Read(all[:cut], 0)
	if refusalBefore != nil && refusal == nil {
		t.Fatalf("%q is refused with %q; behind it comes %q", all[:cut], refusalBefore.Text, all[cut:])
	}
	if usedBefore != 0 || refusalBefore != nil || HeaderEnd(all, 0) == 0 {
		return // the rest was not waited for, or is still
	}
	if again, refusalAgain := r.Read(all, cut); again != used || refusalAgain != refusal {
		t.Fatalf("%q, of which %d bytes came before: %d, %v; whole: %d, %v", all, cut, again, refusalAgain, used, refusal)
	}
}

// readByNetHTTP reads a request as net/http's server does. left is how many bytes are
// behind its header.
func readByNetHTTP(raw []byte) (r *http.Request, left int, err error) {
	reader := bufio.NewReaderSize(bytes.NewReader(raw), 1<<16)
	if r, err = http.ReadRequest(reader); err != nil {
		return nil, 0, err
	}
	// http.Server.readRequest checks these; http.ReadRequest has deleted the Host.
	_, lines, _ := bytes.Cut(raw, []byte("\n"))
	header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(lines))).ReadMIMEHeader()
	if err != nil {
		return nil, 0, err
	}
	host, hasHost := header["Host"]
	r.Header["Host"] = host
	switch {
	case r.ProtoMajor != 1:
		return nil, 0, errors.New("unsupported protocol version")
	case !hasHost && r.ProtoAtLeast(1, 1) && r.Method != http.MethodConnect:
		return nil, 0, errors.New("missing required Host header")
	case hasHost && !hostHeader.MatchString(host[0]):
		return nil, 0, errors.New("malformed Host header")
	}
	for name := range r.Header {
		if strings.Contains(name, " ") {
			return nil, 0, errors.New("invalid header name")
		}
	}
	return r, reader.Buffered(), nil
}

// hostHeader is what golang.org/x/net/http/httpguts.ValidHostHeader takes.
var hostHeader = regexp.MustCompile("^[]A-Za-z0-9!$%&'()*+,.:;=[_~-]*$")

// isStricter reports whether a request that net/http takes is refused for a reason: these
// are all the differences.
func isStricter(refusal *Refusal, r *http.Request, raw []byte) bool {
	switch refusal {
	case errFolded: // RFC 9112 §5.2: a server may join the lines or refuse them
		return bytes.Contains(raw, []byte("\n ")) || bytes.Contains(raw, []byte("\n\t"))
	case ErrBody: // RFC 9110 §15.5.14: nothing here takes one; net/http overlooks Transfer-Encoding in HTTP/1.0
		return r.ContentLength != 0 || bytes.Contains(bytes.ToLower(raw), []byte("\ntransfer-encoding:"))
	case errTwoOrigins: // RFC 6454 §7.3
		return len(r.Header["Origin"]) > 1
	case errTwoKeys: // RFC 6455 §11.3.1
		return len(r.Header["Sec-Websocket-Key"]) > 1
	case errTwoVersions: // RFC 6455 §11.3.5
		return len(r.Header["Sec-Websocket-Version"]) > 1
	case errBadHost: // RFC 9112 §3.2: net/http looks at the characters only
		return !isHostPort(r.Header.Get("Host"))
	case errNoHost: // RFC 9112 §3.2: CONNECT is no exception
		return r.Method == http.MethodConnect
	case errBadTarget: // RFC 9112 §3.2: net/http takes other schemes, user names, and hosts with percent-encoding
		return !isTarget(r.Method, r.RequestURI)
	case ErrNotHTTP, errMalformed: // no limit in net/http, nor in an RFC
		return len(r.Method) > longestMethod
	case ErrHeaderTooLong:
		return len(raw) > MaxRequestHeader
	}
	return false
}

var (
	absoluteForm = regexp.MustCompile("^(?i:http|https|ws|wss)://([^/?]*)([/?]|$)")
	hostPort     = regexp.MustCompile(`^([A-Za-z0-9!$&'()*+,.;=_~-]+|\[([0-9A-Fa-f:.]+)\])(:[0-9]*)?$`)
)

func isTarget(method, target string) bool {
	if m := absoluteForm.FindStringSubmatch(target); m != nil {
		return isHostPort(m[1])
	}
	return strings.HasPrefix(target, "/") || method == http.MethodOptions && target == "*"
}

func isHostPort(s string) bool {
	m := hostPort.FindStringSubmatch(s)
	if m == nil || m[2] == "" {
		return m != nil
	}
	ip, err := netip.ParseAddr(m[2])
	return err == nil && ip.Is6()
}

func compareRequest(t *testing.T, r *Request, want *http.Request) {
	t.Helper()
	f := func(what string, got []byte, want string) {
		t.Helper()
		if string(got) != want {
			t.Fatalf("%s: %q, net/http says %q", what, got, want)
		}
	}
	last := func(name string) string {
		values := want.Header[name]
		if len(values) == 0 {
			return ""
		}
		return values[len(values)-1]
	}
	path := want.URL.Path
	if path == "" {
		path = "/" // http://a.example is http://a.example/: RFC 9110 §4.2.3
	}
	// Of a %2F net/http keeps both readings, or only the other one.
	if target, _, _ := strings.Cut(want.RequestURI, "?"); !strings.Contains(strings.ToLower(target), "%2f") {
		f("path", r.Path, path)
	}
	f("method", r.Method, want.Method)
	f("query", r.Query, want.URL.RawQuery)
	f("host", r.Host, want.Host)
	f("origin", r.Origin, last("Origin"))
	f("forwarded for", bytes.Join(r.ForwardedFor, []byte("|")), strings.Join(want.Header["X-Forwarded-For"], "|"))
	f("real ip", r.RealIP, last("X-Real-Ip"))
	f("request id", r.RequestID, last("X-Request-Id"))
	if want.ContentLength != 0 || len(want.TransferEncoding) > 0 {
		t.Fatal("a body")
	}
	for name, values := range want.URL.Query() {
		if value, ok := r.QueryValue(name); !ok || string(value) != values[0] {
			t.Fatalf("%q in the query %q: %q, %v, net/http says %q", name, r.Query, value, ok, values[0])
		}
	}
}

func compareUpgrade(t *testing.T, r *Request, want *http.Request) {
	t.Helper()
	out, refusal := NewUpgrader(Subprotocol, false).Upgrade(nil, r)
	status := http.StatusSwitchingProtocols
	if refusal != nil {
		status = refusal.Status
	}
	if should := upgradeStatus(want); status != should {
		t.Fatalf("%v: %d, want %d", want.Header, status, should)
	}
	if refusal != nil {
		return
	}
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), nil)
	if err != nil {
		t.Fatalf("the answer is not HTTP: %v", err)
	}
	agreed := response.Header.Get("Sec-WebSocket-Protocol")
	offered := hasElement(want.Header["Sec-Websocket-Protocol"], Subprotocol, false)
	if agreed != r.Protocol || (agreed == Subprotocol) != offered {
		t.Fatalf("subprotocol %q of %q", agreed, want.Header["Sec-Websocket-Protocol"])
	}
}

// upgradeStatus is how a request to upgrade must be answered, by RFC 6455 §4.2.1.
func upgradeStatus(r *http.Request) int {
	key, keyErr := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	version := r.Header.Get("Sec-WebSocket-Version")
	switch {
	case !r.ProtoAtLeast(1, 1):
		return http.StatusHTTPVersionNotSupported
	case r.Method != http.MethodGet:
		return http.StatusMethodNotAllowed
	case !hasElement(r.Header["Upgrade"], "websocket", true), !hasElement(r.Header["Connection"], "upgrade", true), version == "":
		return http.StatusBadRequest
	case version != "13":
		return http.StatusUpgradeRequired
	case keyErr != nil || len(key) != 16:
		return http.StatusBadRequest
	}
	return http.StatusSwitchingProtocols
}

// hasElement looks for an element of a list that may stand on several lines.
func hasElement(lines []string, want string, anyCase bool) bool {
	for element := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		element = strings.Trim(element, " \t")
		if element == want || anyCase && len(element) == len(want) && strings.EqualFold(element, want) {
			return true
		}
	}
	return false
}
