package main

import (
	"bytes"
	"io"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// init names the fields of a line, for all of the process: zerolog knows no other way.
func init() {
	zerolog.TimestampFieldName = "timestamp"
	zerolog.MessageFieldName = "event"
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
	zerolog.LevelFieldMarshalFunc = func(l zerolog.Level) string { return strings.ToUpper(l.String()) }
}

// newLogger returns the process's log and the queue that its lines go through. Close of
// the queue is called before every exit.
func newLogger(config *Config, out descriptor) (zerolog.Logger, *logQueue) {
	queue := newLogQueue(out, droppedLine)
	if config.LogFormat == "console" || config.LogFormat == "auto" && isTerminal(out) {
		queue.format = newConsole().format
	}
	go queue.run()
	level, err := zerolog.ParseLevel(config.LogLevel)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return logTo(queue).Level(level), queue
}

func logTo(out io.Writer) zerolog.Logger {
	return zerolog.New(out).With().Timestamp().Str("service", "websocket-message-counter").Logger()
}

// droppedLine is the line that stands where others are missing.
func droppedLine(lines uint64) []byte {
	var line bytes.Buffer
	log := logTo(&line)
	log.Warn().Uint64("dropped", lines).Msg("log_lines_dropped")
	return line.Bytes()
}

func isTerminal(d descriptor) bool {
	_, err := unix.IoctlGetTermios(int(d), unix.TCGETS)
	return err == nil
}

// A console turns lines of JSON into text for a terminal.
type console struct {
	text   bytes.Buffer
	writer zerolog.ConsoleWriter
}

func newConsole() *console {
	c := &console{}
	c.writer = zerolog.ConsoleWriter{Out: &c.text, TimeFormat: time.TimeOnly, FieldsExclude: []string{"service"}, FieldsOrder: []string{"url"}}
	return c
}

// format returns the text of whole lines. It is valid until the next call.
func (c *console) format(lines []byte) []byte {
	c.text.Reset()
	for line := range bytes.Lines(lines) {
		c.writer.Write(line)
	}
	return c.text.Bytes()
}

// libraryLog takes what libraries print with the standard log package. On standard
// error it could make them wait.
type libraryLog struct{ log zerolog.Logger }

// Write implements io.Writer: one call is one message.
func (l libraryLog) Write(text []byte) (int, error) {
	l.log.Warn().Str("text", strings.TrimSpace(string(text))).Msg("library_message")
	return len(text), nil
}
