package main

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const (
	// logMemory bounds the lines in memory: half of it gathers while the other half is
	// written. 10,000 connections a second write 7 MB of lines, so that a reader may
	// stand still for 300 ms then, and for minutes on a quiet server. A drain of 10,000
	// clients writes 3.5 MB at once.
	logMemory = 4 << 20
	// logDelay is how long lines gather, so that many are written at once.
	logDelay = 20 * time.Millisecond
	// busyLogBytes is how much makes the writer expect more, and stay awake for one more
	// logDelay: on a busy server no loop has to wake it.
	busyLogBytes = 1 << 10
	// idleLogBytes is the most memory that each half keeps while nothing is written.
	idleLogBytes = 64 << 10
	// logExitPatience is how long the exit waits for the last lines to be written.
	logExitPatience = time.Second
)

// A logQueue takes log lines into memory and writes them on a goroutine of its own, so
// that whoever logs never waits for the log's reader. Lines that find the memory full,
// or that cannot be written, are dropped and counted. A line says how many, as soon as
// one gets through. It is safe for concurrent use.
type logQueue struct {
	// Fixed after newLogQueue.
	sink    lineSink
	format  func(lines []byte) []byte   // nil: as they are
	notice  func(dropped uint64) []byte // the line that stands where others are missing
	first   chan struct{}               // wakes the writer; one for each time that it sleeps
	hurry   chan struct{}               // ends the writer's logDelay
	closing chan struct{}
	done    chan struct{} // run has returned

	// Atomic.
	dropped atomic.Uint64 // lines, since the start

	// Owned by run.
	spare   []byte // the other half of the memory
	busy    bool   // the last batch was a large one
	failing bool   // the last batch did not go out

	// Guarded by mu, which is only held to copy memory.
	mu        sync.Mutex
	pending   []byte // lines that wait
	asleep    bool   // run waits for first
	gapBefore uint64 // lines dropped before the first of pending
	gapAfter  uint64 // lines dropped behind the last of pending
}

func newLogQueue(out io.Writer, notice func(uint64) []byte) *logQueue {
	return &logQueue{
		sink: lineSink{out: out}, notice: notice,
		first: make(chan struct{}, 1), hurry: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
}

// Write implements io.Writer.
func (q *logQueue) Write(line []byte) (int, error) { return q.WriteLevel(zerolog.InfoLevel, line) }

// WriteLevel implements zerolog.LevelWriter: it takes one line and never waits. A
// warning or an error does not gather with others: the writer begins at once.
func (q *logQueue) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	wake, hurry := q.add(line, level >= zerolog.WarnLevel)
	if wake {
		q.first <- struct{}{} // never full: add says it once for each sleep
	}
	if hurry {
		select {
		case q.hurry <- struct{}{}:
		default: // the writer hurries already
		}
	}
	return len(line), nil
}

// add takes a line, or drops it. After a dropped line all are dropped until the writer
// has taken what waits, so that the gap is in one place.
func (q *logQueue) add(line []byte, urgent bool) (wake, hurry bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wake, q.asleep = q.asleep, false
	if q.gapAfter > 0 || len(q.pending)+len(line) > logMemory/2 {
		q.gapAfter++
		q.dropped.Add(1)
		return wake, false
	}
	const much = logMemory / 4
	before := len(q.pending)
	q.pending = append(q.pending, line...)
	return wake, urgent || before < much && len(q.pending) >= much
}

// Close writes what waits, for logExitPatience at the most.
func (q *logQueue) Close() {
	close(q.closing)
	select {
	case <-q.done:
	case <-time.After(logExitPatience):
	}
}

// run writes until Close. It sleeps while there is nothing to write.
func (q *logQueue) run() {
	defer close(q.done)
	for q.gather() {
		q.writeBatch()
	}
	for q.writeBatch() {
	}
}

// gather waits until lines have gathered; false is the end.
func (q *logQueue) gather() bool {
	if q.fallAsleep() {
		select {
		case <-q.first:
		case <-q.closing:
			return false
		}
	}
	delay := time.NewTimer(logDelay)
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-q.hurry:
	case <-q.closing:
		return false
	}
	return true
}

// fallAsleep reports whether the writer may wait for the next line. It may not while a
// gap has to be told, unless telling has just failed.
func (q *logQueue) fallAsleep() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy || len(q.pending) > 0 || q.gapAfter > 0 || q.gapBefore > 0 && !q.failing {
		return false
	}
	if cap(q.pending) > idleLogBytes {
		q.pending = nil
	}
	if cap(q.spare) > idleLogBytes {
		q.spare = nil
	}
	q.asleep = true
	return true
}

// writeBatch writes what has gathered, and reports whether something went out.
func (q *logQueue) writeBatch() bool {
	lines, gap := q.take()
	q.busy = len(lines) >= busyLogBytes
	if len(lines) == 0 && gap == 0 {
		return false
	}
	untold, lost := gap, 0
	if gap == 0 || q.sink.write(q.text(q.notice(gap))) == 0 {
		untold, lost = 0, q.sink.write(q.text(lines))
	} else {
		lost = countLines(lines)
	}
	q.failing = untold > 0 || lost > 0
	if q.failing {
		q.lose(untold, uint64(lost))
	}
	return !q.failing
}

// take returns the lines that wait, valid until the next call, and how many were dropped
// before them.
func (q *logQueue) take() (lines []byte, gap uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, gap = q.pending, q.gapBefore
	q.pending, q.spare = q.spare[:0], lines
	q.gapBefore, q.gapAfter = q.gapAfter, 0
	return lines, gap
}

// lose counts lines that could not be written, and those of a gap that could not be told.
func (q *logQueue) lose(untold, lost uint64) {
	q.dropped.Add(lost)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gapBefore += untold + lost
}

func (q *logQueue) text(lines []byte) []byte {
	if q.format == nil {
		return lines
	}
	return q.format(lines)
}

// A lineSink writes whole lines, also when out fails in the middle of one and works
// again later.
type lineSink struct {
	out  io.Writer
	torn []byte // the rest of a line of which out has taken the beginning
}

// write returns how many lines out has not taken, and will not get.
func (s *lineSink) write(lines []byte) (lost int) {
	if len(s.torn) > 0 {
		n, err := s.out.Write(s.torn)
		s.torn = s.torn[n:]
		if err != nil {
			return countLines(lines)
		}
	}
	if len(lines) == 0 {
		return 0
	}
	n, err := s.out.Write(lines)
	if err == nil {
		return 0
	}
	rest := lines[n:]
	if n > 0 && lines[n-1] != '\n' {
		end := bytes.IndexByte(rest, '\n') + 1
		s.torn, rest = bytes.Clone(rest[:end]), rest[end:]
	}
	return countLines(rest)
}

func countLines(text []byte) int { return bytes.Count(text, []byte{'\n'}) }

// A descriptor is a file that another program may have set to either mode, blocking or
// not, at any time: a pipe and a terminal are shared. See O_NONBLOCK in open(2).
type descriptor int

// Write implements io.Writer. It waits for as long as it takes.
func (d descriptor) Write(text []byte) (n int, err error) {
	for n < len(text) {
		written, err := unix.Write(int(d), text[n:])
		n += max(written, 0)
		switch err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			unix.Poll([]unix.PollFd{{Fd: int32(d), Events: unix.POLLOUT}}, -1)
		default:
			return n, err
		}
	}
	return n, nil
}
