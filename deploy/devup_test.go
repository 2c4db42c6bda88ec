package deploy

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Whoever interrupts dev-up is told that a part of the stack runs. Blue, whose
// Redis is not there, is what it waits for.
func TestDevUpIsInterrupted(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	cmd := s.script("dev-up.sh", "TURNSTILE_REDIS=unix://"+s.run+"/none")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "  redis runs"; {
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	cmd.Wait()
	const want = "dev-up.sh: interrupted: what has started goes on"
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), want) {
		t.Errorf("exit code %d, want 130, and %q; errors %q", code, want, said.String())
	}
	if !s.runs("redis") {
		t.Error("Redis has ended")
	}
	s.must("dev-down.sh")
	if s.runs("redis") || s.runs("blue") {
		t.Error("dev-down has not ended what dev-up has started")
	}
}

// The whole stack with what watches it, over a promotion: the metrics of both
// colours and the lines of their logs arrive.
func TestWholeStack(t *testing.T) {
	for _, name := range []string{"victoria-metrics", "vmalert", "victoria-logs", "vlagent"} {
		tool(t, name)
	}
	wantProgram(t, "curl")
	s := newStack(t)
	const watched = "TURNSTILE_MONITORING=on"
	out := s.must("dev-up.sh", watched)
	for _, want := range []string{"redis runs already",
		"blue runs already", "nginx runs already", "vlagent runs\n", "http://" + s.site + "/ "} {
		if !strings.Contains(out, want) {
			t.Errorf("dev-up.sh does not say %q:\n%s", want, out)
		}
	}
	wantWatched(t, s, "blue")
	s.must("promote.sh", watched)
	s.wantServing("green")
	wantWatched(t, s, "green")
	s.must("test_loki.sh", watched)
	out = s.must("smoke.sh", watched)
	if !strings.Contains(out, "it leads to unix:"+s.run+"/green.sock") {
		t.Errorf("smoke.sh:\n%s", out)
	}
	out = s.must("metrics.sh websocket_ready", watched)
	if !strings.Contains(out, "# green\n") || strings.Contains(out, "# blue\n") || !strings.Contains(out, "\nwebsocket_ready 1\n") {
		t.Errorf("metrics.sh:\n%s", out)
	}

	pids := make(map[string]int)
	entries, err := os.ReadDir(s.run + "/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pids[e.Name()] = s.pid(e.Name())
	}
	if len(pids) != 7 {
		t.Errorf("these run: %v", pids)
	}
	s.must("dev-down.sh") // which does not have to be told of what watches
	for name, pid := range pids {
		if isAlive(pid) {
			t.Errorf("%s, process %d, still runs", name, pid)
		}
	}
}

// wantWatched waits until a colour's metrics have arrived.
func wantWatched(t *testing.T, s *stack, colour string) {
	t.Helper()
	eventually(t, "the metrics of "+colour+" have arrived", func() bool {
		page, err := fetch("http://" + s.host + `:8428/api/v1/query?query=websocket_ready{colour="` + colour + `"}==1`)
		return err == nil && strings.Contains(string(page), `"colour":"`+colour+`"`)
	})
}

func isAlive(pid int) bool {
	stat, err := os.ReadFile(procPath(pid, "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A pid file that names another process by now is no reason to signal it.
func TestDevDownEndsOnlyItsOwn(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	nginx := s.pid("nginx")
	text, err := os.ReadFile(s.run + "/pid/nginx")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), " ")
	if err := os.WriteFile(s.run+"/pid/nginx", []byte(fmt.Sprintf("%d %s", other.Process.Pid, rest)), 0o644); err != nil {
		t.Fatal(err)
	}
	s.must("dev-down.sh")
	if !isAlive(other.Process.Pid) {
		t.Error("dev-down.sh has ended a process that was not started by dev-up.sh")
	}
	syscall.Kill(-nginx, syscall.SIGKILL) // the one that nothing names any more
}

// What is up stays as it is when dev-up.sh runs again, and what has died is
// started.
func TestDevUpMendsTheStack(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.must("promote.sh")
	redis := s.pid("redis")
	for _, name := range []string{"green", "nginx"} {
		syscall.Kill(-s.pid(name), syscall.SIGKILL)
		eventually(t, name+" has ended", func() bool { return !s.runs(name) })
	}
	s.must("dev-up.sh")
	s.wantServing("green")
	smokeTest(t, nil, "-reaches", "unix:"+s.run+"/green.sock", "http://"+s.site)
	if s.pid("redis") != redis {
		t.Error("redis was started anew")
	}
}

// What watches the stack cannot be built without a network: the service runs all
// the same.
func TestDevUpWithoutWatchers(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.source = copySource(t, s.run+"/source") // where nothing was built yet
	out := s.must("dev-up.sh", "TURNSTILE_MONITORING=on", "GOPROXY=off", "GOMODCACHE="+t.TempDir())
	for _, want := range []string{
		"not all of what watches it: no victoria-metrics vmalert victoria-logs vlagent. " +
			"To start the stack without monitoring: TURNSTILE_MONITORING=off make dev-up\n",
		"http://" + s.site + "/ ", "make promote",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("dev-up.sh does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "/vmui/") {
		t.Errorf("dev-up.sh leads to what does not run:\n%s", out)
	}
	s.wantServing("blue")
}
