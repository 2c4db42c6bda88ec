package engine

import (
	"bytes"
	"testing"
)

// A naive backlog: one entry for each byte.
type naiveBacklog struct {
	bytes                     []byte
	due, sendable, committing int
}

// FuzzBacklog holds backlogs of one free list to naive ones. Each pair of bytes is
// an operation on one of three and its size.
func FuzzBacklog(f *testing.F) {
	f.Add([]byte("\x00\x10\x03\x00\x00\x20\x04\x00\x05\x08\x06\x00"))
	f.Add([]byte("\x01\xff\x01\xff\x09\x80\x01\xff\x02\x40\x0a\x80\x06\x00\x00\x01"))
	f.Add([]byte("\x00\x40\x06\x00\x02\x10\x01\x20\x03\x00\x01\x10\x02\x08\x04\x00\x02\x20\x10\x30\x05\x00\x12\x08"))
	f.Add(bytes.Repeat([]byte("\x01\xff\x02\x20"), 300))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var free freeList
		var got [3]*backlog
		var want [3]naiveBacklog
		next := byte(0)
		ops = ops[:min(len(ops), 400)] // longer ones show nothing new, and take their time
		for ; len(ops) >= 2; ops = ops[2:] {
			which, n := int(ops[0]>>4)%3, int(ops[1])
			b, w := &got[which], &want[which]
			switch ops[0] & 15 % 7 {
			case 0: // what may be sent; only behind what may be
				if w.sendable == len(w.bytes) {
					*b = free.add(*b, w.grow(&next, n*16), n*16)
					w.sendable += n * 16
				}
			case 1: // what waits
				*b = free.add(*b, w.grow(&next, n*16), 0)
			case 2: // the socket takes some
				n = min(n*8, w.sendable)
				*b = free.sent(*b, n)
				w.bytes = w.bytes[n:]
				w.due, w.sendable, w.committing = max(w.due-n, 0), w.sendable-n, w.committing-n
			case 3:
				(*b).startCommit()
				w.committing = len(w.bytes)
			case 4:
				if freed := (*b).endCommit(); freed != w.committing-w.sendable {
					t.Fatalf("%d bytes become sendable, want %d", freed, w.committing-w.sendable)
				}
				w.sendable = w.committing
			case 5:
				*b = free.dropHeld(*b)
				w.bytes, w.committing = w.bytes[:w.sendable], w.sendable
			case 6:
				if *b != nil {
					(*b).due, w.due = (*b).sendable, w.sendable
				}
			}
			w.committing = max(w.committing, w.sendable)
			check(t, *b, w)
			if free.bytes > freeBytes {
				t.Fatalf("%d bytes are kept", free.bytes)
			}
		}
		for i := range got { // nobody has written into another one's buffer
			check(t, got[i], &want[i])
		}
	})
}

// grow puts n bytes behind it, and returns them.
func (w *naiveBacklog) grow(next *byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		*next++
		p[i] = *next
	}
	w.bytes = append(w.bytes, p...)
	return p
}

func check(t *testing.T, b *backlog, w *naiveBacklog) {
	t.Helper()
	if !bytes.Equal(b.all(), w.bytes) || b.length() != len(w.bytes) ||
		b.held() != len(w.bytes)-w.sendable || !bytes.Equal(b.ready(), w.bytes[:w.sendable]) {
		t.Fatalf("%d bytes, %d of them held; want %d, %d", b.length(), b.held(), len(w.bytes), len(w.bytes)-w.sendable)
	}
	if b == nil {
		return
	}
	if b.length() == 0 && len(w.bytes) > 0 || b.due != w.due || b.committing != w.committing {
		t.Fatalf("due %d, committing %d; want %d, %d", b.due, b.committing, w.due, w.committing)
	}
	if 0 > b.due || b.due > b.sendable || b.sendable > b.committing || b.committing > b.length() {
		t.Fatalf("0 ≤ due %d ≤ sendable %d ≤ committing %d ≤ length %d does not hold", b.due, b.sendable, b.committing, b.length())
	}
}

// TestFreeListAllocatesNothing: once there are buffers, a backlog is free.
func TestFreeListAllocatesNothing(t *testing.T) {
	var free freeList
	p := make([]byte, 1000)
	allocations := testing.AllocsPerRun(100, func() {
		b := free.add(nil, p, 500)
		b = free.add(b, p, 0)
		b.startCommit()
		b.endCommit()
		if free.sent(b, 2000) != nil {
			t.Error("something is left")
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}
