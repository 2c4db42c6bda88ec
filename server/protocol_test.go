package main

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"turnstile/proto"
)

// The tests here go through the contract with the clients, line by line.

func TestCounter(t *testing.T) {
	p := startServer(t)
	w := p.open("/ws/chat/")
	hostile := "q\"\\\x00\x1f\u2028\u2029 <b> é 😀 \u202eabc"
	w.send(text("one"), text(""), text(" \t\r\n\u00a0"), text(hostile), text("  three "))
	first := w.wantCount(1, "one")
	w.wantCount(2, hostile)
	w.wantCount(3, "  three ")
	if len(first.SessionID) != 36 || first.SessionID[14] != '4' || first.SessionID != strings.ToLower(first.SessionID) {
		t.Errorf("session id %q is no version 4 UUID in lower case", first.SessionID)
	}
	w.send(text(" GoodBye\n"))
	if r := w.reply(); !r.Bye || r.Total != 3 || r.Reason != "" {
		t.Errorf("bye: %+v", r)
	}
	w.wantClose(proto.StatusNormalClosure)

	again := p.open("/ws/chat?session_id=" + strings.ToUpper(first.SessionID))
	again.send(text("four"))
	if r := again.wantCount(4, "four"); r.SessionID != first.SessionID {
		t.Errorf("resumed as %q", r.SessionID)
	}
}

func TestUnknownSessionStartsAtZero(t *testing.T) {
	p := startServer(t)
	const id = "00000000-0000-0000-0000-00000000000A"
	w := p.open("/ws/chat/?session_id="+id, v2Header)
	if r := w.reply(); r.Type != "session" || r.Count != 0 || *r.Resumed || r.SessionID != strings.ToLower(id) {
		t.Errorf("first frame: %+v", r)
	}
}

func TestSecondVersion(t *testing.T) {
	p := startServer(t)
	w := newWire(t, p.dial())
	response := w.request(upgradeRequest("/ws/chat/", "Sec-WebSocket-Protocol: chat, message-counter.v2"))
	if got := response.Header.Get("Sec-WebSocket-Protocol"); got != proto.Subprotocol {
		t.Fatalf("subprotocol %q", got)
	}
	first := w.reply()
	if first.Type != "session" || first.Count != 0 || *first.Resumed {
		t.Errorf("first frame: %+v", first)
	}
	w.send(text("a"), text("b"))
	w.wantCount(1, "a")
	w.wantCount(2, "b")
	again := p.open("/ws/chat/?session_id="+first.SessionID, v2Header)
	if r := again.reply(); r.Type != "session" || r.Count != 2 || !*r.Resumed || r.SessionID != first.SessionID {
		t.Errorf("first frame of the resumed: %+v", r)
	}
}

// Frames may come in the same segment as the request.
func TestFramesBehindTheRequest(t *testing.T) {
	p := startServer(t)
	w := newWire(t, p.dial())
	w.request(upgradeRequest("/ws/chat/") + string(text("early")) + string(text("bird")[:3]))
	w.wantCount(1, "early")
	w.send(text("bird")[3:])
	w.wantCount(2, "bird")
}

func TestEverythingByteByByte(t *testing.T) {
	p := startServer(t)
	w := newWire(t, p.dial())
	stream := upgradeRequest("/ws/chat/") + string(text("hello")) +
		string(frame(proto.OpText, false, "fr\xc3")) + string(frame(proto.OpPing, true, "p")) + string(frame(proto.OpContinuation, true, "\xa9d"))
	for i := range stream[:len(stream)-1] {
		w.write([]byte{stream[i]})
	}
	w.request(stream[len(stream)-1:])
	w.wantCount(1, "hello")
	if m := w.next(); m.Op != proto.OpPong || string(m.Payload) != "p" {
		t.Errorf("got %s, want a pong", describe(m))
	}
	w.wantCount(2, "fréd")
}

func TestCloses(t *testing.T) {
	p := startServer(t, "-max-message", "1000")
	f := func(name string, code proto.StatusCode, frames ...[]byte) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a close frame within an unfinished frame is not seen: some take the whole time for it
			w := p.open("/ws/chat/")
			w.t = t
			w.send(append([][]byte{text("counted")}, frames...)...)
			w.wantCount(1, "counted")
			w.wantClose(code)
		})
	}
	f("binary", 1003, frame(proto.OpBinary, true, "x"))
	f("not UTF-8", 1007, text("\xff"))
	f("not UTF-8, as soon as the byte is there", 1007, text("abc\xff" + strings.Repeat("x", 100))[:10])
	f("too long", 1009, text(strings.Repeat("x", 1001)))
	f("too long, as soon as the length is there", 1009, text(strings.Repeat("x", 1001))[:4])
	f("too long in fragments", 1009, frame(proto.OpText, false, strings.Repeat("x", 600)),
		frame(proto.OpContinuation, true, strings.Repeat("x", 401)))
	f("2^63-1 bytes", 1009, []byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f("reserved bits", 1002, []byte{0xc1, 0x80})
	f("reserved opcode", 1002, []byte{0x83, 0x80})
	f("not masked", 1002, []byte{0x81, 0x01, 'x'})
	f("continuation of nothing", 1002, frame(proto.OpContinuation, true, "x"))
	f("close without a code", 0, frame(proto.OpClose, true, ""))
	f("close 3456", 3456, frame(proto.OpClose, true, "\x0d\x80why"))
	f("close with a bad code", 1002, frame(proto.OpClose, true, "\x03\xed"))
	f("much behind a bad frame", 1002, []byte{0xc1, 0x80}, make([]byte, 1<<20))
	f("frames behind a close", 1000, frame(proto.OpClose, true, "\x03\xe8"), text("never seen"))
}

func TestTakeover(t *testing.T) {
	p := startServer(t, "-workers", "3")
	old := p.open("/ws/chat/")
	old.send(text("a"), text("b"))
	id := old.wantCount(1, "a").SessionID
	old.wantCount(2, "b")
	for i := range uint64(6) { // so that both ends of a takeover are on the same worker, and not
		newer := p.open("/ws/chat/?session_id=" + id)
		if r := old.reply(); !r.Bye || r.Total != 2+i || r.Reason != "session_taken_over" {
			t.Fatalf("bye: %+v", r)
		}
		old.wantClose(proto.StatusTakenOver)
		newer.send(text("next"))
		newer.wantCount(3+i, "next")
		old = newer
	}
}

func TestHeartbeat(t *testing.T) {
	t.Parallel() // most of it is waiting
	p := startServer(t, "-heartbeat", "1200ms")
	w := p.open("/ws/chat/")
	for range 3 {
		r := w.reply()
		if r.Type != "heartbeat" {
			t.Fatalf("got %+v, want a heartbeat", r)
		}
		if _, err := time.Parse("2006-01-02T15:04:05.000000Z", r.TS); err != nil {
			t.Error(err)
		}
		if m := w.next(); m.Op != proto.OpPing {
			t.Fatalf("got %s behind the heartbeat, want a ping", describe(m))
		}
		w.send(frame(proto.OpPong, true, ""))
	}
	// Silent from here on, it is dead after two and a half heartbeats: two
	// more may come.
	for range 3 {
		if m := w.next(); m.Op == proto.OpContinuation {
			break
		} else if m.Op == proto.OpText {
			w.next()
		}
	}
	w.wantEnd()
	eventually(t, "the end is counted", func() bool { return p.metric(`websocket_closes_total{reason="idle_timeout"}`) == 1 })
}

func TestRefusals(t *testing.T) {
	p := startServer(t, "-origins", "friend.example", "-max-message", "100")
	f := func(name, request string, status int, body string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			w := newWire(t, p.dial())
			response := w.request(request)
			text := make([]byte, 200)
			n, _ := response.Body.Read(text)
			if response.StatusCode != status || !strings.Contains(string(text[:n]), body) {
				t.Errorf("%s: %s, want %d with %q", response.Status, text[:n], status, body)
			}
			if status != http.StatusSwitchingProtocols && !response.Close {
				t.Error("the answer does not close the connection")
			}
		})
	}
	with := func(old, replacement string) string {
		return strings.Replace(upgradeRequest("/ws/chat/"), old, replacement, 1)
	}
	const badSession = `{"error":"invalid session_id: it must be the 36 characters of a UUID, hexadecimal digits in groups of 8-4-4-4-12; ` +
		`leave it out to get a new one"}`
	f("short session", upgradeRequest("/ws/chat/?session_id=123"), 400, badSession)
	f("empty session", upgradeRequest("/ws/chat/?session_id="), 400, badSession)
	f("session with a wrong character", upgradeRequest("/ws/chat/?session_id=0000000g-0000-0000-0000-000000000000"), 400, badSession)
	f("POST", with("GET", "POST"), 405, "GET")
	f("HTTP/1.0", with("HTTP/1.1", "HTTP/1.0"), 505, "HTTP/1.1")
	f("version 8", with("Version: 13", "Version: 8"), 426, "13")
	f("no upgrade", with("Upgrade: websocket\r\n", ""), 400, "websocket")
	f("no key", with("Sec-WebSocket-Key", "X-Key"), 400, "Sec-WebSocket-Key")
	f("another path", upgradeRequest("/ws/other/"), 404, "no such path")
	f("echo without -echo", upgradeRequest("/ws/echo/"), 404, "no such path")
	f("foreign origin", upgradeRequest("/ws/chat/", "Origin: http://evil.example"), 403, "origin")
	f("null origin", upgradeRequest("/ws/chat/", "Origin: null"), 403, "origin")
	f("own origin", upgradeRequest("/ws/chat/", "Origin: http://EXAMPLE.com"), 101, "")
	f("friendly origin", upgradeRequest("/ws/chat/", "Origin: https://friend.example:8443"), 101, "")
	f("header over 8 KiB", "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 9000), 431, "8 KiB")
	f("header of 8 KiB", upgradeRequest("/ws/chat/", "X: "+strings.Repeat("x", 8192-len(upgradeRequest("/ws/chat/", "X: ")))), 101, "")
	f("plain page without a Host", "GET /healthz/ HTTP/1.1\r\n\r\n", 400, `{"error":"no Host header"}`)
	f("plain page with two Hosts", "GET /healthz/ HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400, `{"error":"more than one Host header"}`)
	f("plain page with a wrong Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, `{"error":"the Host header is`)
	f("plain page with a wrong header", "GET /metrics/ HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400,
		`{"error":"malformed request: it begins with`)
	f("plain page of HTTP/2.0", "GET /readyz/ HTTP/2.0\r\nHost: a\r\n\r\n", 505, `{"error":"this server speaks HTTP/1.1`)
	f("plain page of HTTP/1.0", "GET /healthz/ HTTP/1.0\r\n\r\n", 200, "healthy")
	f("no request line", "hello\r\n\r\n", 400, `{"error":"malformed request: it begins with`)
	f("folded header", upgradeRequest("/ws/chat/", "X: a", " b"), 400, `{"error":"a header line begins with white space`)
	f("plain page with a folded header", "GET /healthz/ HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, `{"error":"a header line begins`)
	f("two keys", upgradeRequest("/ws/chat/", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400, "more than one Sec-WebSocket-Key")
	f("two Hosts", upgradeRequest("/ws/chat/", "Host: evil.example"), 400, "more than one Host")
	f("Connection on two lines", with("Connection: Upgrade", "Connection: keep-alive\r\nConnection: Upgrade"), 101, "")
	f("Upgrade as a list", with("Upgrade: websocket", "Upgrade: websocket, h2c"), 101, "")
	f("absolute form", upgradeRequest("http://example.com/ws/chat"), 101, "")
	f("absolute form, which is what the origin must match",
		upgradeRequest("http://other.example/ws/chat", "Origin: http://example.com"), 403, "origin")
	f("plain page in absolute form", "GET http://a/healthz/ HTTP/1.1\r\nHost: b\r\n\r\n", 200, "healthy")
	f("percent-encoded path", upgradeRequest("/ws/ch%61t/"), 101, "")
	f("percent-encoded name in the query", upgradeRequest("/ws/chat/?session%5Fid=123"), 400, badSession)
	f("own origin with the port", upgradeRequest("/ws/chat/", "Origin: https://example.com:443"), 101, "")
	f("an empty line before", "\r\n"+upgradeRequest("/ws/chat/"), 101, "")
	f("plain page, an empty line before", "\r\nGET /healthz/ HTTP/1.0\r\n\r\n", 200, "healthy")
	f("HTTP/2 at once", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505,
		`{"error":"this port speaks HTTP/1.1, not HTTP/2`)
	f("no request", "\x16\x03\x01 what is this\r\n\r\n", 400, "")
}

// TestBodyIsNoFrames: a refused upgrade is refused with all that comes behind it.
func TestBodyIsNoFrames(t *testing.T) {
	p := startServer(t)
	w := newWire(t, p.dial())
	body := strings.Repeat(string(text("counted?")), 3)
	response := w.request(upgradeRequest("/ws/chat/", "Content-Length: "+strconv.Itoa(len(body))) + body)
	if answer, _ := io.ReadAll(response.Body); response.StatusCode != 413 || !strings.Contains(string(answer), "takes a body") {
		t.Errorf("%s: %s", response.Status, answer)
	}
	w.wantEnd()
	if n := p.metric("websocket_messages_total"); n != 0 {
		t.Errorf("%v messages counted", n)
	}
}

// TestRefusalsAreHTTP: a refusal has a Date, and for HEAD no body.
func TestRefusalsAreHTTP(t *testing.T) {
	p := startServer(t)
	for _, target := range []string{"/ws/chat/", "/healthz/%zz"} {
		for _, method := range []string{"GET", "HEAD"} {
			w := newWire(t, p.dial())
			response := w.request(method + " " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")
			if date, err := http.ParseTime(response.Header.Get("Date")); err != nil || time.Since(date).Abs() > time.Minute {
				t.Errorf("%s %s: Date is %q", method, target, response.Header.Get("Date"))
			}
			if body, _ := io.ReadAll(w.reader); len(body) > 0 != (method == "GET") {
				t.Errorf("%s %s: %s with body %q", method, target, response.Status, body)
			}
		}
	}
}

// TestNoHTTP: who speaks another protocol is told so at once.
func TestNoHTTP(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1h")
	for first, result := range map[string]string{
		"\x03\x00\x00\x2f\x2a\xe0": "not_http",
		strings.Repeat("A", 100):   "not_http",
		"SSH-2.0-OpenSSH_9.2\r\n":  "bad_request",
		"*1\r\n$4\r\nPING\r\n":     "bad_request",
	} {
		metric := `websocket_handshakes_total{result="` + result + `"}`
		before := p.metric(metric)
		w := newWire(t, p.dial())
		if response := w.request(first); response.StatusCode != 400 || !response.Close {
			t.Errorf("%q: %s", first, response.Status)
		}
		w.wantEnd()
		if n := p.metric(metric) - before; n != 1 {
			t.Errorf("%q: %v counted as %s", first, n, result)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	p := startServer(t)
	f := func(path string, status int, contentType, body string) {
		t.Helper()
		got, text, header := p.get(path)
		if got != status || !strings.HasPrefix(header.Get("Content-Type"), contentType) || !strings.Contains(text, body) {
			t.Errorf("%s: %d %s %.200s", path, got, header.Get("Content-Type"), text)
		}
		if header.Get("Connection") != "close" {
			t.Errorf("%s: Connection: %q", path, header.Get("Connection"))
		}
	}
	f("/", 200, "text/html", "<title>Turnstile")
	f("/console.js", 200, "text/javascript", "turnstile.js")
	f("/turnstile.js", 200, "text/javascript", "message-counter.v2")
	f("/console.css", 200, "text/css", "")
	for _, slash := range []string{"", "/"} {
		f("/healthz"+slash, 200, "application/json", `"status":"healthy"`)
		f("/readyz"+slash, 200, "application/json", `"ready":true,"shutting_down":false`)
		f("/metrics"+slash, 200, "text/plain", "websocket_active_connections 0")
	}
	f("/healthz/x", 404, "application/json", "and for WebSockets /ws/chat/\"}")
	f("/debug/pprof/", 404, "application/json", "no such path")
	w := newWire(t, p.dial())
	if response := w.request("DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); response.StatusCode != 405 {
		t.Errorf("DELETE: %s", response.Status)
	}
}

func TestEcho(t *testing.T) {
	p := startServer(t, "-echo")
	w := p.open("/ws/echo/")
	big := strings.Repeat("é", 30_000)
	w.send(text(""), frame(proto.OpBinary, true, "\x00\xff"),
		frame(proto.OpText, false, "a"), frame(proto.OpContinuation, true, "b"), text(big))
	var got []string
	for range 4 {
		m := w.next()
		got = append(got, string(m.Payload))
	}
	if want := []string{"", "\x00\xff", "ab", big}; !slices.Equal(got, want) {
		t.Errorf("got %.100q", got)
	}
	if status, body, _ := p.get("/ws/"); status != 404 || !strings.Contains(body, "and for WebSockets /ws/chat/, /ws/echo/") {
		t.Errorf("another path: %d %s", status, body)
	}
}

func TestProfilesAreOnlyOnTheirOwnAddress(t *testing.T) {
	p := startServer(t, "-debug-listen", testHost+":0")
	p.addr = p.waitLog("profiles_listening")["address"].(string)
	if status, body, _ := p.get("/debug/pprof/goroutine?debug=1"); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d %.100s", status, body)
	}
}
