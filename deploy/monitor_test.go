package deploy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// monitor runs scripts/monitor.sh for some seconds on colours at stackHost.
func monitor(t testing.TB, dir string, addrs map[string]string, seconds string) (view string, code int) {
	t.Helper()
	out, err := monitorCommand(dir, addrs, seconds).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if strings.ContainsRune(string(out), '\x1b') {
		t.Errorf("codes for a terminal where there is none: %q", out)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(out), code
}

func monitorCommand(dir string, addrs map[string]string, arguments ...string) *exec.Cmd {
	port := func(colour string) string { return addrs[colour][strings.LastIndex(addrs[colour], ":")+1:] }
	cmd := exec.Command("../scripts/monitor.sh", arguments...)
	cmd.Env = append(os.Environ(), "TURNSTILE_RUN_DIR="+dir, "TURNSTILE_HOST="+stackHost, "TURNSTILE_BACKEND=processes",
		"TURNSTILE_BLUE_PORT="+port("blue"), "TURNSTILE_GREEN_PORT="+port("green"))
	return cmd
}

// row is what stands in a row of the last view, below blue and below green.
func row(t testing.TB, view, name string) (blue, green string) {
	t.Helper()
	rows := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+` .*$`).FindAllString(view, -1)
	if len(rows) == 0 {
		t.Fatalf("no row %q in\n%s", name, view)
	}
	line := fmt.Sprintf("%-60s", rows[len(rows)-1])
	return strings.TrimSpace(line[17:47]), strings.TrimSpace(line[47:])
}

// TestMonitor holds the terminal's view to servers that work, lack their store,
// and are down.
func TestMonitor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("blue.sock", filepath.Join(dir, "active.sock")); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{"blue": freeAddr(t), "green": freeAddr(t)}
	want := func(view, name, blue, green string) {
		t.Helper()
		match := func(pattern, text string) bool { return regexp.MustCompile("^(" + pattern + ")$").MatchString(text) }
		if b, g := row(t, view, name); !match(blue, b) || !match(green, g) {
			t.Errorf("%s: %q, %q, want %q, %q", name, b, g, blue, green)
		}
	}
	startServer(t, filepath.Join(dir, "log", "blue.log"), addrs["blue"])
	stop := chatter(t, addrs["blue"])
	var view string
	seconds := 1
	eventually(t, "there were messages in the last seconds", func() bool {
		seconds *= 2 // on a busy machine one view, which has no rates, may take two
		view, _ = monitor(t, dir, addrs, strconv.Itoa(seconds))
		blue, _ := row(t, view, "messages/s")
		return blue != "0"
	})
	want(view, "state", "ready", "down")
	want(view, "revision", "tested", "")
	want(view, "connections", "1", "")
	want(view, "messages/s", `[1-9][0-9.,]*`, "")
	want(view, "answer p50 / p99", `[0-9.]+ m?s / [0-9.]+ m?s`, "")
	want(view, "commits/s", "embedded store", "")
	want(view, "file descriptors", `\d+ of [0-9,]+`, "")
	if !strings.Contains(view, ", serves") || !strings.HasSuffix(view, "last warnings and errors: none\n\n") {
		t.Errorf("the view is\n%s", view)
	}
	stop()

	startServer(t, filepath.Join(dir, "log", "green.log"), addrs["green"], "-redis", "redis://"+stackHost+":1", "-store-timeout", "200ms")
	away := regexp.MustCompile(`\n  \d\d:\d\d:\d\d green ERROR store_unavailable dial tcp`)
	eventually(t, "the store is known to be away, and the error is shown", func() bool {
		view, _ = monitor(t, dir, addrs, "1")
		_, state := row(t, view, "state")
		return state == "not ready" && away.MatchString(view)
	})
	want(view, "messages/s", "0", "0")
	want(view, "commits/s", "embedded store", "0, out of reach")
}

// chatter sends a message every few milliseconds, until stop is called.
func chatter(t testing.TB, addr string) (stop func()) {
	t.Helper()
	w := dialWebSocket(t, addr)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.conn.Write(helloFrame)
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// A screen is what a program writes to a terminal.
type screen struct {
	terminal *os.File
	chunks   chan string // closed when the program has ended
	text     string
}

func startOnScreen(t *testing.T, cmd *exec.Cmd, rows, columns uint16) *screen {
	t.Helper()
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: columns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		terminal.Close()
	})
	s := &screen{terminal: terminal, chunks: make(chan string)}
	go func() {
		defer close(s.chunks)
		for buffer := make([]byte, 4096); ; {
			n, err := terminal.Read(buffer)
			if n > 0 {
				s.chunks <- string(buffer[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return s
}

// frame is the lines of the next view that is complete and fits, as they stand
// on a terminal of this size.
func (s *screen) frame(t *testing.T, rows, columns int) []string {
	t.Helper()
	deadline := time.After(patience)
	for {
		views := strings.Split(s.text, "\x1b[H")
		for _, view := range views[1 : max(len(views), 2)-1] {
			lines := strings.Split(strings.ReplaceAll(view, "\x1b[K", ""), "\r\n")
			if len(lines) == rows && fits(lines, columns) {
				s.text = ""
				return lines
			}
		}
		select {
		case chunk, ok := <-s.chunks:
			if s.text += chunk; !ok {
				t.Fatalf("it has ended: %q", s.text)
			}
		case <-deadline:
			t.Fatalf("no view of %d lines of at most %d columns in %q", rows, columns, s.text)
		}
	}
}

func fits(lines []string, columns int) bool {
	return !slices.ContainsFunc(lines, func(line string) bool { return len(line) > columns })
}

// rest is what is written to the end.
func (s *screen) rest(t *testing.T) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case chunk, ok := <-s.chunks:
			if s.text += chunk; !ok {
				return s.text
			}
		case <-deadline:
			t.Fatalf("it does not end: %q", s.text)
		}
	}
}

// The view fits the terminal, also when its size changes: no line is longer than
// the terminal is wide, none scrolls away, and what matters most is there.
func TestMonitorFitsTheTerminal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	log := strings.Repeat(
		`{"level":"ERROR","event":"broken","error":"`+strings.Repeat("long ", 40)+`","timestamp":"2026-01-02T15:04:05Z"}`+"\n", 9)
	if err := os.WriteFile(filepath.Join(dir, "log", "green.log"), []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{"blue": freeAddr(t), "green": freeAddr(t)}
	startServer(t, filepath.Join(dir, "log", "blue.log"), addrs["blue"])
	s := startOnScreen(t, monitorCommand(dir, addrs), 24, 80)
	most := []string{"Turnstile at", "blue:", "state", "connections", "messages/s", "answer p50 / p99", "errors/s", "last warnings and errors"}
	for _, size := range []struct {
		rows, columns int
		want          []string
	}{
		{24, 80, []string{"revision", "file descriptors", "  15:04:05 green ERROR broken long"}},
		{20, 60, []string{"commits/s", "memory", "  15:04:05 green ERROR broken long"}},
		{40, 120, []string{"revision", "file descriptors", "  15:04:05 green ERROR broken long"}},
	} {
		if err := pty.Setsize(s.terminal, &pty.Winsize{Rows: uint16(size.rows), Cols: uint16(size.columns)}); err != nil {
			t.Fatal(err)
		}
		lines := s.frame(t, size.rows, size.columns)
		if !strings.HasPrefix(lines[0], "Turnstile at") {
			t.Errorf("the first line is %q", lines[0])
		}
		for _, want := range append(size.want, most...) {
			if !slices.ContainsFunc(lines, func(line string) bool {
				return strings.HasPrefix(strings.TrimLeft(line, " "), strings.TrimLeft(want, " "))
			}) {
				t.Errorf("at %d lines of %d columns, no line begins with %q:\n%s", size.rows, size.columns, want, strings.Join(lines, "\n"))
			}
		}
	}
}

// Whatever ends the monitor, the terminal has its first screen and its cursor
// again; where the time ends it, the last view stays.
func TestMonitorLeavesTheTerminalAsItWas(t *testing.T) {
	t.Parallel()
	addrs := map[string]string{"blue": freeAddr(t), "green": freeAddr(t)}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		cmd := monitorCommand(t.TempDir(), addrs)
		s := startOnScreen(t, cmd, 24, 80)
		eventually(t, "it draws", func() bool { s.text += <-s.chunks; return strings.Contains(s.text, "file descriptors") })
		if !strings.HasPrefix(s.text, enterScreen) {
			t.Errorf("it begins with %q", s.text)
		}
		cmd.Process.Signal(signal)
		if rest := s.rest(t); !strings.HasSuffix(rest, leaveScreen) {
			t.Errorf("%v: it ends with %q", signal, rest)
		}
		cmd.Wait()
	}
	s := startOnScreen(t, monitorCommand(t.TempDir(), addrs, "1"), 24, 80)
	if _, last, ok := strings.Cut(s.rest(t), leaveScreen); !ok || !strings.HasPrefix(last, "Turnstile at") {
		t.Errorf("when its time is over, it leaves %q", last)
	}
}
