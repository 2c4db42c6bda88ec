package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// monitor runs scripts/monitor.sh for some seconds on colours at stackHost.
func monitor(t testing.TB, dir string, addrs map[string]string, seconds string) (view string, code int) {
	t.Helper()
	port := func(colour string) string { return addrs[colour][strings.LastIndex(addrs[colour], ":")+1:] }
	cmd := exec.Command("../scripts/monitor.sh", seconds)
	cmd.Env = append(os.Environ(), "TURNSTILE_RUN_DIR="+dir, "TURNSTILE_HOST="+stackHost, "TURNSTILE_BACKEND=processes",
		"TURNSTILE_BLUE_PORT="+port("blue"), "TURNSTILE_GREEN_PORT="+port("green"))
	out, err := cmd.CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// row is what stands in a row of the last view, below blue and below green.
func row(t testing.TB, view, name string) (blue, green string) {
	t.Helper()
	rows := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+` .*$`).FindAllString(view, -1)
	if len(rows) == 0 {
		t.Fatalf("no row %q in\n%s", name, view)
	}
	line := fmt.Sprintf("%-60s", rows[len(rows)-1])
	return strings.TrimSpace(line[24:50]), strings.TrimSpace(line[50:])
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
	view, _ := monitor(t, dir, addrs, "2")
	want(view, "state", "ready", "down")
	want(view, "revision", "tested", "")
	want(view, "connections", "1", "")
	want(view, "messages/s", `[1-9][0-9.,]*`, "")
	want(view, "answer p50 / p99", `[0-9.]+ m?s / [0-9.]+ m?s`, "")
	want(view, "commits/s", "embedded store", "")
	want(view, "file descriptors", `\d+ of [0-9,]+`, "")
	if !strings.Contains(view, ", serves") || !strings.HasSuffix(view, "last warnings and errors\n  none\n\n") {
		t.Errorf("the view is\n%s", view)
	}
	stop()

	startServer(t, filepath.Join(dir, "log", "green.log"), addrs["green"], "-redis", "redis://"+stackHost+":1", "-store-timeout", "200ms")
	eventually(t, "the store is known to be away", func() bool {
		view, _ = monitor(t, dir, addrs, "1")
		_, state := row(t, view, "state")
		return state == "not ready"
	})
	want(view, "messages/s", "0", "0")
	want(view, "commits/s", "embedded store", "0, out of reach")
	if !regexp.MustCompile(`\n  \d\d:\d\d:\d\d green ERROR store_unavailable dial tcp`).MatchString(view) {
		t.Errorf("the error is not shown:\n%s", view)
	}
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
