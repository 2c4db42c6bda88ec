package proto

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
)

const validRequest = "GET /ws/chat/?session_id=abc&x HTTP/1.1\r\n" +
	"Host: example.com:8000\r\n" +
	"Upgrade: websocket\r\n" +
	"Connection: keep-alive, Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
	"Sec-WebSocket-Protocol: other, message-counter.v2\r\n" +
	"Origin: http://example.com\r\n" +
	"X-Forwarded-For: 192.0.2.1\r\n" +
	"X-Forwarded-For: 192.0.2.2, 192.0.2.3\r\n" +
	"X-Real-IP: 192.0.2.9\r\n" +
	"x-request-id: r1\r\n" +
	"\r\n"

// read reads a whole request.
func read(request string) (*Request, *Refusal) {
	r := &Request{}
	_, refusal := r.Read([]byte(request), 0)
	return r, refusal
}

func TestHeaderEnd(t *testing.T) {
	f := func(header string) {
		t.Helper()
		rest := "\x81\x85 frames\r\n\r\n"
		all := []byte(header + rest)
		for cut := 0; cut <= len(all); cut++ {
			want := 0
			if cut >= len(header) {
				want = len(header)
			}
			for _, checked := range []int{0, max(0, cut-1), cut / 2} {
				if checked >= len(header) {
					continue // it would have been found before
				}
				if got := HeaderEnd(all[:cut], checked); got != want {
					t.Fatalf("HeaderEnd of %q, %d seen before: %d, want %d", all[:cut], checked, got, want)
				}
			}
		}
	}
	f(validRequest)
	f("GET / HTTP/1.1\n\n")
	f("GET / HTTP/1.1\r\n\n")
	f("GET / HTTP/1.1\nHost: x\n\r\n")
}

func TestRequest(t *testing.T) {
	r, refusal := read(validRequest + "behind")
	if refusal != nil {
		t.Fatal(refusal)
	}
	for name, got := range map[string][2]string{
		"method":        {string(r.Method), "GET"},
		"path":          {string(r.Path), "/ws/chat/"},
		"query":         {string(r.Query), "session_id=abc&x"},
		"host":          {string(r.Host), "example.com:8000"},
		"origin":        {string(r.Origin), "http://example.com"},
		"forwarded for": {string(bytes.Join(r.ForwardedFor, []byte("|"))), "192.0.2.1|192.0.2.2, 192.0.2.3"},
		"real ip":       {string(r.RealIP), "192.0.2.9"},
		"request id":    {string(r.RequestID), "r1"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %q, want %q", name, got[0], got[1])
		}
	}
}

// TestRequestInParts: a request is found however its bytes arrive.
func TestRequestInParts(t *testing.T) {
	f := func(request string) {
		t.Helper()
		all := []byte(request + "\x81\x85 frames\r\n\r\n")
		for cut := 0; cut <= len(all); cut++ {
			want := 0
			if cut >= len(request) {
				want = len(request)
			}
			for _, seen := range []int{0, max(0, cut-1), cut / 2} {
				if seen >= len(request) {
					continue // it would have been found before
				}
				var r Request
				if used, refusal := r.Read(all[:cut], seen); used != want || refusal != nil {
					t.Fatalf("%q, %d seen before: %d, %v, want %d", all[:cut], seen, used, refusal, want)
				}
			}
		}
	}
	f(validRequest)
	f("\r\n" + validRequest)
	f("\nGET / HTTP/1.1\nHost:\n\n")
	f("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
}

func TestTarget(t *testing.T) {
	f := func(target, path, query, host string) {
		t.Helper()
		r, refusal := read("GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n")
		if refusal != nil || string(r.Path) != path || string(r.Query) != query || string(r.Host) != host {
			t.Errorf("%s: %v, path %q, query %q, host %q, want %q, %q, %q", target, refusal, r.Path, r.Query, r.Host, path, query, host)
		}
	}
	f("/", "/", "", "h")
	f("/a?b?c", "/a", "b?c", "h")
	f("//a", "//a", "", "h")
	f("/ws/ch%61t%2f?%61", "/ws/chat%2f", "%61", "h")
	f("/a+b%2B", "/a+b+", "", "h")
	f("http://a.example:1/ws/chat/?x", "/ws/chat/", "x", "a.example:1")
	f("HTTPS://[::1]/", "/", "", "[::1]")
	f("ws://a.example", "/", "", "a.example")
	f("wss://a.example?x", "/", "x", "a.example")
	f("/caf\xc3\xa9", "/caf\xc3\xa9", "", "h") // no character of a URL, but net/http takes it too
}

func TestQueryValue(t *testing.T) {
	f := func(query, want string, wantOK bool) {
		t.Helper()
		r := &Request{Query: []byte(query)}
		if value, ok := r.QueryValue("session_id"); string(value) != want || ok != wantOK {
			t.Errorf("%s: %q, %v", query, value, ok)
		}
	}
	f("session_id=abc", "abc", true)
	f("x&session_id=a=b&session_id=c", "a=b", true)
	f("session_id", "", true)
	f("session%5Fid=a%62c", "abc", true)
	f("%73ession_id=a+b", "a b", true)
	f("session_id=%zz", "%zz", true)
	f("session%5id=abc", "", false)
	f("session=abc&Session_id=x", "", false)
	f("", "", false)
}

// refusals returns a function that expects a request to be refused with want, by RFC 9110
// and RFC 9112. What passes, with nil, is served by net/http.
func refusals(t *testing.T) (f func(request string, want *Refusal)) {
	return func(request string, want *Refusal) {
		t.Helper()
		if _, got := read(request); got != want {
			t.Errorf("%q: %v, want %v", request, got, want)
		}
		if want == nil && !bytes.Contains(serveOnce([]byte(request)), []byte("Served: yes")) {
			t.Errorf("%q: net/http does not serve it", request)
		}
	}
}

// withLines is a request with these header lines.
func withLines(lines ...string) string {
	return "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Join(append(lines, "", ""), "\r\n")
}

// RFC 9112 §3.
func TestRequestLine(t *testing.T) {
	f := refusals(t)
	f(validRequest, nil)
	f(strings.ReplaceAll(validRequest, "\r\n", "\n"), nil)
	f("GET / HTTP/1.0\r\n\r\n", nil)
	f("GET / HTTP/1.9\r\nHost: a\r\n\r\n", nil)
	for _, line := range []string{
		"GET", "GET /", "GET  / HTTP/1.1", "GET / HTTP/one", "GET / HTTP/1.1000", "GET / HTTP/1.",
		"GET / http/1.1", "GET / HTTP/1.1 ", "GET /a b HTTP/1.1",
	} {
		f(line+"\r\nHost: a\r\n\r\n", errMalformed)
	}
	f("\r\n\r\n", errMalformed)
	f("\r\nHost: a\r\n\r\n", ErrNotHTTP)
	f("GET / HTTP/3.0\r\nHost: a\r\n\r\n", errNotHTTP1)
	f("GET / HTTP/0.9\r\nHost: a\r\n\r\n", errNotHTTP1)
	f("PRI * HTTP/2.0\r\n\r\n", errHTTP2)
	for _, target := range []string{
		"a", "*", "a:1", "ftp://a/", "http:/a", "http:///a", "http://a@b/", "http://a:b/",
		"http://[::g]/", "http://a%61/", "/\x01", "/\t", "/\x7f",
	} {
		f("GET "+target+" HTTP/1.1\r\nHost: a\r\n\r\n", errBadTarget)
	}
	f("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", errBadEscape)
	f("GET /%2 HTTP/1.1\r\nHost: a\r\n\r\n", errBadEscape)
}

// RFC 9112 §3.2: one Host, also in absolute form.
func TestRequestHost(t *testing.T) {
	f := refusals(t)
	f("GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", nil)
	f("GET / HTTP/1.1\r\nHost:\r\n\r\n", nil)
	f("GET http://a.example/ HTTP/1.1\r\nHost: b\r\n\r\n", nil)
	f("GET http://a.example/ HTTP/1.1\r\n\r\n", errNoHost)
	f("GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", errNoHost)
	f(withLines("host: a"), errTwoHosts)
	for _, host := range []string{"a/b", "a b", "a:b", "[::1", "[1.2.3.4]", "[fe80::1%25eth0]", "a@b", ":80", "a%61", "\xc3\xa9"} {
		f("GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n", errBadHost)
	}
}

// RFC 9112 §5.
func TestRequestHeaderLines(t *testing.T) {
	f := refusals(t)
	f(withLines("X: a\tb\xff", "Y:", "Z:\t z \t"), nil)
	f(withLines("no colon"), errMalformed)
	f(withLines(": a"), errMalformed)
	f(withLines("X(: a"), errMalformed)
	f(withLines("X : a"), errSpacedName)
	f(withLines("X\t: a"), errSpacedName)
	f("GET / HTTP/1.1\r\n Host: a\r\n\r\n", errFolded)
	f(withLines("X: a", " b: c"), errFolded)
	f(withLines("X: a", "\tb"), errFolded)
	f(withLines("X: a", " "), errFolded)
	for _, c := range []string{"\x00", "\r", "\x01", "\x1f", "\x7f"} {
		f(withLines("X: a"+c+"b"), errControl)
		f(withLines("X: a long enough value "+c), errControl)
		f(withLines("X: eight bytes before "+c+" and eight bytes behind"), errControl)
	}
}

// RFC 9112 §6: no request has a body.
func TestRequestBody(t *testing.T) {
	f := refusals(t)
	f(withLines("Content-Length: 0", "Content-Length: 0"), nil)
	f(withLines("content-LENGTH:1"), ErrBody)
	f(withLines("Content-Length: 18446744073709551616"), ErrBody)
	f(withLines("Transfer-Encoding: chunked"), ErrBody)
	f(withLines("Transfer-Encoding: chunked", "Content-Length: 0"), ErrBody)
	for _, length := range []string{"", "+0", "-1", "0, 0", "0x0", "a"} {
		f(withLines("Content-Length: "+length), errContentLength)
	}
	f(withLines("Content-Length: 0", "Content-Length: 00"), errContentLength)
	f(withLines("X-Content-Length: 5"), nil)
}

// RFC 6454 §7.3 and RFC 6455 §11.3.
func TestRequestLinesThatStandOnce(t *testing.T) {
	f := refusals(t)
	f(withLines("Origin: http://a", "Origin: http://a"), errTwoOrigins)
	f(withLines("Sec-WebSocket-Key: a", "Sec-WebSocket-Key: a"), errTwoKeys)
	f(withLines("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13"), errTwoVersions)
}

// TestRequestRefusesAtOnce: who does not speak HTTP is not waited for.
func TestRequestRefusesAtOnce(t *testing.T) {
	f := func(want *Refusal, beginnings ...string) {
		t.Helper()
		for _, beginning := range beginnings {
			for cut := range len(beginning) {
				var r Request
				used, got := r.Read([]byte(beginning), cut)
				if used != 0 || got != want {
					t.Errorf("%q, of which %d bytes came before: %d, %v, want %v", beginning, cut, used, got, want)
				}
			}
		}
	}
	f(ErrTLS, "\x16", "\x16\x03\x01\x02")
	f(ErrNotHTTP, "\x00", "\x03\x00\x00", "\xff", "{", " ", "\r\r", "\r\n ", "\r\n\r\n"[:1]+"x", "GET\x00", "GET\t", "GET / \x00", "GET /\x01",
		strings.Repeat("A", longestMethod+1))
	f(errMalformed, "SSH-2.0-OpenSSH_9.2\r\n", "EHLO a\r\n", "GET /\r\n", "GET / HTTP/1.1000\r\n", "PING\n")
	f(errHTTP2, "PRI * HTTP/2.0\r\n")
	f(nil, "\r", "\n", "\r\n", "G", "UPDATEREDIRECTREF", "GET ", "GET / HTTP/1.1\r", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost")
	f(ErrHeaderTooLong, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", MaxRequestHeader))
}

// serveOnce has net/http answer what is the only request on its connection.
func serveOnce(request []byte) []byte {
	client, server := net.Pipe()
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Served", "yes") })
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	s.SetKeepAlivesEnabled(false)
	go s.Serve(&oneConn{conns: []net.Conn{server}})
	defer s.Close()
	go client.Write(request)
	answer, _ := io.ReadAll(client)
	client.Close()
	return answer
}

// A oneConn is a listener with the connections that it is given, and no more.
type oneConn struct{ conns []net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if len(l.conns) == 0 {
		return nil, net.ErrClosed
	}
	conn := l.conns[0]
	l.conns = l.conns[1:]
	return conn, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestReadAllocatesNothing(t *testing.T) {
	var r Request
	for _, request := range []string{validRequest, strings.Replace(validRequest, "/ws", "http://a.example/%77s", 1)} {
		header := []byte(request)
		n := testing.AllocsPerRun(100, func() {
			if _, refusal := r.Read(header, 0); refusal != nil {
				t.Fatal(refusal)
			}
			r.QueryValue("session_id")
		})
		if n != 0 {
			t.Errorf("%v allocations for %q", n, request)
		}
	}
}

func TestRefusalForHead(t *testing.T) {
	refusal := &Refusal{Status: http.StatusServiceUnavailable, Header: "Retry-After: 1\r\n", Text: "why"}
	date := []byte("Thu, 26 Nov 2026 12:00:00 GMT")
	f := func(request, want string) {
		t.Helper()
		r, _ := read(request)
		if got := string(AppendRefusal([]byte("before "), refusal, r, date)); got != "before "+want {
			t.Errorf("%q: %q, want %q", request, got, want)
		}
	}
	const header = "HTTP/1.1 503 Service Unavailable\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n" +
		"Connection: close\r\nRetry-After: 1\r\nContent-Length: 15\r\n\r\n"
	f("", header+`{"error":"why"}`)
	f("GET / HTTP/1.1\r\nHost: a\r\n\r\n", header+`{"error":"why"}`)
	f("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", header)
	f("HEAD / HTTP/1.1\r\nno colon\r\n\r\n", header)
}

func BenchmarkRead(b *testing.B) {
	header := []byte(validRequest)
	var r Request
	b.ReportAllocs()
	for b.Loop() {
		r.Read(header, 0)
	}
}
