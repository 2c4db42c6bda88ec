package session

import (
	"regexp"
	"strings"
	"testing"
)

const someText = "1df8902a-2987-496f-a19a-937f834b88d1"

var someID = ID{0x1d, 0xf8, 0x90, 0x2a, 0x29, 0x87, 0x49, 0x6f, 0xa1, 0x9a, 0x93, 0x7f, 0x83, 0x4b, 0x88, 0xd1}

func TestParseID(t *testing.T) {
	f := func(text string, want ID, wantOK bool) {
		t.Helper()
		if id, ok := ParseID([]byte(text)); id != want || ok != wantOK {
			t.Errorf("%q is read as %x, %v", text, id, ok)
		}
	}
	f(someText, someID, true)
	f(strings.ToUpper(someText), someID, true)
	f("1DF8902a-2987-496F-a19a-937f834b88d1", someID, true)
	f("00000000-0000-0000-0000-000000000000", ID{}, true)
	f("01234567-89ab-7def-0123-456789abcdef",
		ID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x7d, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, true)

	bad := func(texts ...string) {
		t.Helper()
		for _, text := range texts {
			f(text, ID{}, false)
		}
	}
	bad("", "x", someText[1:], someText+"0", someText+" ", " "+someText[1:])
	bad("{"+someText+"}", "urn:uuid:"+someText)
	bad("1df8902a2987496fa19a937f834b88d1", "1df8902a2987496fa19a937f834b88d1----") // dashes missing, or at the end
	bad("1df8902-a2987-496f-a19a-937f834b88d1", "1df8902a-2987-496f-a19a9-37f834b88d1")
	bad("1df8902a_2987_496f_a19a_937f834b88d1")
	for i := range len(someText) { // a wrong character at each place
		for _, wrong := range []string{"g", "G", "/", ":", "`", "@", "\x00", "\xc3"} {
			bad(someText[:i] + wrong + someText[i+1:])
		}
		if someText[i] != '-' {
			bad(someText[:i] + "-" + someText[i+1:])
		} else {
			bad(someText[:i] + "0" + someText[i+1:])
		}
	}
}

func TestIDAsText(t *testing.T) {
	if text := someID.Text(); string(text[:]) != someText || someID.String() != someText {
		t.Errorf("%x is written %s and %s, want %s", someID[:], text, someID, someText)
	}
}

// TestNewID holds the two fields that RFC 9562 §5.4 fixes.
func TestNewID(t *testing.T) {
	const n = 10_000
	seen := make(map[ID]bool)
	var ones, zeros ID // the bits that were ever set, and ever clear
	for range n {
		id := NewID()
		seen[id] = true
		for i, b := range id {
			ones[i] |= b
			zeros[i] |= ^b
		}
		if text := id.String(); text[14] != '4' || !strings.Contains("89ab", text[19:20]) {
			t.Fatalf("%s is not of version 4, variant 10", text)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d IDs differ", len(seen), n)
	}
	fixed := ID{6: 0xf0, 8: 0xc0}
	for i := range fixed {
		if random := ones[i] & zeros[i]; random != ^fixed[i] {
			t.Errorf("byte %d: the bits that change are %08b, want %08b", i, random, ^fixed[i])
		}
	}
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// FuzzParseID holds ParseID to the grammar of RFC 9562 §4, and Text to what
// was read.
func FuzzParseID(f *testing.F) {
	f.Add([]byte(someText))
	f.Add([]byte(strings.ToUpper(someText)))
	f.Add([]byte(someText[:35] + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		id, ok := ParseID(text)
		if want := uuid.Match(text) && len(text) == TextLen; ok != want {
			t.Fatalf("%q: %v, want %v", text, ok, want)
		}
		if ok && id.String() != strings.ToLower(string(text)) {
			t.Errorf("%q is written %s", text, id)
		}
		if !ok && id != (ID{}) {
			t.Errorf("%q is half read as %x", text, id[:])
		}
	})
}
