// Package interoptest has the scenario that clients play which this project did not write,
// and one of them, github.com/coder/websocket. The others are programs: testdata/clients in
// server. Each says what it saw, as JSON, and all have to have seen the same.
//
// It is for tests.
package interoptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"turnstile/proto"
)

// A scene is a part of the scenario.
type scene struct {
	Scene string  `json:"scene"`
	Saw   []event `json:"saw"`
}

// An event is a frame of the server's, decoded by the client, or an object of
// ours: see openEvent and below.
type event = map[string]any

func openEvent(subprotocol string) event { return event{"open": subprotocol} }
func closeEvent(code int) event          { return event{"close": code} }
func pongEvent() event                   { return event{"pong": true} }

func replyEvent(count int, session, text string) event {
	return event{"count": count, "session_id": session, "message": text}
}

func sessionEvent(session string, count int, resumed bool) event {
	return event{"type": "session", "session_id": session, "count": count, "resumed": resumed}
}

// The texts stand in each client's source, so that a slip of one client's
// encoder is not undone by its decoder.
var (
	hostileText = "\ufeff \"quotes\" \\ back/slash \x00\x01\b\f\n\r\t\x1f\x7f\u0085 \u2028\u2029 \U0001f600\U0010ffff " +
		"\u202e\u05e9\u05dc\u05d5\u05dd <img onerror=alert(1)> \\u0041 %s "
	longText       = strings.Repeat("0123456789ab\"\u00e9\n", 4000) // its reply needs a length of 64 bits
	fragmentedText = "in \U0001f600 fragments"
)

// wantedScenes is what every client has to see. Sessions are named in the order
// in which they come: see inScenes.
func wantedScenes() []scene {
	const a, b, c = "session-1", "session-2", "session-3"
	return []scene{
		{"first version", []event{
			openEvent(""), replyEvent(1, a, "hello"), replyEvent(2, a, hostileText), replyEvent(3, a, longText),
			pongEvent(), replyEvent(4, a, fragmentedText), pongEvent(),
			{"bye": true, "total": 4}, {"close": 1000, "reason": "Normal closure"},
		}},
		{"resume", []event{openEvent(""), replyEvent(5, a, "again"), closeEvent(1000)}},
		{"second version", []event{
			{"asked": b},
			openEvent(proto.Subprotocol), sessionEvent(b, 0, false), replyEvent(1, b, "one"), closeEvent(1000),
			openEvent(proto.Subprotocol), sessionEvent(b, 1, true), replyEvent(2, b, "two"), closeEvent(1000),
		}},
		{"takeover", []event{
			openEvent(""), replyEvent(1, c, "mine"), openEvent(""),
			{"bye": true, "total": 1, "reason": "session_taken_over"}, closeEvent(4001),
			replyEvent(2, c, "yours"), closeEvent(1000),
		}},
		{"binary", []event{openEvent(""), closeEvent(1003)}},
		{"too big", []event{openEvent(""), closeEvent(1009)}},
		{"bad session", []event{{"status": 400, "body": event{
			"error": "invalid session_id: it must be the 36 characters of a UUID, hexadecimal digits in groups of 8-4-4-4-12; " +
				"leave it out to get a new one"}}}},
		{"foreign origin", []event{{"status": 403}}},
		{"client closes", []event{openEvent(""), closeEvent(3456)}},
	}
}

// idPattern is a random version-4 UUID in lower case, as the server writes it.
var idPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// inScenes decodes what a client has printed, with session-1, session-2, … for
// the ids, in the order in which they come.
func inScenes(t *testing.T, line []byte) (scenes []scene) {
	t.Helper()
	names := map[string]string{}
	line = idPattern.ReplaceAllFunc(line, func(id []byte) []byte {
		if names[string(id)] == "" {
			names[string(id)] = fmt.Sprintf("session-%d", len(names)+1)
		}
		return []byte(names[string(id)])
	})
	if err := json.Unmarshal(line, &scenes); err != nil {
		t.Fatalf("%v in what the client printed: %.300s", err, line)
	}
	return scenes
}

// WasCompressed reports whether the answers to a client were compressed, if that has saved so
// many bytes.
func WasCompressed(saved float64) bool { return saved > float64(len(longText)) }

// Check holds what a client has printed to what it had to see.
func Check(t *testing.T, line []byte) {
	t.Helper()
	if n := bytes.Count(line, []byte("\n")); n > 1 {
		t.Errorf("%d lines instead of one", n)
	}
	wanted, saw := wantedScenes(), inScenes(t, line)
	if len(saw) != len(wanted) {
		t.Fatalf("%d scenes instead of %d", len(saw), len(wanted))
	}
	for i := range wanted {
		if a, b := asText(t, saw[i]), asText(t, wanted[i]); a != b {
			t.Errorf("saw, and should have seen:\n%s\n%s", a, b)
		}
	}
}

// asText makes what a client printed comparable with what a test wants: JSON
// with the keys in order, and with nothing too long to be read.
func asText(t *testing.T, s scene) string {
	t.Helper()
	for _, e := range s.Saw {
		if text, _ := e["message"].(string); text == longText {
			e["message"] = "the long text"
		} else if len(text) > 300 {
			e["message"] = fmt.Sprintf("%.300s… (%d bytes)", text, len(text))
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
