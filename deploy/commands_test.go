package deploy

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"turnstile/server/doctest"
)

// The documents' commands for the stack, as they stand there, on a stack of the
// test's own. They build the server, as for a user; they do not start what
// watches, which takes minutes to build and is tried in TestWholeStack. Both
// write into bin/, so they are not parallel.

func TestReadmeDeploy(t *testing.T) {
	preparedStack(t).follow(doctest.Blocks(t, "README.md"))
}

func TestProcessesCommands(t *testing.T) {
	preparedStack(t).follow(doctest.Blocks(t, "deploy/README.md"))
}

// follow runs the commands of blocks one after the other, each of which has to
// end well, and looks at what became of the stack.
func (s *stack) follow(blocks []doctest.Block) {
	s.t.Helper()
	for _, block := range blocks {
		for _, line := range block.Commands() {
			s.runLine(line)
		}
	}
	for _, part := range []string{"redis", "blue", "green", "nginx"} {
		if s.runs(part) {
			s.t.Errorf("%s still runs after the last command", part)
		}
	}
}

// endless are the commands that go on until ^C, with a text that each shows.
var endless = map[string]string{"make monitor": "blue", "make logs": "server_started"}

func (s *stack) runLine(line string) {
	s.t.Helper()
	before, _ := os.Readlink(s.run + "/active.sock")
	cmd := s.command([]string{"bash", "-c", line}, "TURNSTILE_BIN=", "MAKEFLAGS=", "MAKELEVEL=")
	if text, ok := endless[line]; ok {
		s.interrupt(cmd, line, text)
		return
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v: %s", line, err, out)
	}
	switch {
	case strings.Contains(line, "promote"):
		if s.serving()+".sock" == before {
			s.t.Errorf("%s: nginx still leads to %s", line, before)
		}
		s.wantServing(s.serving())
	case strings.HasPrefix(line, "make dev-up"):
		get := s.command([]string{"curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", "http://" + s.site + "/"})
		if out, err := get.CombinedOutput(); err != nil {
			s.t.Errorf("%s: %v: %s", line, err, out)
		}
	case strings.HasPrefix(line, "make metrics"), strings.HasPrefix(line, "make smoke-test"):
		if len(out) == 0 {
			s.t.Errorf("%s prints nothing", line)
		}
	}
}

// interrupt starts a command that does not end, waits until it shows a text, and
// ends it as ^C does.
func (s *stack) interrupt(cmd *exec.Cmd, line, text string) {
	s.t.Helper()
	path := s.run + "/shown"
	shown, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer os.Remove(path)
	defer shown.Close()
	cmd.Stdout, cmd.Stderr = shown, shown
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	eventually(s.t, line+" shows "+text, func() bool {
		page, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(page), text)
	})
}
