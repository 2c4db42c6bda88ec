package proto

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
)

func compressing(maxMessage int) *Parser {
	return &Parser{Rules: &Rules{FromClient: true, MaxMessage: maxMessage, Inflater: &Inflater{}}}
}

// compressed is a frame of a client that says that its message is compressed.
func compressed(op OpCode, fin bool, payload string) []byte {
	frame := client(op, fin, payload)
	frame[0] |= 0x40
	return frame
}

// deflated is a message as the standard library compresses it.
func deflated(message string) string {
	var out bytes.Buffer
	w, _ := flate.NewWriter(&out, flate.BestCompression)
	io.WriteString(w, message)
	w.Flush()
	return strings.TrimSuffix(out.String(), flushTail)
}

func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// The examples of RFC 7692 §7.2.3, all of "Hello".
var (
	oneBlock     = unhex("f2 48 cd c9 c9 07 00")
	storedBlock  = unhex("00 05 00 fa ff 48 65 6c 6c 6f 00")
	finalBlock   = unhex("f3 48 cd c9 c9 07 00 00")
	twoBlocks    = unhex("f2 48 05 00 00 00 ff ff ca c9 c9 07 00")
	emptyMessage = "\x00" // §7.2.3.6
)

func TestParserInflates(t *testing.T) {
	f := func(name string, stream []byte, want ...heard) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Helper()
			for _, cut := range [][][]byte{{stream}, bytewise(stream)} {
				got, rest, err := listen(compressing(100_000), cut...)
				if err != nil || len(rest) > 0 || !slices.Equal(got, want) {
					t.Fatalf("in %d pieces: got %.200q, %v, %d bytes left; want %.200q", len(cut), got, err, len(rest), want)
				}
			}
			wantRelayed(t, compressing(100_000).Rules, stream, want, nil)
		})
	}
	hello := heard{OpText, "Hello"}
	f("one block", compressed(OpText, true, oneBlock), hello)
	f("a block that is not compressed", compressed(OpText, true, storedBlock), hello)
	f("a block that says that it is the last", compressed(OpText, true, finalBlock), hello)
	f("the same, and nothing behind it", compressed(OpText, true, finalBlock[:7]), hello)
	f("two that do", compressed(OpText, true, finalBlock[:7]+finalBlock), heard{OpText, "HelloHello"})
	f("blocks behind one that does", compressed(OpBinary, true, finalBlock[:7]+twoBlocks), heard{OpBinary, "HelloHello"})
	f("two blocks", compressed(OpText, true, twoBlocks), hello)
	f("a long message", compressed(OpText, true, deflated(strings.Repeat("é", 50_000))), heard{OpText, strings.Repeat("é", 50_000)})
	f("an empty message", compressed(OpText, true, emptyMessage), heard{OpText, ""})
	f("fragments", join(compressed(OpText, false, oneBlock[:3]), client(OpContinuation, true, oneBlock[3:])), hello)
	f("empty fragments", join(compressed(OpText, false, ""), client(OpContinuation, false, oneBlock), client(OpContinuation, true, "")), hello)
	f("control frames between fragments", join(compressed(OpText, false, oneBlock[:3]), client(OpPing, true, "?"),
		client(OpContinuation, true, oneBlock[3:])), heard{OpPing, "?"}, hello)
	f("compressed and not, in turn", join(compressed(OpText, true, oneBlock), client(OpText, false, "a"), client(OpContinuation, true, "b"),
		compressed(OpText, false, oneBlock[:1]), client(OpContinuation, true, oneBlock[1:]), client(OpText, true, "c")),
		hello, heard{OpText, "ab"}, hello, heard{OpText, "c"})
	f("bytes", compressed(OpBinary, true, deflated("\xff\x00")), heard{OpBinary, "\xff\x00"})
	f("a character cut by fragments that are compressed", join(compressed(OpText, false, deflated("é")[:2]),
		client(OpContinuation, true, deflated("é")[2:])), heard{OpText, "é"})
}

func TestParserRefusesCompressed(t *testing.T) {
	const most = 1000
	f := func(name string, stream []byte, want *Error) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			t.Helper()
			messages, _, err := listen(compressing(most), stream)
			if err != want {
				t.Fatalf("got %v, want %v", err, want)
			}
			wantRelayed(t, compressing(most).Rules, stream, messages, want)
		})
	}
	bit := func(bits byte, frame []byte) []byte { frame[0] |= bits; return frame }
	f("on a continuation", join(compressed(OpText, false, oneBlock[:3]),
		bit(0x40, client(OpContinuation, true, oneBlock[3:]))), ErrReservedBits)
	f("on a continuation only", join(client(OpText, false, "a"), bit(0x40, client(OpContinuation, true, "b"))), ErrReservedBits)
	f("on a ping", bit(0x40, client(OpPing, true, "")), ErrReservedBits)
	f("on a close", bit(0x40, client(OpClose, true, "")), ErrReservedBits)
	f("with RSV2", bit(0x60, client(OpText, true, oneBlock)), ErrReservedBits)
	f("RSV3", bit(0x10, client(OpText, true, oneBlock)), ErrReservedBits)
	f("no deflate", compressed(OpText, true, "Hello"), ErrNotDeflate)
	f("nothing", compressed(OpText, true, ""), ErrNotDeflate)
	f("a reserved kind of block", compressed(OpBinary, true, "\x06\x00"), ErrNotDeflate)
	f("a distance beyond the beginning", compressed(OpBinary, true, unhex("02 02 00 00")), ErrNotDeflate)
	f("half a message", compressed(OpText, true, deflated(strings.Repeat("ab", 100))[:4]), ErrNotDeflate)
	f("not UTF-8", compressed(OpText, true, deflated("a\xff")), ErrNotUTF8)
	f("half a character", compressed(OpText, true, deflated("a\xe2\x82")), ErrNotUTF8)
	f("not UTF-8 in fragments", join(compressed(OpText, false, deflated("\xff")[:1]),
		client(OpContinuation, true, deflated("\xff")[1:])), ErrNotUTF8)
	f("a bomb", compressed(OpText, true, deflated(strings.Repeat("a", 900_000))), ErrTooBig)
	f("a byte too many", compressed(OpText, true, deflated(strings.Repeat("a", most+1))), ErrTooBig)
	f("a byte too many in two streams", compressed(OpText, true, strings.Repeat(finalBlock[:7], most/5)+deflated("!")), ErrTooBig)
	f("too many bytes before they are inflated", compressed(OpText, true, strings.Repeat("a", CompressedBound(most)+1)), ErrTooBig)
	if _, _, err := listen(compressing(most), compressed(OpText, true, deflated(strings.Repeat("a", most)))); err != nil {
		t.Errorf("the longest message: %v", err)
	}
	if _, _, err := listen(fromClient(most), compressed(OpText, true, oneBlock)); err != ErrReservedBits {
		t.Errorf("on a connection without compression: %v", err)
	}
}

// TestLongestThatDoesNotCompress: a message may be as long as any other, also if it becomes
// longer by what should make it shorter.
func TestLongestThatDoesNotCompress(t *testing.T) {
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	stored := make([]byte, 0, CompressedBound(len(noise)))
	for piece := range slices.Chunk(noise, 50) { // zlib's shortest, with its smallest memory, are longer
		stored = binary.LittleEndian.AppendUint16(append(stored, 0), uint16(len(piece)))
		stored = append(binary.LittleEndian.AppendUint16(stored, ^uint16(len(piece))), piece...)
	}
	stored = append(stored, 0)
	for name, payload := range map[string]string{"the library's": deflated(string(noise)), "in short blocks": string(stored)} {
		got, _, err := listen(compressing(len(noise)), compressed(OpBinary, true, payload))
		if err != nil || len(got) != 1 || got[0].payload != string(noise) {
			t.Errorf("%s, %d bytes: %v", name, len(payload), err)
		}
	}
}

// TestBombInflatesNoFurther: of a message that is too long, no more is restored than shows
// that.
func TestBombInflatesNoFurther(t *testing.T) {
	const most = 10_000
	p := compressing(most)
	listen(p, compressed(OpText, true, deflated(strings.Repeat("a", 5_000_000))))
	if f := p.Rules.Inflater; len(f.message) != most+1 || cap(f.message) > 2*most {
		t.Errorf("%d bytes are restored, in a buffer of %d; the limit is %d", len(f.message), cap(f.message), most)
	}
}

// hear is the messages in a server's frames, and which of them are compressed. gobwas
// inflates them.
func hear(t testing.TB, frames []byte) (messages []string, compressed []bool) {
	t.Helper()
	for r := bytes.NewReader(frames); r.Len() > 0; {
		frame, err := ws.ReadFrame(r)
		if err != nil {
			t.Fatal(err)
		}
		is, err := wsflate.IsCompressed(frame.Header)
		if err == nil {
			frame, err = wsflate.DecompressFrame(frame)
		}
		if err != nil {
			t.Fatal(err)
		}
		messages, compressed = append(messages, string(frame.Payload)), append(compressed, is)
	}
	return messages, compressed
}

func TestCompress(t *testing.T) {
	var d Deflater
	long, noise := strings.Repeat(`{"key":"value"}`, 5000), unhex("9f1c 75d3 e0b8 4a26")
	frames := join(AppendFrame(nil, OpText, []byte("before")), AppendFrame(nil, OpText, []byte("short")),
		AppendFrame(nil, OpText, []byte(long)), AppendFrame(nil, OpPing, []byte(strings.Repeat("p", 100))),
		AppendFrame(nil, OpBinary, []byte(noise)),
		AppendFrame(nil, OpText, nil), AppendFrame(nil, OpBinary, []byte(long[:300])))
	out := d.Compress(slices.Clone(frames), 8, 6, 15)
	messages, which := hear(t, out)
	if want := []string{"before", "short", long, strings.Repeat("p", 100), noise, "", long[:300]}; !slices.Equal(messages, want) {
		t.Errorf("%.300q", messages)
	}
	if want := []bool{false, false, true, false, false, false, true}; !slices.Equal(which, want) {
		t.Errorf("compressed are %v, want %v", which, want)
	}
	if len(out) > len(frames)/20 {
		t.Errorf("%d bytes of %d are left", len(out), len(frames))
	}
}

// TestCompressForAWindow: no distance is longer than the client's window.
func TestCompressForAWindow(t *testing.T) {
	var text strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&text, `{"id":%d,"square":%d}`, i, i*i)
	}
	for window := uint8(8); window <= 15; window++ {
		var d Deflater
		frame := AppendFrame(nil, OpText, []byte(text.String()))
		out := d.Compress(slices.Clone(frame), 0, 1, window)
		if messages, which := hear(t, out); len(messages) != 1 || messages[0] != text.String() || !which[0] {
			t.Fatalf("window %d: %.100q", window, messages)
		}
		_, n, _ := decodeHeader(out, &Rules{Inflater: &Inflater{}})
		in, left := bytes.NewReader(append(out[n:], inflateTail...)), text.Len()
		for left > 0 && window < fullWindow { // a new reader refuses distances to what was before it
			piece := make([]byte, min(1<<window, left))
			if _, err := io.ReadFull(flate.NewReader(in), piece); err != nil {
				t.Fatalf("window %d: %v, %d bytes before the end", window, err, left)
			}
			left -= len(piece)
		}
	}
}

// TestCompressingAllocatesNothing: of both directions, in the steady state.
func TestCompressingAllocatesNothing(t *testing.T) {
	for _, size := range []int{100, 1000, 60_000} {
		message := strings.Repeat(`{"id":12345,"name":"somebody"},`, size/31)
		frame := AppendFrame(nil, OpText, []byte(message))
		in := compressed(OpText, true, deflated(message))
		buf, p, d := make([]byte, len(frame)+len(in)), compressing(size), &Deflater{}
		n := testing.AllocsPerRun(50, func() {
			d.Compress(buf[:copy(buf, frame)], 0, 1, 15)
			d.Compress(buf[:copy(buf, frame)], 0, 1, 10)
			m, _, err := p.Next(buf[:copy(buf, in)])
			if err != nil || len(m.Payload) != len(message) {
				t.Fatal(err)
			}
		})
		if n > 0 {
			t.Errorf("%d bytes: %v allocations", size, n)
		}
	}
}

// FuzzInflate compares with the standard library, which has another decoder, and with
// gobwas/ws, on any bytes.
func FuzzInflate(f *testing.F) {
	for _, seed := range []string{oneBlock, storedBlock, finalBlock, twoBlocks, emptyMessage, "", finalBlock[:7] + twoBlocks,
		deflated(strings.Repeat("abc", 1000)), deflated("\xff"), "\x06"} {
		f.Add([]byte(seed))
	}
	const most = 5000
	f.Fuzz(func(t *testing.T, payload []byte) {
		var f Inflater
		got, err := f.inflate(payload, most)
		want, wantErr := inflateByStd(payload, most)
		if err != wantErr || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("got %.100q, %v; the standard library says %.100q, %v", got, err, want, wantErr)
		}
		if err != nil {
			return
		}
		var d Deflater
		messages, _ := hear(t, d.Compress(AppendFrame(nil, OpBinary, got), 0, 1, 8+uint8(len(payload)%8)))
		if messages[0] != string(got) {
			t.Fatalf("%.100q comes back as %.100q", got, messages)
		}
	})
}

func inflateByStd(payload []byte, most int) (message []byte, err error) {
	in := bytes.NewReader(append(slices.Clone(payload), inflateTail...))
	for {
		b, err := io.ReadAll(io.LimitReader(flate.NewReader(in), int64(most+1-len(message))))
		message = append(message, b...)
		switch {
		case len(message) > most:
			return nil, ErrTooBig
		case err != nil:
			return nil, ErrNotDeflate
		case in.Len() == 0 || in.Len() == len(inflateTail):
			return message, nil
		}
	}
}

// FuzzCompressedParser is FuzzParser with compression; and a text message that compresses
// comes back.
func FuzzCompressedParser(f *testing.F) {
	f.Add(compressed(OpText, true, oneBlock), []byte{3})
	f.Add(join(compressed(OpText, false, finalBlock), client(OpPing, true, "x"), client(OpContinuation, true, oneBlock)), []byte{1, 2, 3})
	f.Add(join(compressed(OpBinary, true, deflated("a")), client(OpText, true, "b"), compressed(OpText, true, "c")), []byte{9})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		want, wantRest, wantErr := listen(compressing(1000), stream)
		chunks := cutUp(stream, cuts)
		for name, hear := range map[string]func() ([]heard, []byte, error){
			"cut":   func() ([]heard, []byte, error) { return listen(compressing(1000), chunks...) },
			"moved": func() ([]heard, []byte, error) { return relay(compressing(1000).Rules, chunks...) },
		} {
			got, rest, err := hear()
			if !slices.Equal(got, want) || err != wantErr || err == nil && !bytes.Equal(rest, wantRest) {
				t.Fatalf("%s: %q, %v; uncut: %q, %v", name, got, err, want, wantErr)
			}
		}
		for _, m := range want {
			if m.op == OpText && !utf8.ValidString(m.payload) || len(m.payload) > 1000 {
				t.Fatalf("message %q", m.payload)
			}
		}
	})
}
