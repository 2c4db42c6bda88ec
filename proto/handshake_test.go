package proto

import (
	"bufio"
	"bytes"
	"errors"
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

func TestRequestPath(t *testing.T) {
	f := func(header, want string) {
		t.Helper()
		if got := string(RequestPath([]byte(header))); got != want {
			t.Errorf("path of %q is %q, want %q", header, got, want)
		}
	}
	f(validRequest, "/ws/chat/")
	f("GET / HTTP/1.1\r\n\r\n", "/")
	f("GET /a?b?c HTTP/1.1\r\n\r\n", "/a")
	f("GET\r\n\r\n", "")
	f("GET /a\r\n\r\n", "")
	f("\r\n\r\n", "")
}

func TestUpgrade(t *testing.T) {
	out, r, err := NewUpgrader(Subprotocol).Upgrade([]byte("before "), []byte(validRequest))
	if err != nil {
		t.Fatal(err)
	}
	answer, ok := strings.CutPrefix(string(out), "before ")
	response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
	if !ok || err != nil {
		t.Fatal(err, string(out))
	}
	// The key and its answer are the example of RFC 6455 §1.3.
	if accept := response.Header.Get("Sec-WebSocket-Accept"); response.StatusCode != 101 || accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("answer %s, accept %q", response.Status, accept)
	}
	if p := response.Header.Get("Sec-WebSocket-Protocol"); p != Subprotocol || r.Protocol != Subprotocol {
		t.Errorf("subprotocol %q, %q", p, r.Protocol)
	}
	for name, got := range map[string][2]string{
		"query":         {string(r.Query), "session_id=abc&x"},
		"host":          {string(r.Host), "example.com:8000"},
		"origin":        {string(r.Origin), "http://example.com"},
		"forwarded for": {string(r.ForwardedFor), "192.0.2.2, 192.0.2.3"},
		"real ip":       {string(r.RealIP), "192.0.2.9"},
		"request id":    {string(r.RequestID), "r1"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %q, want %q", name, got[0], got[1])
		}
	}
	for name, want := range map[string]string{"session_id": "abc", "x": ""} {
		if value, ok := r.QueryValue(name); !ok || string(value) != want {
			t.Errorf("%s in the query: %q, %v", name, value, ok)
		}
	}
	if _, ok := r.QueryValue("session"); ok {
		t.Error("the query has no session")
	}
}

func TestUpgradeWithoutTheSubprotocol(t *testing.T) {
	for _, offer := range []string{"", "Sec-WebSocket-Protocol: message-counter.v20, \"\r\n"} {
		request := strings.Replace(validRequest, "Sec-WebSocket-Protocol: other, message-counter.v2\r\n", offer, 1)
		out, r, err := NewUpgrader(Subprotocol).Upgrade(nil, []byte(request))
		if err != nil || r.Protocol != "" || bytes.Contains(out, []byte("Sec-WebSocket-Protocol")) {
			t.Errorf("offer %q: %v, %q, %s", offer, err, r.Protocol, out)
		}
	}
}

func TestUpgradeRefuses(t *testing.T) {
	f := func(old, replacement string, status int, header string) {
		t.Helper()
		if !strings.Contains(validRequest, old) {
			t.Fatalf("the request has no %q", old)
		}
		out, _, err := NewUpgrader(Subprotocol).Upgrade([]byte("before"), []byte(strings.Replace(validRequest, old, replacement, 1)))
		var r *Refusal
		if !errors.As(err, &r) || r.Status != status || string(out) != "before" {
			t.Fatalf("%q for %q: error %v, want status %d; out %q", replacement, old, err, status, out)
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(AppendRefusal(nil, r))), nil)
		if err != nil || response.StatusCode != status || !response.Close {
			t.Fatalf("%q for %q: answer %v, %v", replacement, old, response, err)
		}
		if header != "" && response.Header.Get(header) == "" {
			t.Errorf("%q for %q: no %s in the answer", replacement, old, header)
		}
	}
	f("GET", "POST", 405, "Allow")
	f("HTTP/1.1", "HTTP/1.0", 505, "")
	f("HTTP/1.1", "HTTP/2.0", 505, "")
	f("HTTP/1.1", "FTP/1.1", 400, "")
	f("Host: example.com:8000\r\n", "", 400, "")
	f("Upgrade: websocket\r\n", "", 400, "")
	f("Upgrade: websocket", "Upgrade: h2c", 400, "")
	f("keep-alive, Upgrade", "keep-alive", 400, "")
	f("Version: 13", "Version: 8", 426, "Sec-WebSocket-Version")
	f("Sec-WebSocket-Version: 13\r\n", "", 400, "")
	f("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400, "")
	f("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400, "")
	f("Host: example.com:8000", "no colon", 400, "")
	f(validRequest, "\r\n\r\n", 400, "")
}

// TestCheckRequest: what passes is served by net/http, and what net/http would
// refuse in plain text is refused before.
func TestCheckRequest(t *testing.T) {
	f := func(request string, want *Refusal) {
		t.Helper()
		if got := CheckRequest([]byte(request)); got != want {
			t.Errorf("%q: %v, want %v", request, got, want)
		}
		if served := serveOnce([]byte(request)); bytes.Contains(served, []byte("Served: yes")) != (want == nil || want == errHTTP2) {
			t.Errorf("%q: net/http answers %q", request, served)
		}
	}
	f(validRequest, nil)
	f("GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", nil)
	f("GET / HTTP/1.1\nHost:\n\n", nil)
	f("GET / HTTP/1.0\r\n\r\n", nil)
	f("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", nil)
	f("GET http://a.example/ HTTP/1.1\r\n\r\n", errBadHost)
	f("GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", errBadHost)
	f("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", errTwoHosts)
	f("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", errHostCharacters)
	f("GET / HTTP/3.0\r\nHost: a\r\n\r\n", errNotHTTP1)
	f("PRI * HTTP/2.0\r\n\r\n", errHTTP2)
	for _, malformed := range []string{
		"\r\n\r\n", "GET\r\n\r\n", "GET /\r\n\r\n", "G?T / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/one\r\nHost: a\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
	} {
		f(malformed, errMalformedPlain)
	}
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

func TestUpgradeAllocatesOnce(t *testing.T) {
	u := NewUpgrader(Subprotocol)
	out := make([]byte, 0, 4096)
	header := []byte(validRequest)
	n := testing.AllocsPerRun(100, func() {
		var err error
		if out, _, err = u.Upgrade(out[:0], header); err != nil {
			t.Fatal(err)
		}
	})
	// One is gobwas's own, in httpWriteResponseUpgrade. Its buffers come from
	// a sync.Pool, which the race detector makes forget some.
	if n > 1 && !raceEnabled {
		t.Errorf("%v allocations an upgrade", n)
	}
}

// FuzzHandshake compares with net/http: the header ends where that says, what
// it rejects is never upgraded, and nothing behind the header is touched.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte(validRequest), []byte("\x81\x80"))
	f.Add([]byte("GET /ws/chat HTTP/1.1\nHost: x\n\n"), []byte("\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), []byte{})
	f.Fuzz(func(t *testing.T, header, behind []byte) {
		all := append(bytes.Clone(header), behind...)
		end := HeaderEnd(all, 0)
		if end == 0 || end > MaxRequestHeader {
			return
		}
		kept := bytes.Clone(all[end:])
		reader := bufio.NewReaderSize(bytes.NewReader(bytes.Clone(all)), 1<<16)
		want, wantErr := http.ReadRequest(reader)
		out, request, err := NewUpgrader(Subprotocol).Upgrade(nil, all[:end])
		if !bytes.Equal(all[end:], kept) {
			t.Fatal("changed what is behind the header")
		}
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || len(out) > 0 {
				t.Fatalf("error %v, out %q", err, out)
			}
			return
		}
		if _, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), nil); err != nil {
			t.Fatalf("the answer is not HTTP: %v", err)
		}
		if wantErr != nil {
			return // net/http is stricter about header names and the target
		}
		if left := reader.Buffered(); left != len(kept) {
			t.Fatalf("net/http leaves %d bytes behind the header, HeaderEnd %d", left, len(kept))
		}
		if want.Method != "GET" || !strings.EqualFold(want.Header.Get("Upgrade"), "websocket") {
			t.Fatalf("upgraded %q", all[:end])
		}
		if origin := want.Header.Values("Origin"); len(origin) > 0 && origin[len(origin)-1] != string(request.Origin) {
			t.Fatalf("origin %q, net/http says %q", request.Origin, origin)
		}
	})
}

func BenchmarkUpgrade(b *testing.B) {
	u := NewUpgrader(Subprotocol)
	out := make([]byte, 0, 4096)
	header := []byte(validRequest)
	b.ReportAllocs()
	for b.Loop() {
		out, _, _ = u.Upgrade(out[:0], header)
	}
}
