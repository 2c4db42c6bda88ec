package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestLogOfAConnection(t *testing.T) {
	p := startServer(t)
	w := p.open("/ws/chat/", "X-Request-ID: request-7")
	w.send(text("a"), text("b"))
	id := w.wantCount(1, "a").SessionID
	w.wantCount(2, "b")
	w.send(text("goodbye"))
	w.reply()
	w.wantClose(1000)
	w.conn.Close()
	opened, closed := p.waitLog("websocket_connected"), p.waitLog("websocket_disconnected")
	f := func(line map[string]any, field string, want any) {
		t.Helper()
		if line[field] != want {
			t.Errorf("%s: %v, want %v, in %v", field, line[field], want, line)
		}
	}
	for _, line := range []map[string]any{opened, closed} {
		f(line, "level", "INFO")
		f(line, "service", "websocket-message-counter")
		f(line, "session_id", id)
		f(line, "client_ip", "127.0.0.1")
		at, err := time.Parse(time.RFC3339Nano, line["timestamp"].(string))
		if err != nil || at.Location() != time.UTC {
			t.Errorf("timestamp %v", line["timestamp"])
		}
	}
	f(opened, "request_id", "request-7")
	f(opened, "message_count", 0.0)
	f(closed, "message_count", 2.0)
	f(closed, "close_code", 1000.0)
	f(closed, "reason", "goodbye")
	if closed["duration_ms"] == nil {
		t.Error("no duration_ms")
	}
}

// TestLogOfRefusals: at debug, what a client was told stands in the log.
func TestLogOfRefusals(t *testing.T) {
	p := startServer(t, "-log-level", "debug")
	requests := []struct{ reason, request string }{
		{"invalid_session_id", upgradeRequest("/ws/chat/?session_id=abc")},
		{"forbidden_origin", upgradeRequest("/ws/chat/", "Origin: http://evil.example")},
		{"bad_request", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	}
	for _, r := range requests {
		response := newWire(t, p.dial()).request(r.request)
		var told struct{ Error string }
		if err := json.NewDecoder(response.Body).Decode(&told); err != nil {
			t.Fatal(err)
		}
		var line map[string]any
		eventually(t, "the refusal is logged", func() bool {
			for _, line = range p.logged("websocket_refused") {
				if line["reason"] == r.reason {
					return true
				}
			}
			return false
		})
		if line["level"] != "DEBUG" || line["answer"] != told.Error || told.Error == "" ||
			line["status"] != float64(response.StatusCode) || line["client_ip"] != "127.0.0.1" {
			t.Errorf("the client was told %d %q, the log says %v", response.StatusCode, told.Error, line)
		}
	}
}

// What a client sends never breaks a line of the log in two, and does not make it long.
func TestLogIsNotInjected(t *testing.T) {
	p := startServer(t, "-log-level", "debug")
	const forged = "}{\"event\":\"forged\"\t"
	long := forged + strings.Repeat("x", 2000)
	f := func(event, field, shown string) {
		t.Helper()
		if text := p.waitLog(event)[field].(string); len(text) != 200 || !strings.HasPrefix(text, shown) {
			t.Errorf("%s of %s: %q, want the first 200 bytes", field, event, text)
		}
	}
	p.open("/ws/chat/", "X-Request-ID: "+long)
	f("websocket_connected", "request_id", forged)
	request := upgradeRequest("/ws/chat/", "Origin: "+long)
	host := strings.Repeat("h", 2000)
	newWire(t, p.dial()).request(strings.Replace(request, "Host: ", "Host: "+host, 1))
	f("origin_not_allowed", "origin", forged)
	f("origin_not_allowed", "host", "hhh")
	if len(p.logged("forged"))+len(p.logged("not_json")) > 0 {
		t.Error("the log was injected")
	}
}
