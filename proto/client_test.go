package proto

import (
	"bytes"
	"strings"
	"testing"
)

// TestClientAndServerAgree: the request is one that the server grants, and the
// answer one that the client takes.
func TestClientAndServerAgree(t *testing.T) {
	for _, protocol := range []string{"", Subprotocol} {
		request := AppendRequest(nil, "example.com:1", "/ws/chat/?session_id=x", protocol)
		answer, r, refusal := upgrade(nil, string(request))
		if refusal != nil || r.Protocol != protocol || string(r.Path) != "/ws/chat/" || string(r.Host) != "example.com:1" {
			t.Errorf("%q: %+v, %v", request, r, refusal)
		}
		if err := CheckUpgrade(answer); err != nil {
			t.Errorf("%q: %v", answer, err)
		}
	}
}

func TestCheckUpgradeErrors(t *testing.T) {
	f := func(header, want string) {
		t.Helper()
		if err := CheckUpgrade([]byte(header)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", header, err, want)
		}
	}
	f("", "not upgraded")
	f("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", "503 Service Unavailable")
	f("HTTP/1.1 101 Switching Protocols\r\n\r\n", "Sec-WebSocket-Accept")
	f("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n", "Sec-WebSocket-Accept")
}

func TestReadCount(t *testing.T) {
	const id = "1df8902a-2987-496f-a19a-937f834b88d1"
	payload := func(frame []byte) []byte {
		m, _, err := (&Parser{Rules: &Rules{MaxMessage: 1 << 20}}).Next(frame)
		if err != nil {
			t.Fatal(err)
		}
		return m.Payload
	}
	for _, want := range []uint64{1, 10, 1<<64 - 1} {
		count, session, ok := ReadCount(payload(AppendCount(nil, want, []byte(id), []byte(`a "message"`))))
		if count != want || string(session) != id || !ok {
			t.Errorf("read %d of %q, %v, want %d", count, session, ok, want)
		}
	}
	for _, other := range [][]byte{
		nil, payload(AppendGoodbye(nil, 3)), payload(AppendSession(nil, []byte(id), 3, true)),
		[]byte(`{"count":x,"session_id":"y"}`), []byte(`{"count":1,"session":"y"}`), []byte(`{"count":1,"session_id":"y`),
	} {
		if count, _, ok := ReadCount(other); ok {
			t.Errorf("%q is read as %d", other, count)
		}
	}
	if IsHeartbeat([]byte(`{"count":1`)) || !IsHeartbeat(bytes.TrimSpace([]byte(`{"type":"heartbeat","ts":"x"}`))) {
		t.Error("a heartbeat is not known")
	}
}
