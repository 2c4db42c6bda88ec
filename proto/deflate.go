package proto

import (
	"bytes"
	"io"
	"slices"

	"github.com/klauspost/compress/flate"
)

// Compressed messages (permessage-deflate, RFC 7692). Each message is compressed by
// itself, so nothing is kept for a connection between messages, and connections can share
// a Deflater and an Inflater.

const (
	// rsv1 is the reserved bit of a header that says that the message is compressed (§6).
	rsv1 = 4
	// deflateLevel is the library's, from 1 (fast) to 9 (short).
	deflateLevel = 3
	// fullWindow is the window of deflate in bits: of 32 KiB (RFC 1951 §2).
	fullWindow = 15
	// keptBuffer is how much memory of the longest message so far is kept for the next.
	keptBuffer = 1 << 20
)

// flushTail is the end of what a flush of deflate gives. A message goes without it (§7.2.1).
const flushTail = "\x00\x00\xff\xff"

// inflateTail is what a message lacks: the end of its flush, and a last block, so that the
// library sees the end of the stream.
const inflateTail = flushTail + "\x01\x00\x00\xff\xff"

// CompressedBound is how long a message of so many bytes can be when it is compressed. It
// is zlib's deflateBound for the settings that compress the least.
func CompressedBound(length int) int { return length + length/8 + length/64 + 18 }

// A Deflater compresses messages. Its memory, about a megabyte, is made when it first does.
type Deflater struct {
	writer *flate.Writer
	frame  frameWriter
}

// Compress compresses the frames in buf[from:], as a server appends them, and returns buf
// with what has become of them. Messages that are shorter than size stay as they are, and
// those that would not become shorter. window is the client's, in bits.
func (d *Deflater) Compress(buf []byte, from, size int, window uint8) []byte {
	to := from
	for from < len(buf) {
		h, n, err := decodeHeader(buf[from:], &serverFrames)
		if err != nil || n == 0 || h.Length > int64(len(buf)-from-n) {
			panic("BUG: what is to be compressed is no whole frames")
		}
		frame := buf[from : from+n+int(h.Length)]
		from += len(frame)
		if h.Fin && (h.OpCode == OpText || h.OpCode == OpBinary) && h.Length >= int64(max(size, 1)) {
			frame = d.compress(h.OpCode, frame, frame[n:], window)
		}
		to += copy(buf[to:], frame)
	}
	return buf[:to]
}

var serverFrames = Rules{}

// compress returns the frame with its payload compressed, or as it was if it would not
// become shorter. It is valid until the next call.
func (d *Deflater) compress(op OpCode, frame, payload []byte, window uint8) []byte {
	if cap(d.frame) > keptBuffer {
		d.frame = nil
	}
	d.frame = append(d.frame[:0], make([]byte, maxHeaderBytes)...)
	d.deflate(payload, window)
	length := len(d.frame) - maxHeaderBytes - len(flushTail)
	if length >= len(payload) {
		return frame
	}
	var room [maxHeaderBytes]byte
	header := appendHeader(room[:0], op, true, false, length)
	header[0] |= rsv1 << 4
	compressed := d.frame[maxHeaderBytes-len(header) : maxHeaderBytes+length]
	copy(compressed, header)
	return compressed
}

// deflate appends the payload to the frame. The library knows the full window only. For a
// smaller one, pieces as long as the window are compressed each by itself: nothing in a
// piece is further away than its beginning.
func (d *Deflater) deflate(payload []byte, window uint8) {
	if d.writer == nil {
		d.writer, _ = flate.NewWriter(nil, deflateLevel) // it refuses only levels
	}
	piece := len(payload)
	if window < fullWindow {
		piece = 1 << window
	}
	for piece := range slices.Chunk(payload, piece) {
		d.writer.Reset(&d.frame)
		d.writer.Write(piece) // it fails only where its writer does
		d.writer.Flush()
	}
}

// A frameWriter is appended to.
type frameWriter []byte

// Write implements io.Writer.
func (w *frameWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// An Inflater restores compressed messages. Its memory is made when it first does.
type Inflater struct {
	reader  inflateReader
	in      bytes.Reader
	input   []byte // what in reads: the library is quicker with it than with other readers
	message []byte
}

type inflateReader interface {
	io.Reader
	flate.Resetter
}

// inflate restores a message of at most so many bytes. The message is valid until the next
// call.
func (f *Inflater) inflate(payload []byte, most int) (message []byte, err error) {
	f.prepare(payload)
	for left := -1; left != 0 && left != len(inflateTail); left = f.in.Len() {
		// A block that says that it is the last ends a stream, and another may follow (§7.2.3.4).
		f.reader.Reset(&f.in, nil)
		if err := f.readStream(most); err != nil {
			return nil, err
		}
	}
	return f.message, nil
}

func (f *Inflater) prepare(payload []byte) {
	if f.reader == nil {
		f.reader = flate.NewReader(&f.in).(inflateReader)
	}
	if cap(f.input) > keptBuffer {
		f.input = nil
	}
	if cap(f.message) > keptBuffer {
		f.message = nil
	}
	f.input = append(append(f.input[:0], payload...), inflateTail...)
	f.in.Reset(f.input)
	f.message = f.message[:0]
}

// readStream appends what a stream of deflate has, up to one byte more than most.
func (f *Inflater) readStream(most int) error {
	const least = 4 << 10
	for {
		if len(f.message) == cap(f.message) {
			f.message = slices.Grow(f.message, min(max(len(f.message), least), most+1-len(f.message)))
		}
		n, err := f.reader.Read(f.message[len(f.message):min(cap(f.message), most+1)])
		f.message = f.message[:len(f.message)+n]
		switch {
		case len(f.message) > most:
			return ErrTooBig
		case err == io.EOF:
			return nil
		case err != nil:
			return ErrNotDeflate
		}
	}
}
