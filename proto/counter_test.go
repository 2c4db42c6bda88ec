package proto

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const sessionText = "1df8902a-2987-496f-a19a-937f834b88d1"

// payloadOf takes the one text frame apart that frames must be.
func payloadOf(t *testing.T, frames []byte) string {
	t.Helper()
	got, rest, err := listen(&Parser{Rules: &Rules{MaxMessage: 1 << 24}}, frames)
	if err != nil || len(rest) > 0 || len(got) != 1 || got[0].op != OpText {
		t.Fatalf("not one text frame: %.100q, %d bytes left, %v", got, len(rest), err)
	}
	return got[0].payload
}

func TestCounterFrames(t *testing.T) {
	f := func(frame []byte, want string) {
		t.Helper()
		if got := payloadOf(t, frame); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if !json.Valid([]byte(want)) {
			t.Errorf("not JSON: %s", want)
		}
	}
	id := []byte(sessionText)
	f(AppendCount(nil, 7, id, []byte("hi")), `{"count":7,"session_id":"`+sessionText+`","message":"hi"}`)
	f(AppendSession(nil, id, 3, true), `{"type":"session","session_id":"`+sessionText+`","count":3,"resumed":true}`)
	f(AppendSession(nil, id, 0, false), `{"type":"session","session_id":"`+sessionText+`","count":0,"resumed":false}`)
	f(AppendHeartbeat(nil, time.Date(2026, 1, 2, 15, 4, 5, 1000, time.FixedZone("", 0))),
		`{"type":"heartbeat","ts":"2026-01-02T15:04:05.000001Z"}`)
	f(AppendHeartbeat(nil, time.Date(2026, 1, 2, 15, 4, 5, 0, time.FixedZone("", 3600))),
		`{"type":"heartbeat","ts":"2026-01-02T14:04:05.000000Z"}`)
	f(AppendShuttingDown(nil, id), `{"error":"Server is shutting down","session_id":"`+sessionText+`"}`)
	f(AppendGoodbye(nil, 12), `{"bye":true,"total":12}`)
	f(AppendTakenOver(nil, 12), `{"bye":true,"total":12,"reason":"session_taken_over"}`)
	f(AppendShutdown(nil, 12, -1), `{"bye":true,"total":12,"reason":"server_shutdown","inflight_completed":true}`)
	f(AppendShutdown(nil, 12, 1500*time.Millisecond),
		`{"bye":true,"total":12,"reason":"server_shutdown","inflight_completed":true,"retry_after_ms":1500}`)
}

func TestCountEscapes(t *testing.T) {
	f := func(message, want string) {
		t.Helper()
		payload := payloadOf(t, AppendCount(nil, 1, []byte(sessionText), []byte(message)))
		_, got, _ := strings.Cut(payload, `"message":`)
		if got != want+"}" {
			t.Errorf("%q is sent as %s, want %s", message, got, want)
		}
	}
	f(`say "hi"`, `"say \"hi\""`)
	f(`back\slash / slash`, `"back\\slash / slash"`)
	f("\b\f\n\r\t", `"\b\f\n\r\t"`)
	f("\x00\x01\x1f\x7f", `"\u0000\u0001\u001f`+"\x7f\"")
	f("a\u2028b\u2029c\u2027\u202a", `"a\u2028b\u2029c`+"\u2027\u202a\"")
	f("€ é 😀 <img onerror=x>", `"€ é 😀 <img onerror=x>"`)
	f("\u2028", `"\u2028"`)
}

// FuzzCount holds the reply to what any JSON parser must read back: exactly
// what was sent.
func FuzzCount(f *testing.F) {
	f.Add("plain", uint64(1))
	f.Add("q\"\\\x00\u2028😀", uint64(1<<63))
	f.Add(strings.Repeat("\x01", 50), uint64(125))
	for n := 40; n < 60; n++ { // around the step of the header's length
		f.Add(strings.Repeat("a", n), uint64(9))
	}
	f.Add(strings.Repeat("\n", 20_000), uint64(9))
	f.Fuzz(func(t *testing.T, message string, count uint64) {
		if !utf8.ValidString(message) {
			return
		}
		before := "what stands before"
		frames := AppendCount([]byte(before), count, []byte(sessionText), []byte(message))
		if string(frames[:len(before)]) != before {
			t.Fatal("changed what stands before")
		}
		var reply struct {
			Count     uint64 `json:"count"`
			SessionID string `json:"session_id"`
			Message   string `json:"message"`
		}
		if err := json.Unmarshal([]byte(payloadOf(t, frames[len(before):])), &reply); err != nil {
			t.Fatal(err)
		}
		if reply.Count != count || reply.SessionID != sessionText || reply.Message != message {
			t.Fatalf("%q, %d is read back as %+v", message, count, reply)
		}
	})
}

func TestFramesAllocateNothing(t *testing.T) {
	dst := make([]byte, 0, 4096)
	id, message, now := []byte(sessionText), []byte(strings.Repeat("a\"", 200)), time.Now()
	if n := testing.AllocsPerRun(100, func() {
		dst = AppendCount(dst[:0], 1234567, id, message)
		dst = AppendSession(dst, id, 7, true)
		dst = AppendHeartbeat(dst, now)
		dst = AppendShuttingDown(dst, id)
		dst = AppendGoodbye(dst, 7)
		dst = AppendTakenOver(dst, 7)
		dst = AppendShutdown(dst, 7, time.Second)
		dst = AppendFrame(dst, OpPing, nil)
		dst = AppendClose(dst, 1001, "Going away")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReply(b *testing.B) {
	dst := make([]byte, 0, 4096)
	id, message := []byte(sessionText), []byte("a message of thirty-two bytes...")
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendCount(dst[:0], 1234567, id, message)
	}
}
