package main

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// logDelay is how long a line may wait in memory, to be written together with others.
const logDelay = 100 * time.Millisecond

// newLogger returns the process's log, whose lines gather in a buffer; Flush
// writes them. Warnings and errors are written at once.
func newLogger(config *Config, out *os.File) (zerolog.Logger, *logBuffer) {
	zerolog.TimestampFieldName = "timestamp"
	zerolog.MessageFieldName = "event"
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
	zerolog.LevelFieldMarshalFunc = func(l zerolog.Level) string { return strings.ToUpper(l.String()) }

	buffer := &logBuffer{out: out, buf: make([]byte, 0, logBufferBytes+longestLine)}
	buffer.timer = time.AfterFunc(logDelay, buffer.Flush)
	if config.LogFormat == "console" || config.LogFormat == "auto" && isTerminal(out) {
		buffer.out = &zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly, FieldsExclude: []string{"service"}, FieldsOrder: []string{"url"}}
		buffer.lines = true
	}
	level, err := zerolog.ParseLevel(config.LogLevel)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	log := zerolog.New(buffer).Level(level).With().Timestamp().Str("service", "websocket-message-counter").Logger()
	return log, buffer
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// A logBuffer gathers log lines, so that opened and closed connections do not
// cost a write call each. It is safe for concurrent use.
type logBuffer struct {
	out   io.Writer
	lines bool // out takes one line at a time

	mu    sync.Mutex
	buf   []byte
	timer *time.Timer
}

const (
	logBufferBytes = 64 << 10
	longestLine    = 4 << 10 // of what is common; a longer one makes the buffer grow
)

// WriteLevel implements zerolog.LevelWriter.
func (b *logBuffer) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	n, err := b.Write(line)
	if level >= zerolog.WarnLevel {
		b.Flush()
	}
	return n, err
}

// Write takes one line.
func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines {
		return b.out.Write(line)
	}
	if len(b.buf) == 0 {
		b.timer.Reset(logDelay)
	}
	b.buf = append(b.buf, line...)
	if len(b.buf) >= logBufferBytes {
		b.flush()
	}
	return len(line), nil
}

// Flush writes what has gathered. It is called before every exit.
func (b *logBuffer) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

func (b *logBuffer) flush() {
	if len(b.buf) == 0 {
		return
	}
	// There is nobody to tell that the log cannot be written.
	b.out.Write(b.buf)
	b.buf = b.buf[:0]
}
