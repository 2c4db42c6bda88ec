package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"turnstile/server/doctest"
)

// What takes too long for a test is only asked of make, which says what it would
// run; its parts are tried by other tests, with fewer connections.
func TestMakeTargets(t *testing.T) {
	for _, block := range doctest.Blocks(t, "bench/README.md") {
		for _, line := range block.Commands() {
			target, ok := strings.CutPrefix(line, "make ")
			if !ok {
				t.Errorf("%s is not for make", line)
				continue
			}
			cmd := exec.Command("make", "--dry-run", target)
			cmd.Dir = doctest.Root(t)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) == 0 {
				t.Errorf("%s: %v: %s", line, err, out)
			}
		}
	}
}

// The other commands run as they stand there, but for the address, and with fewer
// connections for less time.
func TestBenchCommands(t *testing.T) {
	folder := t.TempDir()
	command := buildServer(t)
	server, _, _ := strings.Cut(command, " ")
	programs := filepath.Join(folder, "bin")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"bench": os.Args[0], "server": server} {
		if err := os.Symlink(path, filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	running := strings.TrimPrefix(startForSmoke(t, command), "http://")
	for _, block := range doctest.Blocks(t, "bench/README.md") {
		for _, line := range block.Commands() {
			cmd := exec.Command("bash", "-c", smaller(strings.Replace(line, "10.0.0.5:8000", running, 1)))
			cmd.Dir = folder
			cmd.Env = append(os.Environ(), asBench+"=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
		}
	}
}

var (
	connections = regexp.MustCompile(` -conns \d+`)
	duration    = regexp.MustCompile(` -duration \S+`)
)

// smaller is a command with ten connections and short scenarios.
func smaller(line string) string {
	if !connections.MatchString(line) {
		return line
	}
	return connections.ReplaceAllString(duration.ReplaceAllString(line, ""), " -conns 10 -duration 300ms")
}
