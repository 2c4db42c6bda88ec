package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// An outlet is where a log goes to. It counts what would be system calls.
type outlet struct {
	mu    sync.Mutex // Held by whoever wants the writer to wait.
	fail  func(text []byte) (taken int, err error)
	calls int
	text  bytes.Buffer
}

// Write implements io.Writer.
func (o *outlet) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	n, err := len(text), error(nil)
	if o.fail != nil {
		n, err = o.fail(text)
	}
	o.text.Write(text[:n])
	return n, err
}

func (o *outlet) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// startQueue starts a log that writes to out.
func startQueue(out io.Writer) (zerolog.Logger, *logQueue) {
	queue := newLogQueue(out, droppedLine)
	go queue.run()
	return logTo(queue), queue
}

// finish closes the log and waits until all is written, however busy the machine is.
func finish(t testing.TB, queue *logQueue) {
	t.Helper()
	queue.Close()
	select {
	case <-queue.done:
	case <-time.After(patience):
		t.Fatal("the writer does not end")
	}
}

// A numbered is a line of these tests: its number, or how many are missing.
type numbered struct {
	Event   string
	N       int
	Dropped int
}

func numberedLines(t testing.TB, text string) (lines []numbered) {
	t.Helper()
	for line := range strings.Lines(text) {
		l := numbered{N: -1}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v, in %q", err, line)
		}
		lines = append(lines, l)
	}
	return lines
}

// wantNumbers checks that each of the lines 0, 1, 2, … is there, or counted as dropped
// where it is missing, and returns how many of each there are.
func wantNumbers(t testing.TB, text string) (written, dropped int) {
	t.Helper()
	next := 0
	for _, l := range numberedLines(t, text) {
		if l.Event == "log_lines_dropped" {
			next += l.Dropped
			dropped += l.Dropped
			continue
		}
		if l.N != next {
			t.Fatalf("line %d where %d is to be", l.N, next)
		}
		next++
		written++
	}
	return written, dropped
}

// TestLogGathersLines: one write call for many lines.
func TestLogGathersLines(t *testing.T) {
	out := &outlet{}
	queue := newLogQueue(out, droppedLine)
	log := logTo(queue)
	const lines = 3000
	for i := range lines {
		log.Info().Int("n", i).Msg("websocket_connected")
	}
	queue.writeBatch()
	if written, _ := wantNumbers(t, out.String()); written != lines || out.calls != 1 {
		t.Errorf("%d lines of %d, in %d write calls", written, lines, out.calls)
	}
}

func TestLogWritesByItself(t *testing.T) {
	out := &outlet{}
	log, queue := startQueue(out)
	defer queue.Close()
	for _, level := range []zerolog.Level{zerolog.InfoLevel, zerolog.ErrorLevel, zerolog.InfoLevel} {
		before := len(out.String())
		log.WithLevel(level).Msg("alone")
		eventually(t, "the line is written", func() bool { return len(out.String()) > before })
		eventually(t, "the writer sleeps", func() bool {
			queue.mu.Lock()
			defer queue.mu.Unlock()
			return queue.asleep
		})
	}
}

// TestLogWakesTheWriterOnce: whoever logs wakes the writer for the first line, for a
// warning, and when much has gathered; not for each line, which would be a system call.
func TestLogWakesTheWriterOnce(t *testing.T) {
	queue := newLogQueue(io.Discard, droppedLine) // its writer does not run
	line := bytes.Repeat([]byte{'x'}, 350)
	f := func(level zerolog.Level, n, wantFirst, wantHurry int) {
		t.Helper()
		var first, hurry int
		for range n {
			queue.WriteLevel(level, line)
			select {
			case <-queue.first:
				first++
			default:
			}
			select {
			case <-queue.hurry:
				hurry++
			default:
			}
		}
		if first != wantFirst || hurry != wantHurry {
			t.Errorf("%d lines wake the writer %d times and hurry it %d times, want %d and %d", n, first, hurry, wantFirst, wantHurry)
		}
	}
	f(zerolog.InfoLevel, 100, 0, 0)
	f(zerolog.WarnLevel, 1, 0, 1)
	queue.take()
	if !queue.fallAsleep() {
		t.Fatal("the writer stays awake with nothing to write")
	}
	f(zerolog.InfoLevel, 400, 1, 0) // 10,000 connections a second, for logDelay
	f(zerolog.InfoLevel, logMemory/len(line), 0, 1)
	if queue.dropped.Load() == 0 || len(queue.pending) > logMemory/2 {
		t.Errorf("%d bytes wait, %d lines are dropped", len(queue.pending), queue.dropped.Load())
	}
}

// TestLogBusyWriterStaysAwake: on a busy server no loop has to wake it.
func TestLogBusyWriterStaysAwake(t *testing.T) {
	queue := newLogQueue(io.Discard, droppedLine)
	queue.Write(bytes.Repeat([]byte{'x'}, busyLogBytes))
	queue.writeBatch()
	if queue.fallAsleep() {
		t.Error("the writer sleeps at once after many lines")
	}
	queue.writeBatch()
	if !queue.fallAsleep() {
		t.Error("the writer stays awake after nothing has come")
	}
}

// TestLogOfAReaderThatStandsStill: nobody waits, the memory is bounded, and what is missing is told
// where it is missing.
func TestLogOfAReaderThatStandsStill(t *testing.T) {
	out := &outlet{}
	log, queue := startQueue(out)
	n, long := 0, strings.Repeat("x", 2000)
	flood := func() {
		before := queue.dropped.Load()
		for ; queue.dropped.Load() < before+100; n++ {
			log.Error().Int("n", n).Str("text", long).Msg("x")
		}
	}
	out.mu.Lock()
	flood()
	queue.mu.Lock()
	if size := len(queue.pending) + len(queue.spare); size > logMemory {
		t.Errorf("%d bytes wait, want %d at the most", size, logMemory)
	}
	queue.mu.Unlock()
	out.mu.Unlock()
	eventually(t, "the gap is told without a further line", func() bool { return strings.Contains(out.String(), "log_lines_dropped") })
	out.mu.Lock()
	flood()
	out.mu.Unlock()
	eventually(t, "all is written", func() bool {
		written, dropped := wantNumbers(t, out.String())
		return written+dropped == n
	})
	log.Info().Int("n", n).Msg("x")
	finish(t, queue)
	written, dropped := wantNumbers(t, out.String())
	if dropped != int(queue.dropped.Load()) || written+dropped != n+1 {
		t.Errorf("%d lines written and %d told as dropped of %d; counted as dropped: %d", written, dropped, n+1, queue.dropped.Load())
	}
	queue.busy = false
	queue.fallAsleep()
	if size := cap(queue.pending) + cap(queue.spare); size > 2*idleLogBytes {
		t.Errorf("the idle log keeps %d bytes", size)
	}
}

// TestLogGapIsInOnePlace: a short line that would fit does not stand before the gap that
// it belongs behind.
func TestLogGapIsInOnePlace(t *testing.T) {
	out := &outlet{}
	queue := newLogQueue(out, droppedLine)
	log := logTo(queue)
	log.Info().Int("n", 0).Str("text", strings.Repeat("x", logMemory/2-1000)).Msg("x")
	log.Info().Int("n", 1).Str("text", strings.Repeat("x", 1000)).Msg("x")
	n := 2
	for range 2 {
		log.Info().Int("n", n).Msg("x")
		n++
		queue.writeBatch()
	}
	written, dropped := wantNumbers(t, out.String())
	if written+dropped != n || dropped != 2 {
		t.Errorf("%d lines written and %d told as dropped, of %d", written, dropped, n)
	}
}

// TestLogOfALineThatIsTooLong: what can never be written is told, too.
func TestLogOfALineThatIsTooLong(t *testing.T) {
	out := &outlet{}
	log, queue := startQueue(out)
	log.Info().Str("text", strings.Repeat("x", logMemory)).Msg("x")
	eventually(t, "the line is told as dropped", func() bool { _, dropped := wantNumbers(t, out.String()); return dropped == 1 })
	log.Info().Int("n", 1).Msg("x")
	finish(t, queue)
	if written, _ := wantNumbers(t, out.String()); written != 1 {
		t.Errorf("the line behind it is missing: %s", out.String())
	}
}

// TestLogOfAWriterThatFails: whenever and in the middle of whatever writing fails, each
// line is whole and in its place, or counted.
func TestLogOfAWriterThatFails(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	out := &outlet{fail: func(text []byte) (int, error) {
		if random.IntN(2) == 0 {
			return len(text), nil
		}
		return random.IntN(len(text) + 1), unix.ENOSPC
	}}
	queue := newLogQueue(out, droppedLine)
	log := logTo(queue)
	const lines = 10_000
	for n := range lines {
		log.Info().Int("n", n).Msg("x")
		if random.IntN(5) == 0 {
			queue.writeBatch()
		}
	}
	out.fail = nil
	for queue.writeBatch() {
	}
	written, dropped := wantNumbers(t, out.String())
	if written+dropped != lines || dropped != int(queue.dropped.Load()) || written < lines/10 || dropped < lines/10 {
		t.Errorf("%d lines written and %d told as dropped of %d; counted as dropped: %d", written, dropped, lines, queue.dropped.Load())
	}
}

// TestLogOfManyGoroutines: under the race detector, with a reader that stands still now and then.
func TestLogOfManyGoroutines(t *testing.T) {
	out := &outlet{}
	log, queue := startQueue(out)
	const goroutines, each = 8, 5000
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for n := range each {
				if g == 0 && n%1000 == 0 {
					out.mu.Lock()
				} else if g == 0 && n%1000 == 500 {
					out.mu.Unlock()
				}
				log.Info().Int("g", g).Int("n", n).Msg("x")
			}
		})
	}
	all.Wait()
	finish(t, queue)
	last := make(map[int]int)
	written, dropped := 0, 0
	for line := range strings.Lines(out.String()) {
		var l struct{ G, N, Dropped int }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v, in %q", err, line)
		}
		if l.Dropped > 0 {
			dropped += l.Dropped
			continue
		}
		if before, ok := last[l.G]; ok && l.N <= before {
			t.Fatalf("line %d of goroutine %d follows %d", l.N, l.G, before)
		}
		last[l.G] = l.N
		written++
	}
	if written+dropped != goroutines*each {
		t.Errorf("%d lines written and %d told as dropped, of %d", written, dropped, goroutines*each)
	}
}

// TestDescriptorOfEitherMode: another program may set the pipe to non-blocking.
func TestDescriptorOfEitherMode(t *testing.T) {
	for _, nonblocking := range []bool{false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		fd := descriptor(w.Fd())
		if err := unix.SetNonblock(int(fd), nonblocking); err != nil {
			t.Fatal(err)
		}
		text := bytes.Repeat([]byte("0123456789"), 100_000) // more than a pipe holds
		go func() {
			fd.Write(text)
			w.Close()
		}()
		if read, err := io.ReadAll(r); err != nil || !bytes.Equal(read, text) {
			t.Errorf("non-blocking %v: %d bytes of %d, %v", nonblocking, len(read), len(text), err)
		}
	}
}

func TestDescriptorWithoutAReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if n, err := descriptor(w.Fd()).Write([]byte("x\n")); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestLogOfALibrary(t *testing.T) {
	out := &outlet{}
	log, queue := startQueue(out)
	io.WriteString(libraryLog{log}, "something \"odd\"\n")
	finish(t, queue)
	var line map[string]any
	err := json.Unmarshal([]byte(out.String()), &line)
	if err != nil || line["event"] != "library_message" || line["text"] != `something "odd"` {
		t.Errorf("%v: %q", err, out.String())
	}
}

func TestLogForATerminal(t *testing.T) {
	out := &outlet{}
	queue := newLogQueue(out, droppedLine)
	queue.format = newConsole().format
	log := logTo(queue)
	log.Info().Str("url", "http://localhost/").Msg("server_started")
	log.Warn().Msg("second")
	queue.gapBefore = 3
	queue.writeBatch()
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{"log_lines_dropped", "server_started", "second"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) || strings.Contains(lines[i], "{") {
			t.Fatalf("got %q", lines)
		}
	}
}

// BenchmarkLog is what a line costs whoever logs, and how many write calls the writer
// makes of it.
func BenchmarkLog(b *testing.B) {
	out := &outlet{}
	log, queue := startQueue(out)
	lines := 0
	for b.Loop() {
		log.Info().Str("session_id", someSession).Str("client_ip", "192.0.2.1").Int("message_count", lines).Msg("websocket_connected")
		lines++
	}
	finish(b, queue)
	b.ReportMetric(float64(out.calls)/float64(lines), "writes/line")
	b.ReportMetric(float64(queue.dropped.Load())/float64(lines), "dropped/line")
}
