package proto

import (
	"strings"
	"testing"
)

// However the stream is cut, the close frame is found at its last byte, and not before.
func TestSkipperFindsTheCloseFrame(t *testing.T) {
	f := func(name string, before ...[]byte) {
		t.Helper()
		stream := join(append(before, client(OpClose, true, "\x03\xe8why"))...)
		for _, size := range []int{1, 2, 3, 5, 7, 16, 1000, len(stream)} {
			var s Skipper
			for at := 0; at < len(stream); at += size {
				end := min(at+size, len(stream))
				if closed := s.Skip(stream[at:end]); closed != (end == len(stream)) {
					t.Fatalf("%s, in pieces of %d: %v after %d of %d bytes", name, size, closed, end, len(stream))
				}
			}
		}
	}
	f("nothing")
	f("frames of every form of length", client(OpText, true, ""), client(OpText, true, "x"), client(OpBinary, true, strings.Repeat("x", 126)),
		client(OpText, true, strings.Repeat("x", 65536)))
	f("a close frame as payload", client(OpText, true, string(client(OpClose, true, ""))))
	f("frames against the protocol", []byte{0xc1, 0x80, 1, 2, 3, 4}, []byte{0x81, 0x01, 'x'}, []byte{0x83, 0x00}, []byte{0x81, 126, 0, 1, 'x'})
}

// A stream that is no stream of frames is skipped to its end.
func FuzzSkipper(f *testing.F) {
	f.Add([]byte("\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff"), []byte("\x88\x80"))
	f.Add([]byte("\x88"), []byte("\x80\x01\x02\x03\x04"))
	f.Fuzz(func(t *testing.T, front, back []byte) {
		var cut, whole Skipper
		closed := cut.Skip(front) || cut.Skip(back)
		if want := whole.Skip(join(front, back)); closed != want {
			t.Errorf("close frame: %v in two pieces, %v in one", closed, want)
		}
	})
}
