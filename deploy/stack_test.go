package deploy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// benchBinary is bench, beside the server.
var benchBinary = sync.OnceValues(func() (string, error) {
	if binariesErr != nil {
		return "", binariesErr
	}
	path := filepath.Join(binaries, "bench")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "./bench")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// A stack is what the scripts run, the same ones that an operator runs: in a
// folder and on a loopback address of its own.
type stack struct {
	t    testing.TB
	run  string // its folder
	host string
	site string // nginx

	source string // the top of the project, if it is not this one

	// For containers.
	engine *engine
	env    []string // the variables that move it
	before []string // what runs the commands, if anything: sudo, for one
}

// newStack brings a stack up, without what watches it. It ends with the test.
func newStack(t testing.TB) *stack {
	t.Helper()
	s := preparedStack(t)
	s.must("dev-up.sh")
	return s
}

// preparedStack is a stack that nobody has brought up yet.
func preparedStack(t testing.TB) *stack {
	t.Helper()
	for _, program := range []string{"nginx", "redis-server", "flock", "setsid"} {
		wantProgram(t, program)
	}
	for _, build := range []func() (string, error){serverBinary, benchBinary} {
		if _, err := build(); err != nil {
			t.Fatal(err)
		}
	}
	run, err := os.MkdirTemp("", "stack") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	// Of 65,000 addresses, so that nobody else's stack has this one.
	host := fmt.Sprintf("127.81.%d.%d", rand.IntN(256), 1+rand.IntN(254))
	s := &stack{t: t, run: run, host: host, site: host + ":8080"}
	t.Cleanup(s.end)
	return s
}

// wantProgram skips the test where a program is not installed.
func wantProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		missing(t, "%s is not installed: run make deps", name)
	}
	return path
}

func (s *stack) end() {
	if s.t.Failed() {
		logs, _ := filepath.Glob(s.run + "/log/*.log")
		for _, log := range logs {
			text, _ := os.ReadFile(log)
			s.t.Logf("the end of %s:\n%s", filepath.Base(log), text[max(len(text)-2000, 0):])
		}
	}
	if out, err := s.script("dev-down.sh").CombinedOutput(); err != nil {
		s.t.Errorf("dev-down.sh: %v: %s", err, out)
		for _, name := range []string{"nginx", "blue", "green", "redis", "victoria-metrics", "vmalert", "victoria-logs", "vlagent"} {
			if s.runs(name) {
				syscall.Kill(-s.pid(name), syscall.SIGKILL)
			}
		}
	}
	os.RemoveAll(s.run)
}

// script is a script of the project, on this stack.
func (s *stack) script(name string, env ...string) *exec.Cmd {
	return s.command(strings.Fields("scripts/"+name), env...)
}

// command is a command at the top of the project, with this stack's environment,
// and more of it; with its children it is a process group.
func (s *stack) command(words []string, env ...string) *exec.Cmd {
	words = append(slices.Clone(s.before), words...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = cmp.Or(s.source, "..")
	cmd.Env = slices.Concat(slices.DeleteFunc(os.Environ(), isOurs), s.environment(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// isOurs reports whether a variable is one of the tests' own: a server would warn of it.
func isOurs(variable string) bool {
	return strings.HasPrefix(variable, "TURNSTILE_HANDOVER_") || strings.HasPrefix(variable, "TURNSTILE_PROMOTION_")
}

func (s *stack) environment() []string {
	if s.engine != nil {
		return append(s.engine.env(), s.env...)
	}
	return []string{"TURNSTILE_BACKEND=processes", "TURNSTILE_RUN_DIR=" + s.run,
		"TURNSTILE_HOST=" + s.host, "TURNSTILE_BIN=" + binaries, "TURNSTILE_MONITORING=off",
		fmt.Sprintf("TURNSTILE_PATIENCE=%d", int(patience.Seconds()))}
}

// try runs a script, and returns what it says and its exit code.
func (s *stack) try(name string, env ...string) (out string, code int) {
	s.t.Helper()
	text, err := s.script(name, env...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(text), code
}

// streams is try, with the errors apart from the output.
func (s *stack) streams(name string, env ...string) (out, said string, code int) {
	s.t.Helper()
	var output, errs bytes.Buffer
	cmd := s.script(name, env...)
	cmd.Stdout, cmd.Stderr = &output, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return output.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a script that has to end well.
func (s *stack) must(name string, env ...string) (out string) {
	s.t.Helper()
	out, code := s.try(name, env...)
	if code != 0 {
		s.t.Fatalf("%s: exit code %d:\n%s", name, code, out)
	}
	return out
}

// serving is the colour that nginx leads to.
func (s *stack) serving() string {
	s.t.Helper()
	link, err := os.Readlink(s.run + "/active.sock")
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSuffix(link, ".sock")
}

// pid is the process that a pid file names, 0 if there is none.
func (s *stack) pid(name string) int {
	text, err := os.ReadFile(s.run + "/pid/" + name)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		s.t.Fatalf("the pid file of %s: %q", name, text)
	}
	return pid
}

// procPath is a file that tells of a process: see proc(5).
func procPath(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }

// runs reports whether a process or a container of the stack runs.
func (s *stack) runs(name string) bool {
	if s.engine != nil {
		return s.engine.docker("ps", "--quiet", "--filter", "label=com.docker.compose.service="+name) != ""
	}
	pid := s.pid(name)
	if pid == 0 {
		return false
	}
	stat, err := os.ReadFile(procPath(pid, "stat"))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// wantServing holds the stack to one colour that serves and one that is gone.
func (s *stack) wantServing(colour string) {
	s.t.Helper()
	other := map[string]string{"blue": "green", "green": "blue"}[colour]
	if got := s.serving(); got != colour || !s.runs(colour) || s.runs(other) {
		s.t.Fatalf("nginx leads to %s, and not %s; running: %s %v, %s %v", got, colour, colour, s.runs(colour), other, s.runs(other))
	}
}

// metrics is a colour's page of metrics.
func (s *stack) metrics(colour string) string {
	s.t.Helper()
	port := map[string]string{"blue": ":8001", "green": ":8002"}[colour]
	page, err := fetch("http://" + s.host + port + "/metrics/")
	if err != nil {
		s.t.Fatal(err)
	}
	return string(page)
}

// value is that of a metric, whose name includes the labels, on a page.
func (s *stack) value(page, name string) float64 {
	s.t.Helper()
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64); err == nil {
				return value
			}
		}
	}
	s.t.Fatalf("no metric %s", name)
	return 0
}
