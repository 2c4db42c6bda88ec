package proto

import (
	"strings"
	"testing"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws/wsflate"
)

const (
	bothTakeovers  = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	extensionsName = "Sec-WebSocket-Extensions: "
)

// offer has a request with these Sec-WebSocket-Extensions headers upgraded, and returns the
// header of the answer.
func offer(t *testing.T, u *Upgrader, headers ...string) (answer string, window uint8, refusal *Refusal) {
	t.Helper()
	request := validRequest
	for _, h := range headers {
		request = strings.Replace(request, "\r\n\r\n", "\r\n"+extensionsName+h+"\r\n\r\n", 1)
	}
	r, refusal := read(request)
	if refusal != nil {
		t.Fatal(refusal)
	}
	out, refusal := u.Upgrade(nil, r)
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(line, extensionsName); ok {
			answer = strings.TrimSpace(value)
		}
	}
	return answer, r.Window, refusal
}

func TestNegotiateDeflate(t *testing.T) {
	u := NewUpgrader(Subprotocol, true)
	f := func(window uint8, want string, headers ...string) {
		t.Helper()
		got, gotWindow, refusal := offer(t, u, headers...)
		if refusal != nil || got != want || gotWindow != window {
			t.Errorf("%q: %q with window %d, %v; want %q with window %d", headers, got, gotWindow, refusal, want, window)
		}
	}
	f(0, "")
	f(15, bothTakeovers, "permessage-deflate")
	f(15, bothTakeovers, "permessage-deflate; client_max_window_bits") // Chromium, node
	f(15, bothTakeovers, "permessage-deflate; client_max_window_bits=10")
	f(15, bothTakeovers, `permessage-deflate;client_max_window_bits="1\5"`)
	f(15, bothTakeovers, "permessage-deflate; server_no_context_takeover; client_no_context_takeover")
	f(15, bothTakeovers, "permessage-deflate ;client_no_context_takeover ; server_no_context_takeover;client_max_window_bits = 9 ")
	f(12, bothTakeovers+"; server_max_window_bits=12", "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12")
	f(15, bothTakeovers+"; server_max_window_bits=15", "permessage-deflate; server_max_window_bits=15")
	f(8, bothTakeovers+"; server_max_window_bits=8", `permessage-deflate; client_max_window_bits; server_max_window_bits="8"`)
	// Several offers: the first that can be granted.
	f(15, bothTakeovers, "permessage-deflate; server_max_window_bits=7, permessage-deflate")
	f(10, bothTakeovers+"; server_max_window_bits=10",
		"x-other; a=b; c=\"d\", permessage-deflate; server_max_window_bits=10, permessage-deflate")
	f(15, bothTakeovers, ", x-other ,, ", "permessage-deflate, permessage-deflate; server_max_window_bits=9")
	f(9, bothTakeovers+"; server_max_window_bits=9", "permessage-deflate; unknown", "permessage-deflate; server_max_window_bits=9")
	// Declined.
	for _, parameters := range []string{
		"unknown", "unknown=1", "server_no_context_takeover=1", "client_no_context_takeover=true", "server_max_window_bits",
		"server_max_window_bits=7", "server_max_window_bits=16", "server_max_window_bits=08", "server_max_window_bits=x",
		"server_max_window_bits=100", "client_max_window_bits=7", "client_max_window_bits=16", "client_max_window_bits=015",
		"server_no_context_takeover; server_no_context_takeover", "client_no_context_takeover;client_no_context_takeover",
		"server_max_window_bits=10; server_max_window_bits=10", "client_max_window_bits; client_max_window_bits=10",
		"client_max_window_bits; client_max_window_bits", "SERVER_NO_CONTEXT_TAKEOVER",
	} {
		f(0, "", "permessage-deflate; "+parameters)
	}
	f(0, "", "permessage-deflat, permessage-deflatee, x-webkit-deflate-frame, PERMESSAGE-DEFLATE")
}

// TestMalformedExtensions: a client whose header is not the RFC's is not upgraded (RFC 6455
// §9.1). A server that compresses nothing does not read it.
func TestMalformedExtensions(t *testing.T) {
	u, without := NewUpgrader(Subprotocol, true), NewUpgrader(Subprotocol, false)
	for _, header := range []string{
		"permessage-deflate;", "permessage-deflate; ;client_max_window_bits", "; permessage-deflate",
		"permessage-deflate client_max_window_bits",
		"permessage-deflate; client_max_window_bits=", `permessage-deflate; client_max_window_bits="1`,
		`permessage-deflate; client_max_window_bits=""`,
		`permessage-deflate; client_max_window_bits="1 5"`, "permessage-deflate; =15", "(", `permessage-deflate; client_max_window_bits="15\`,
		`permessage-deflate; client_max_window_bits="15"x`, "permessage-deflate, @",
	} {
		if answer, _, refusal := offer(t, u, header); refusal != errBadExtensions {
			t.Errorf("%q: %q, %v", header, answer, refusal)
		}
		if answer, window, refusal := offer(t, without, header, "permessage-deflate"); refusal != nil || answer != "" || window != 0 {
			t.Errorf("%q without compression: %q, %v", header, answer, refusal)
		}
	}
}

func TestNegotiatingAllocatesNothingMore(t *testing.T) {
	u := NewUpgrader(Subprotocol, true)
	out := make([]byte, 0, 4096)
	r, _ := read(strings.Replace(validRequest, "\r\n\r\n", "\r\n"+extensionsName+
		"x; y=\"z\", permessage-deflate; server_max_window_bits=\"10\"; client_max_window_bits\r\n\r\n", 1))
	n := testing.AllocsPerRun(100, func() {
		r.decoded = r.decoded[:0]
		if out, _ = u.Upgrade(out[:0], r); r.Window != 10 {
			t.Fatalf("window %d", r.Window)
		}
	})
	if n > 1 && !raceEnabled { // see TestUpgradeAllocatesOnce
		t.Errorf("%v allocations an upgrade", n)
	}
}

// FuzzExtensions compares with gobwas/ws: what is malformed there is so here, and an offer
// that is accepted here is valid there and gets what it asks for.
func FuzzExtensions(f *testing.F) {
	for _, header := range []string{
		"permessage-deflate; client_max_window_bits", `x; y="a\b", permessage-deflate; server_max_window_bits="10"`,
		"permessage-deflate; server_max_window_bits=9; server_max_window_bits=9,permessage-deflate", ",", "a;",
		"permessage-deflate;server_no_context_takeover", "permessage-deflate;\tserver_max_window_bits=\"10\"",
	} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := Request{extensions: [][]byte{[]byte(header)}}
		agreed, ok := r.negotiate()
		if string(r.extensions[0]) != header {
			t.Fatal("the header was changed")
		}
		if !ok || agreed.window == 0 {
			return
		}
		// httphead takes no tab where white space may be (OWS, RFC 9110 §5.6.3).
		options, valid := httphead.ParseOptions([]byte(strings.ReplaceAll(header, "\t", " ")), nil)
		if !valid {
			t.Fatalf("%q is accepted, and malformed", header)
		}
		for _, option := range options {
			var p wsflate.Parameters
			if string(option.Name) != wsflate.ExtensionName || p.Parse(option) != nil {
				continue
			}
			if window := p.ServerMaxWindowBits; uint8(window) == agreed.window && agreed.asked || window == 0 && !agreed.asked {
				return
			}
		}
		t.Fatalf("%q got %+v, and has no such offer", header, agreed)
	})
}
