package engine

import (
	"math/bits"
	"time"
)

// A backlog is the answers to a client that its socket has not taken yet. The front of
// it may be sent; the rest waits for the store. A connection without such answers has
// none: a nil backlog is empty.
//
// At all times 0 ≤ due ≤ sendable ≤ committing ≤ length.
type backlog struct {
	buf        []byte
	start      int // the bytes of buf before it are sent
	due        int // bytes that must be sent before the deadline
	sendable   int // bytes that may be sent
	committing int // bytes that may be sent once the commit under way is done

	deadline time.Duration // for the bytes that are due, while the connection is open
}

// length is how many bytes wait.
func (b *backlog) length() int {
	if b == nil {
		return 0
	}
	return len(b.buf) - b.start
}

// held is how many of them wait for the store.
func (b *backlog) held() int {
	if b == nil {
		return 0
	}
	return b.length() - b.sendable
}

// ready are the bytes that may be sent; valid until the next call.
func (b *backlog) ready() []byte {
	if b == nil {
		return nil
	}
	return b.buf[b.start : b.start+b.sendable]
}

// all are the bytes that wait; valid until the next call.
func (b *backlog) all() []byte {
	if b == nil {
		return nil
	}
	return b.buf[b.start:]
}

// startCommit notes the bytes that endCommit will make sendable: all that wait now.
func (b *backlog) startCommit() {
	if b != nil {
		b.committing = b.length()
	}
}

// endCommit makes the bytes sendable that waited at startCommit, and returns how many
// they are.
func (b *backlog) endCommit() (n int) {
	if b == nil {
		return 0
	}
	n = b.committing - b.sendable
	b.sendable = b.committing
	return n
}

// A freeList keeps the backlogs that connections of a worker no longer need, for the
// next connections. Its classes are the sizes of buffers, powers of two.
type freeList struct {
	classes [classes][]*backlog
	bytes   int // of all buffers
}

const (
	smallestClass = 8 // 2⁸ bytes
	classes       = 9 // up to 64 KiB: longer buffers are left to the collector
	// freeBytes is how many bytes a worker keeps at the most.
	freeBytes = 512 << 10
)

// classOf is the class of the smallest buffer that n bytes fit into; it may be
// beyond the last.
func classOf(n int) int { return max(bits.Len(uint(max(n-1, 0))), smallestClass) - smallestClass }

// get returns an empty backlog into which n bytes fit.
func (f *freeList) get(n int) *backlog {
	class := classOf(n)
	if class >= classes {
		return &backlog{buf: make([]byte, 0, n)}
	}
	if kept := f.classes[class]; len(kept) > 0 {
		b := kept[len(kept)-1]
		kept[len(kept)-1] = nil
		f.classes[class] = kept[:len(kept)-1]
		f.bytes -= cap(b.buf)
		return b
	}
	return &backlog{buf: make([]byte, 0, 1<<(smallestClass+class))}
}

// put keeps a backlog that nobody uses any more.
func (f *freeList) put(b *backlog) {
	class := classOf(cap(b.buf))
	if class >= classes || cap(b.buf) != 1<<(smallestClass+class) || f.bytes+cap(b.buf) > freeBytes {
		return
	}
	*b = backlog{buf: b.buf[:0]}
	f.bytes += cap(b.buf)
	f.classes[class] = append(f.classes[class], b)
}

// add returns b with p behind it. Of p, the first sendable bytes may be sent,
// which is none unless all of b may.
func (f *freeList) add(b *backlog, p []byte, sendable int) *backlog {
	need := b.length() + len(p)
	switch {
	case len(p) == 0:
		return b
	case b == nil:
		b = f.get(need)
	case len(b.buf)+len(p) > cap(b.buf):
		b = f.move(b, need)
	}
	b.buf = append(b.buf, p...)
	b.sendable += sendable
	b.committing = max(b.committing, b.sendable)
	return b
}

// move returns b's content in a buffer of its own into which n bytes fit, and
// keeps b.
func (f *freeList) move(b *backlog, n int) *backlog {
	if n <= cap(b.buf)/2 { // most of it has left
		b.buf = b.buf[:copy(b.buf, b.buf[b.start:])]
		b.start = 0
		return b
	}
	if classOf(n) >= classes {
		n += n / 4 // grows by a share, or growing costs the square
	}
	moved := f.get(n)
	moved.buf = append(moved.buf, b.all()...)
	moved.due, moved.sendable, moved.committing, moved.deadline = b.due, b.sendable, b.committing, b.deadline
	f.put(b)
	return moved
}

// sent returns b, whose first n bytes have left; nil if nothing is left.
func (f *freeList) sent(b *backlog, n int) *backlog {
	if b == nil {
		return nil
	}
	b.start += n
	b.due = max(b.due-n, 0)
	b.sendable -= n
	b.committing -= n
	return f.ifAny(b)
}

// dropHeld returns b without what waits for the store, nil if nothing is left.
func (f *freeList) dropHeld(b *backlog) *backlog {
	if b == nil {
		return nil
	}
	b.buf = b.buf[:b.start+b.sendable]
	b.committing = b.sendable
	return f.ifAny(b)
}

func (f *freeList) ifAny(b *backlog) *backlog {
	if b.length() > 0 {
		return b
	}
	f.put(b)
	return nil
}
