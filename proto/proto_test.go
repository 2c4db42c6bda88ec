package proto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

var mask = [4]byte{0xa1, 0x02, 0xb3, 0x04}

// client is a frame as a client sends it.
func client(op OpCode, fin bool, payload string) []byte {
	return AppendMaskedFrame(nil, op, fin, mask, []byte(payload))
}

func join(frames ...[]byte) []byte { return slices.Concat(frames...) }

func fromClient(maxMessage int) *Parser {
	return &Parser{Rules: &Rules{FromClient: true, MaxMessage: maxMessage}}
}

// A heard message is a Message that outlives the buffer it came from.
type heard struct {
	op      OpCode
	payload string
}

// listen feeds the chunks to a parser as a connection does, keeping what is
// unfinished, and returns all messages, the error, and what was left.
func listen(p *Parser, chunks ...[]byte) (messages []heard, rest []byte, err error) {
	for _, chunk := range chunks {
		rest = append(slices.Clone(rest), chunk...)
		for {
			m, n, err := p.Next(rest)
			rest = rest[n:]
			if err != nil {
				return messages, rest, err
			}
			if m.Op == OpContinuation {
				break
			}
			messages = append(messages, heard{m.Op, string(m.Payload)})
		}
	}
	return messages, rest, nil
}

// relay is listen, but each chunk is heard by a new parser that starts from the
// State of the one before, as in another process: nothing but the State and the
// bytes of the unfinished frame is common to them.
func relay(rules *Rules, chunks ...[]byte) (messages []heard, rest []byte, err error) {
	var state ParserState
	for _, chunk := range chunks {
		p := &Parser{Rules: rules}
		restored := state
		restored.Message, restored.Tail = slices.Clone(state.Message), slices.Clone(state.Tail)
		p.Restore(restored)
		for i := range state.Message {
			state.Message[i] = 'x' // the older parser's memory is its own
		}
		var got []heard
		got, rest, err = listen(p, slices.Concat(rest, chunk))
		messages = append(messages, got...)
		if err != nil {
			return messages, rest, err
		}
		state = p.State()
	}
	return messages, rest, nil
}

// wantRelayed cuts stream at every byte, and moves the parser there.
func wantRelayed(t *testing.T, rules *Rules, stream []byte, want []heard, wantErr error) {
	t.Helper()
	cuts := [][][]byte{bytewise(stream)}
	for at := 0; at <= len(stream); at += 1 + len(stream)/1000 {
		cuts = append(cuts, [][]byte{stream[:at], stream[at:]})
	}
	for _, cut := range cuts {
		got, _, err := relay(rules, cut...)
		if err != wantErr || !slices.Equal(got, want) {
			t.Fatalf("moved after %d bytes: got %.200q, %v; want %.200q, %v", len(cut[0]), got, err, want, wantErr)
		}
	}
}

// bytewise cuts b into single bytes.
func bytewise(b []byte) (chunks [][]byte) {
	for i := range b {
		chunks = append(chunks, b[i:i+1])
	}
	return chunks
}

func TestParserMessages(t *testing.T) {
	f := func(name string, stream []byte, want ...heard) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Helper()
			for _, cut := range [][][]byte{{stream}, bytewise(stream)} {
				got, rest, err := listen(fromClient(1<<20), cut...)
				if err != nil || len(rest) > 0 {
					t.Fatalf("in %d pieces: error %v, %d bytes left", len(cut), err, len(rest))
				}
				if !slices.Equal(got, want) {
					t.Fatalf("in %d pieces: got %.200q, want %.200q", len(cut), got, want)
				}
			}
			if len(stream) < 10_000 { // bytewise, the moves take time that grows with the square
				wantRelayed(t, fromClient(1<<20).Rules, stream, want, nil)
			}
		})
	}
	long, longer := strings.Repeat("a", 126), strings.Repeat("é", 40_000)
	f("text", client(OpText, true, "hello"), heard{OpText, "hello"})
	f("empty text", client(OpText, true, ""), heard{OpText, ""})
	f("binary of any bytes", client(OpBinary, true, "\x00\xff\xfe"), heard{OpBinary, "\x00\xff\xfe"})
	f("16-bit length", client(OpText, true, long), heard{OpText, long})
	f("64-bit length", client(OpText, true, longer), heard{OpText, longer})
	f("two at once", join(client(OpText, true, "a"), client(OpText, true, "b")), heard{OpText, "a"}, heard{OpText, "b"})
	f("fragments", join(client(OpText, false, "a"), client(OpContinuation, false, ""), client(OpContinuation, true, "b")), heard{OpText, "ab"})
	f("a character cut by fragments",
		join(client(OpText, false, "\xf0\x9f"), client(OpContinuation, false, "\x98"), client(OpContinuation, true, "\x80")),
		heard{OpText, "😀"})
	f("control frames between fragments",
		join(client(OpBinary, false, "a"), client(OpPing, true, "?"),
			client(OpContinuation, false, "b"), client(OpPong, true, ""), client(OpContinuation, true, "c")),
		heard{OpPing, "?"}, heard{OpPong, ""}, heard{OpBinary, "abc"})
	f("a ping of 125 bytes", client(OpPing, true, long[:125]), heard{OpPing, long[:125]})
	f("close without a code", client(OpClose, true, ""), heard{OpClose, ""})
	f("close with a code and a reason", client(OpClose, true, "\x03\xe8bye é"), heard{OpClose, "\x03\xe8bye é"})
}

func TestParserErrors(t *testing.T) {
	// f also checks that the error comes as soon as the bytes up to `at` are there.
	f := func(name string, stream []byte, at int, want *Error) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Helper()
			messages, _, err := listen(fromClient(1000), stream)
			if err != want {
				t.Fatalf("at once: got %v, want %v", err, want)
			}
			wantRelayed(t, fromClient(1000).Rules, stream, messages, want)
			p := fromClient(1000)
			var rest []byte
			for i := range stream {
				rest = append(rest, stream[i])
				_, left, err := listen(p, rest)
				rest = slices.Clone(left)
				if err != nil {
					if err != want || i+1 != at {
						t.Fatalf("bytewise: got %v after %d bytes, want %v after %d", err, i+1, want, at)
					}
					return
				}
			}
			t.Fatalf("bytewise: no error, want %v", want)
		})
	}
	raw := func(b ...byte) []byte { return b }
	f("RSV1", raw(0xc1, 0x80), 2, ErrReservedBits)
	f("RSV3", raw(0x91, 0x80), 2, ErrReservedBits)
	f("reserved data opcode", raw(0x83, 0x80), 2, ErrReservedOpCode)
	f("reserved control opcode", raw(0x8b, 0x80), 2, ErrReservedOpCode)
	f("not masked", raw(0x81, 0x05, 'h'), 2, ErrNotMasked)
	f("fragmented ping", raw(0x09, 0x80), 2, ErrControlFragment)
	f("long ping", raw(0x89, 0xfe, 0, 126), 2, ErrControlTooLong)
	f("16-bit length for 125 bytes", raw(0x81, 0xfe, 0, 125, 0), 4, ErrLengthNotMinimal)
	f("64-bit length for 65535 bytes", raw(0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0), 10, ErrLengthNotMinimal)
	f("length over 63 bits", raw(0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0), 10, ErrLengthTooLong)
	f("length of 2^63-1", raw(0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), 10, ErrTooBig)
	f("one byte too long", raw(0x81, 0xfe, 0x03, 0xe9, 0), 4, ErrTooBig)
	f("too long in fragments", join(client(OpText, false, strings.Repeat("a", 600)), raw(0x80, 0xfe, 0x01, 0x91, 0)), 608+4, ErrTooBig)
	f("continuation of nothing", raw(0x80, 0x80), 2, ErrNoFragment)
	f("continuation after the end", join(client(OpText, true, "a"), raw(0x80, 0x80)), 7+2, ErrNoFragment)
	f("text within fragments", join(client(OpText, false, "a"), raw(0x81, 0x81)), 7+2, ErrFragmentOpen)
	f("close of one byte", client(OpClose, true, "x"), 7, ErrClosePayload)
	f("bad byte in text", client(OpText, true, "abc\xffdef"), 6+4, ErrNotUTF8)
	f("bad byte in a fragment", client(OpText, false, "abc\xffdef"), 6+4, ErrNotUTF8)
	f("bad byte in a continuation", join(client(OpText, false, "abc"), client(OpContinuation, true, "d\xffe")), 9+6+2, ErrNotUTF8)
	f("surrogate", client(OpText, true, "\xed\xa0\x80"), 6+2, ErrNotUTF8)
	f("overlong", client(OpText, true, "\xe0\x80\x80"), 6+2, ErrNotUTF8)
	f("beyond U+10FFFF", client(OpText, true, "\xf4\x90\x80\x80"), 6+2, ErrNotUTF8)
	f("text that ends within a character", client(OpText, true, "a\xe2\x82"), 6+3, ErrNotUTF8)
	f("character cut off by the last fragment", join(client(OpText, false, "\xe2"), client(OpContinuation, true, "")), 7+6, ErrNotUTF8)
	f("character spoiled across fragments", join(client(OpText, false, "\xe2\x82"), client(OpContinuation, true, "a")), 8+7, ErrNotUTF8)
	f("reason that is not UTF-8", client(OpClose, true, "\x03\xe8\xff"), 9, ErrCloseReason)
	for _, code := range []uint16{0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535} {
		f("close code", client(OpClose, true, string(binary.BigEndian.AppendUint16(nil, code))), 8, ErrCloseCode)
	}
}

func TestParserTakesValidCloseCodes(t *testing.T) {
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		_, _, err := listen(fromClient(1000), client(OpClose, true, string(binary.BigEndian.AppendUint16(nil, code))))
		if err != nil {
			t.Errorf("code %d: %v", code, err)
		}
	}
}

func TestParserOfAServersFrames(t *testing.T) {
	p := &Parser{Rules: &Rules{MaxMessage: 100}}
	got, _, err := listen(p, AppendFrame(nil, OpText, []byte("hi")), AppendClose(nil, 1001, "Going away"))
	if want := []heard{{OpText, "hi"}, {OpClose, "\x03\xe9Going away"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, _, err := listen(&Parser{Rules: &Rules{MaxMessage: 100}}, client(OpText, true, "hi")); err != ErrMasked {
		t.Errorf("a masked frame: %v", err)
	}
}

// A frame that comes in pieces is looked at once, however small the pieces.
func TestParserDoesNotStartAgain(t *testing.T) {
	const length = 60_000
	stream := client(OpText, true, strings.Repeat("a", length))
	p := fromClient(length)
	for n := 1; n < len(stream); n++ {
		if m, used, err := p.Next(stream[:n]); m.Op != OpContinuation || used != 0 || err != nil {
			t.Fatalf("after %d bytes: %v, %d, %v", n, m.Op, used, err)
		}
		done := 0
		if p.started != nil {
			done = p.started.seen
		}
		if want := max(0, n-8); done != want {
			t.Fatalf("after %d bytes, %d of the payload are done, want %d", n, done, want)
		}
	}
}

func TestAppendClose(t *testing.T) {
	f := func(code StatusCode, reason, want string) {
		t.Helper()
		if got := string(AppendClose(nil, code, reason)); got != want {
			t.Errorf("AppendClose(%d, %q) = %q, want %q", code, reason, got, want)
		}
	}
	f(0, "", "\x88\x00")
	f(1000, "", "\x88\x02\x03\xe8")
	f(4001, "session taken over", "\x88\x14\x0f\xa1session taken over")
	f(1000, strings.Repeat("x", 200), "\x88\x7d\x03\xe8"+strings.Repeat("x", 123))
}

func TestHeadersAgreeWithGobwas(t *testing.T) {
	for _, length := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
		for _, masked := range []bool{false, true} {
			want, err := ws.CompileFrame(ws.Frame{
				Header: ws.Header{Fin: true, OpCode: OpBinary, Masked: masked, Mask: [4]byte{}, Length: int64(length)}, Payload: make([]byte, length)})
			if err != nil {
				t.Fatal(err)
			}
			got := AppendFrame(nil, OpBinary, make([]byte, length))
			if masked {
				got = AppendMaskedFrame(nil, OpBinary, true, [4]byte{}, make([]byte, length))
			}
			if !bytes.Equal(got, want) {
				t.Errorf("length %d, masked %v: header % x, want % x", length, masked, got[:min(14, len(got))], want[:min(14, len(want))])
			}
		}
	}
}

// FuzzParser holds the parser to its word that it does not matter where the
// stream is cut, nor whether another parser goes on there: the same messages
// and the same error as uncut.
// cutUp is a copy of a stream in chunks; each of cuts is the length of one, less 1.
func cutUp(stream, cuts []byte) (chunks [][]byte) {
	for rest := slices.Clone(stream); len(rest) > 0; {
		n := len(rest)
		if len(cuts) > 0 {
			n, cuts = min(n, 1+int(cuts[0])), cuts[1:]
		}
		chunks, rest = append(chunks, rest[:n]), rest[n:]
	}
	return chunks
}

func FuzzParser(f *testing.F) {
	f.Add(client(OpText, true, "hello"), []byte{3})
	f.Add(join(client(OpText, false, "\xf0\x9f"), client(OpPing, true, "x"), client(OpContinuation, true, "\x98\x80")), []byte{1, 2, 3})
	f.Add(join(client(OpBinary, true, strings.Repeat("b", 300)), client(OpClose, true, "\x03\xe8")), []byte{200})
	f.Add(client(OpText, true, "\xed\xa0\x80"), []byte{7, 1})
	f.Add([]byte{0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, []byte{1})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		want, wantRest, wantErr := listen(fromClient(1000), stream)
		chunks := cutUp(stream, cuts)
		got, rest, err := listen(fromClient(1000), chunks...)
		if !slices.Equal(got, want) || err != wantErr {
			t.Fatalf("cut: %q, %v; uncut: %q, %v", got, err, want, wantErr)
		}
		if err == nil && !bytes.Equal(rest, wantRest) {
			t.Fatalf("left over when cut: %q; uncut: %q", rest, wantRest)
		}
		moved, movedRest, err := relay(fromClient(1000).Rules, chunks...)
		if !slices.Equal(moved, want) || err != wantErr || err == nil && !bytes.Equal(movedRest, wantRest) {
			t.Fatalf("moved: %q, %v; at rest: %q, %v", moved, err, want, wantErr)
		}
		for _, m := range got {
			if m.op == OpText && !utf8.ValidString(m.payload) {
				t.Fatalf("text %q", m.payload)
			}
		}
		var protocol *Error
		if err != nil && !errors.As(err, &protocol) {
			t.Fatalf("error %T", err)
		}
	})
}

// FuzzRoundTrip sends a message in fragments and gets it back.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"), uint8(2), true)
	f.Add(bytes.Repeat([]byte("é"), 40_000), uint8(100), true)
	f.Add([]byte{0xff, 0}, uint8(0), false)
	f.Fuzz(func(t *testing.T, payload []byte, size uint8, text bool) {
		op := OpBinary
		if text {
			op = OpText
			payload = bytes.ToValidUTF8(payload, []byte("?"))
		}
		var stream []byte
		next, rest := op, payload
		for {
			n := min(len(rest), 1+int(size)*100)
			last := n == len(rest)
			stream = AppendMaskedFrame(stream, next, last, mask, rest[:n])
			if next, rest = OpContinuation, rest[n:]; last {
				break
			}
		}
		got, left, err := listen(fromClient(len(payload)), stream)
		if err != nil || len(left) > 0 || len(got) != 1 || got[0] != (heard{op, string(payload)}) {
			t.Fatalf("got %.100q, %d left, %v", got, len(left), err)
		}
	})
}

func BenchmarkParser(b *testing.B) {
	for _, length := range []int{32, 1000, 60_000} {
		b.Run("bytes="+strconv.Itoa(length), func(b *testing.B) {
			frame := client(OpText, true, strings.Repeat("a", length))
			buf := slices.Clone(frame)
			p := fromClient(length)
			b.SetBytes(int64(length))
			b.ReportAllocs()
			for b.Loop() {
				copy(buf, frame) // it was unmasked in place
				if m, _, err := p.Next(buf); m.Op != OpText || err != nil {
					b.Fatal(m.Op, err)
				}
			}
		})
	}
}
