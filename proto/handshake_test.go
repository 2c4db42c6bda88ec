package proto

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// upgrade has a whole request read and upgraded.
func upgrade(dst []byte, request string) (answer []byte, r *Request, refusal *Refusal) {
	r, refusal = read(request)
	if refusal != nil {
		return dst, r, refusal
	}
	answer, refusal = NewUpgrader(Subprotocol, false).Upgrade(dst, r)
	return answer, r, refusal
}

func TestUpgrade(t *testing.T) {
	out, r, refusal := upgrade([]byte("before "), validRequest)
	if refusal != nil {
		t.Fatal(refusal)
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
}

func TestUpgradeWithoutTheSubprotocol(t *testing.T) {
	for _, offer := range []string{"", "Sec-WebSocket-Protocol: message-counter.v20, \"\r\n"} {
		request := strings.Replace(validRequest, "Sec-WebSocket-Protocol: other, message-counter.v2\r\n", offer, 1)
		out, r, refusal := upgrade(nil, request)
		if refusal != nil || r.Protocol != "" || bytes.Contains(out, []byte("Sec-WebSocket-Protocol")) {
			t.Errorf("offer %q: %v, %q, %s", offer, refusal, r.Protocol, out)
		}
	}
}

// replace puts something else into the valid request.
func replace(t *testing.T, old, replacement string) string {
	t.Helper()
	if !strings.Contains(validRequest, old) {
		t.Fatalf("the request has no %q", old)
	}
	return strings.Replace(validRequest, old, replacement, 1)
}

// TestUpgradeGrants: the same request in other legal forms.
func TestUpgradeGrants(t *testing.T) {
	want, _, _ := upgrade(nil, validRequest)
	f := func(old, replacement string) {
		t.Helper()
		if got, _, refusal := upgrade(nil, replace(t, old, replacement)); refusal != nil || !bytes.Equal(got, want) {
			t.Errorf("%q for %q: %v, %q", replacement, old, refusal, got)
		}
	}
	f("Connection: keep-alive, Upgrade", "Connection: keep-alive\r\nConnection: Upgrade") // RFC 9110 §5.3
	f("Connection: keep-alive, Upgrade", "Connection: Upgrade\r\nConnection: keep-alive")
	f("Connection: keep-alive, Upgrade", "Connection: , uPGRADE ,,x")
	f("Upgrade: websocket", "Upgrade: websocket, h2c") // RFC 9110 §7.8
	f("Upgrade: websocket", "Upgrade: h2c\r\nupgrade: WebSocket")
	f("Protocol: other, message-counter.v2", "Protocol: other\r\nSec-WebSocket-Protocol: message-counter.v2") // RFC 6455 §11.3.4
	f("GET /ws", "GET http://example.com:8000/ws")                                                            // RFC 9112 §3.2.2
	f("HTTP/1.1", "HTTP/1.2")                                                                                 // RFC 9110 §6.2
	f("Upgrade: websocket", "upgrade:websocket")
	f("x-request-id: r1\r\n", "Content-Length: 0\r\n")
	f("GET", "\r\nGET")
}

func TestUpgradeRefuses(t *testing.T) {
	f := func(old, replacement string, status int, header string) {
		t.Helper()
		out, _, r := upgrade([]byte("before"), replace(t, old, replacement))
		if r == nil || r.Status != status || string(out) != "before" {
			t.Fatalf("%q for %q: %v, want status %d; out %q", replacement, old, r, status, out)
		}
		answer := AppendRefusal(nil, r, &Request{}, []byte("now"))
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
		if err != nil || response.StatusCode != status || !response.Close {
			t.Fatalf("%q for %q: answer %v, %v", replacement, old, response, err)
		}
		if header != "" && response.Header.Get(header) == "" {
			t.Errorf("%q for %q: no %s in the answer", replacement, old, header)
		}
	}
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	f("GET", "POST", 405, "Allow")
	f("HTTP/1.1", "HTTP/1.0", 505, "")
	f("HTTP/1.1", "HTTP/2.0", 505, "")
	f("HTTP/1.1", "HTTP/1.1000", 400, "")
	f("Upgrade: websocket\r\n", "", 400, "")
	f("Upgrade: websocket", "Upgrade: h2c", 400, "")
	f("Upgrade: websocket", "Upgrade: websocket/13", 400, "")
	f("keep-alive, Upgrade", "keep-alive", 400, "")
	f("keep-alive, Upgrade", "keep-alive; Upgrade", 400, "")
	f("Version: 13", "Version: 8", 426, "Sec-WebSocket-Version")
	f("Version: 13", "Version: 13, 8", 426, "Sec-WebSocket-Version")
	f("Sec-WebSocket-Version: 13\r\n", "", 400, "")
	f("Sec-WebSocket-Key: "+key+"\r\n", "", 400, "")
	f(key, "c2hvcnQ=", 400, "")
	f(key, "!!!!!!!!!!!!!!!!!!!!!!!!", 400, "")
	f(key, "dGhlIHNhbXBsZSBub25jZXMh", 400, "") // 18 bytes
	f(key, "dGhlIHNhbXBsZSBub25jZQ=a", 400, "")
	f(key, key+"\r\nSec-WebSocket-Key: "+key, 400, "")
	f("Host: example.com:8000", "no colon", 400, "")
	f("x-request-id: r1", "Content-Length: 5", 413, "")
}

func TestUpgradeAllocatesOnce(t *testing.T) {
	u := NewUpgrader(Subprotocol, false)
	out := make([]byte, 0, 4096)
	r, _ := read(validRequest)
	n := testing.AllocsPerRun(100, func() {
		var refusal *Refusal
		if out, refusal = u.Upgrade(out[:0], r); refusal != nil {
			t.Fatal(refusal)
		}
	})
	// One is gobwas's own, in httpWriteResponseUpgrade. Its buffers come from
	// a sync.Pool, which the race detector makes forget some.
	if n > 1 && !raceEnabled {
		t.Errorf("%v allocations an upgrade", n)
	}
}

// BenchmarkUpgrade is all that proto does for an upgrade.
func BenchmarkUpgrade(b *testing.B) {
	u := NewUpgrader(Subprotocol, false)
	out := make([]byte, 0, 4096)
	header := []byte(validRequest)
	var r Request
	b.ReportAllocs()
	for b.Loop() {
		r.Read(header, 0)
		out, _ = u.Upgrade(out[:0], &r)
	}
}
