package deploy

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"turnstile/server/oracle"
	"turnstile/server/revisiontest"
)

// Clients send all the time while blue hands them over to green, and green to
// blue: no connection ends, no message is lost or counted twice.
// TURNSTILE_HANDOVER_CLIENTS and TURNSTILE_HANDOVER_TIMES make it larger; with
// TURNSTILE_HANDOVER_FROM, blue is a server of that commit; with
// TURNSTILE_HANDOVER_COMPRESS=1, all messages are compressed, and with
// TURNSTILE_HANDOVER_BUSY=1, other programs keep the processors busy.
func TestHandover(t *testing.T) {
	clients, times := fromEnvironment(t, "TURNSTILE_HANDOVER_CLIENTS", 300), fromEnvironment(t, "TURNSTILE_HANDOVER_TIMES", 2)
	compress := fromEnvironment(t, "TURNSTILE_HANDOVER_COMPRESS", 0) != 0
	s, bin, start := preparedStack(t), handoverBinaries(t), oracle.StartCrowd
	if compress {
		t.Setenv("TURNSTILE_COMPRESS", "1")
		start = oracle.StartCompressingCrowd
	}
	s.must("dev-up.sh", "TURNSTILE_BIN="+bin["blue"])
	c := start(t, s.site, clients, restOf(clients))
	if fromEnvironment(t, "TURNSTILE_HANDOVER_BUSY", 0) != 0 {
		keepBusy(t)
	}
	next, last := "green", "blue"
	first := map[string]footprint{}
	for range times {
		now := s.handOver(c, next, bin[next])
		if _, again := first[next]; !again {
			first[next] = now
		}
		now.wantLike(t, first[next])
		next, last = last, next
	}
	if compress {
		s.wantCompressed(c, last)
	}
	c.WantUndisturbed()
	c.Settle()
}

// handOver promotes a colour, with programs in a folder, which has to take over the whole
// crowd.
func (s *stack) handOver(c *oracle.Crowd, to, bin string) footprint {
	s.t.Helper()
	out := s.must("promote.sh", "TURNSTILE_BIN="+bin)
	if want := fmt.Sprintf("%s took over %d connections", to, c.Size()); !strings.Contains(out, want) {
		s.t.Errorf("not %q in:\n%s", want, out)
	}
	s.wantServing(to)
	c.WantUndisturbed()
	now := s.footprint(to)
	s.t.Logf("to %s: %s; %+v", to, s.handover(to), now)
	return now
}

// handoverBinaries is the folder of each colour's programs.
func handoverBinaries(t *testing.T) map[string]string {
	t.Helper()
	bin := map[string]string{"blue": binaries, "green": binaries}
	if commit := os.Getenv("TURNSTILE_HANDOVER_FROM"); commit != "" {
		bin["blue"] = programs(t, map[string]string{"server": fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", revisiontest.Build(t, commit))})
	}
	return bin
}

// keepBusy has a process for each processor that does nothing but take it, until the end of
// the test, however that comes.
func keepBusy(t *testing.T) {
	t.Helper()
	const spin = "while kill -0 $PPID; do i=0; while [ $i -lt 99999 ]; do i=$((i+1)); done; done"
	for range runtime.NumCPU() {
		startChild(t, t.TempDir(), nil, "/bin/sh", "-c", spin)
	}
}

// wantCompressed has each client of a crowd get answers from a colour, which compression has
// to make shorter.
func (s *stack) wantCompressed(c *oracle.Crowd, colour string) {
	s.t.Helper()
	c.WaitRounds(1)
	if s.value(s.metrics(colour), "websocket_compress_saved_bytes_total") == 0 {
		s.t.Error("no answer was compressed")
	}
}

// newCrowd connects n clients that send all the time.
func newCrowd(t testing.TB, addr string, n int) *oracle.Crowd {
	t.Helper()
	return oracle.StartCrowd(t, addr, n, restOf(n))
}

// restOf is how long a client of n rests between two bursts of messages: a second, and
// longer in a larger crowd, since two cores serve about 2,000 bursts a second.
func restOf(n int) time.Duration { return time.Second * time.Duration(max(1, n/2000)) }

// fromEnvironment is a number that a variable may set.
func fromEnvironment(t *testing.T, name string, number int) int {
	if text := os.Getenv(name); text != "" {
		if _, err := fmt.Sscan(text, &number); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return number
}

// A footprint is what a colour takes of the machine.
type footprint struct {
	FDs, Goroutines, Resident float64 // bytes
}

func (s *stack) footprint(colour string) footprint {
	s.t.Helper()
	page := s.metrics(colour)
	return footprint{
		FDs: s.value(page, "process_open_fds"), Goroutines: s.value(page, "go_goroutines"),
		Resident: s.value(page, "process_resident_memory_bytes"),
	}
}

// wantLike holds that a handover leaves nothing behind: but for a scrape's own
// connection, and what the garbage collector has not come to yet.
func (f footprint) wantLike(t *testing.T, first footprint) {
	t.Helper()
	if f.FDs > first.FDs+20 || f.Goroutines > first.Goroutines+20 || f.Resident > 1.5*first.Resident+20e6 {
		t.Errorf("the process has grown from handover to handover: %+v, and first %+v", f, first)
	}
}

// handover is how long the takeover by a colour took, and for how long no one
// served its connections.
func (s *stack) handover(colour string) string {
	page := s.metrics(colour)
	count := s.value(page, "websocket_handover_pause_seconds_count")
	var shares []string
	for _, bound := range []string{"0.01", "0.025", "0.05", "0.1", "0.25"} {
		within := s.value(page, `websocket_handover_pause_seconds_bucket{le="`+bound+`"}`)
		shares = append(shares, fmt.Sprintf("%.2f %% within %s s", 100*within/count, bound))
	}
	return fmt.Sprintf("%.2f s in all; of the pauses of %.0f connections %s",
		s.value(page, "websocket_handover_seconds"), count, strings.Join(shares, ", "))
}

// Clients send all the time while blue is drained for green, and green for blue:
// each gets a goodbye and comes back, no message is lost or counted twice.
// TURNSTILE_PROMOTION_CLIENTS makes it larger.
func TestPromotion(t *testing.T) {
	clients := fromEnvironment(t, "TURNSTILE_PROMOTION_CLIENTS", 300)
	s := newStack(t)
	c := newCrowd(t, s.site, clients)
	for _, colour := range []string{"green", "blue"} {
		out := s.must("promote.sh --drain")
		for step := range 8 {
			if !strings.Contains(out, fmt.Sprintf("step %d  ", step+1)) {
				t.Errorf("no step %d in:\n%s", step+1, out)
			}
		}
		s.wantServing(colour)
		c.WaitBack()
		pauses, ends := c.TakePauses()
		if len(pauses) != clients || ends.Goodbyes() != clients {
			t.Errorf("%d pauses, of connections that ended: %v", len(pauses), ends)
		}
		t.Logf("to %s: %v; from a connection's end to the next answer: median %v, p99 %v, longest %v",
			colour, ends,
			pauses[len(pauses)/2].Round(time.Millisecond), pauses[len(pauses)*99/100].Round(time.Millisecond),
			pauses[len(pauses)-1].Round(time.Millisecond))
		t.Log(out[strings.Index(out, "step 7"):])
	}
	c.Settle()
}

// A colour that is not fit to serve is not promoted, and no client notices.
func TestPromotionOfABrokenColour(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 100)
	ending := programs(t, map[string]string{"server": "#!/bin/sh\necho no server\nexit 3\n"})
	for _, broken := range []struct {
		name, step, complaint string
		env                   []string
	}{
		{"it does not start", "step 2", "-workers must be", []string{"TURNSTILE_WORKERS=none"}},
		{"its binary ends at once", "step 3", "green has ended; its last lines:\n  no server\n", []string{"TURNSTILE_BIN=" + ending}},
		{"it is not ready", "step 3", "green is not ready", []string{"TURNSTILE_REDIS=unix:///nonexistent", "TURNSTILE_PATIENCE=8"}},
		{"it fails the smoke test", "step 4", "close 1009", []string{"TURNSTILE_MAX_MESSAGE=4"}},
		{"its sessions are elsewhere", "step 4", "another -redis than blue", []string{"TURNSTILE_REDIS=unix://" + s.run + "/redis.sock?db=1"}},
		{"clients do not get through", "step 6", "cannot connect", []string{"TURNSTILE_PORT=1"}},
	} {
		t.Run(broken.name, func(t *testing.T) {
			out, said, code := s.streams("promote.sh", broken.env...)
			if code != 1 || !strings.Contains(out+said, broken.complaint) {
				t.Errorf("exit code %d, want 1, and %q in:\n%s%s", code, broken.complaint, out, said)
			}
			wantPutBack(t, out, said, broken.step)
			s.wantServing("blue")
			c.WantUndisturbed()
		})
	}
	t.Run("its copy finds no room", s.wantNoHalfCopy)
	s.must("promote.sh")
	s.wantServing("green")
	c.WaitOnline()
	c.Settle()
}

// wantNoHalfCopy has a promotion fail because the server is longer than a file may be, as on
// a full disk. What others need of the room that is left is there again.
func (s *stack) wantNoHalfCopy(t *testing.T) {
	limited := *s
	limited.before = []string{"env", "--ignore-signal=XFSZ", wantProgram(t, "prlimit"), "--fsize=1000000"}
	out, said, code := limited.streams("promote.sh")
	if code != 1 || !strings.Contains(said, "File too large") {
		t.Errorf("exit code %d, want 1:\n%s%s", code, out, said)
	}
	wantPutBack(t, out, said, "step 2")
	if _, err := os.Stat(s.run + "/bin/green.new"); !os.IsNotExist(err) {
		t.Errorf("half a copy is left: %v", err)
	}
	s.wantServing("blue")
}

// programs is a folder with the server and bench, of which some are replaced by
// scripts.
func programs(t *testing.T, scripts map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"server", "bench"} {
		var err error
		if script, ok := scripts[name]; ok {
			err = os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755)
		} else {
			err = os.Symlink(filepath.Join(binaries, name), filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// wantPutBack holds a promotion that failed to one line of error, at the end of
// the errors and with the step.
func wantPutBack(t *testing.T, out, said, step string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(said, "\n"), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "promote.sh: "+step+" failed: ") || !strings.HasSuffix(last, "; putting everything back") {
		t.Errorf("the last line of the errors is %q", last)
	}
	if strings.Count(out+said, "failed") != 1 {
		t.Errorf("the failure is told more than once, or not at all:\n%s%s", out, said)
	}
}

// A promotion whose reader goes away before the handover is put back, and one
// whose reader goes away later is brought to its end.
func TestPromotionThatNobodyReads(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 50)
	for _, way := range []struct {
		name   string
		listen func(t *testing.T, cmd *exec.Cmd) io.ReadCloser
	}{{"a pipe", startOnPipe}, {"a terminal", startOnTerminal}} {
		t.Run(way.name+", step 6", func(t *testing.T) {
			readUntilGone(t, s, way.listen, "step 6", "-reaches")
			s.wantServing("blue")
			c.WantUndisturbed()
			if _, err := os.Stat(s.run + "/promotion"); err == nil {
				t.Error("the note of an unfinished promotion is left")
			}
		})
		t.Run(way.name+", step 7", func(t *testing.T) {
			readUntilGone(t, s, way.listen, "step 7", "take-over")
			s.wantServing("green")
			s.must("promote.sh")
			s.wantServing("blue")
			c.WantUndisturbed()
		})
	}
	c.Settle()
}

// readUntilGone reads what a promotion says up to a step and goes away, while
// the program that is called with an argument in that step waits for it.
func readUntilGone(t *testing.T, s *stack, listen func(*testing.T, *exec.Cmd) io.ReadCloser, step, argument string) {
	t.Helper()
	bin, called, goOn := waitingPrograms(t, argument)
	cmd := s.script("promote.sh", "TURNSTILE_BIN="+bin)
	cmd.SysProcAttr = nil // a terminal has its own wishes
	out := listen(t, cmd)
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), step) {
	}
	eventually(t, "the program is called", called)
	out.Close()
	goOn()
	cmd.Wait()
}

// waitingPrograms is a folder with the server and bench. The one that is called
// with an argument waits for goOn, so that what is done to a promotion then is
// done in that very step; called tells whether it waits.
func waitingPrograms(t *testing.T, argument string) (bin string, called func() bool, goOn func()) {
	t.Helper()
	waits, may := filepath.Join(t.TempDir(), "waits"), filepath.Join(t.TempDir(), "may")
	script := func(program string) string {
		return fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *'%s'*) >%s; until [ -e %s ]; do sleep 0.05; done ;; esac\nexec %s/%s \"$@\"\n",
			argument, waits, may, binaries, program)
	}
	bin = programs(t, map[string]string{"bench": script("bench"), "server": script("server")})
	called = func() bool {
		_, err := os.Stat(waits)
		return err == nil
	}
	return bin, called, func() {
		if err := os.WriteFile(may, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func startOnPipe(t *testing.T, cmd *exec.Cmd) io.ReadCloser {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return out
}

// startOnTerminal starts a command whose terminal hangs up when it is closed.
func startOnTerminal(t *testing.T, cmd *exec.Cmd) io.ReadCloser {
	t.Helper()
	terminal, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return terminal
}

// A promotion that was killed is taken up again, wherever it was.
func TestPromotionIsKilled(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 100)
	next, last := "green", "blue"
	for step := 1; step <= 8; step++ {
		ended := killAtStep(t, s, step)
		// The kill may come when even the note of it is gone.
		if _, err := os.Stat(s.run + "/promotion"); err == nil || (step < 8 && !ended) {
			out := s.must("promote.sh")
			if step == 8 && !strings.Contains(out, "nothing to do") {
				t.Errorf("killed when all was done, it does not say so:\n%s", out)
			}
		}
		s.wantServing(next)
		c.WaitOnline()
		next, last = last, next
	}
	if _, err := os.Stat(s.run + "/promotion"); err == nil {
		t.Error("the note of an unfinished promotion is left")
	}
	c.Settle()
}

// killAtStep starts a promotion and kills it, with all of its children that are
// not to outlive it, as soon as it says that it is at a step. It reports whether
// the promotion was faster, and has ended well.
func killAtStep(t *testing.T, s *stack, step int) (ended bool) {
	t.Helper()
	cmd := s.script("promote.sh")
	lines := bufio.NewScanner(startOnPipe(t, cmd))
	for lines.Scan() && !strings.HasPrefix(lines.Text(), fmt.Sprintf("step %d", step)) {
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	return cmd.Wait() == nil
}

func TestOnePromotionAtATime(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	lock, err := os.OpenFile(s.run+"/lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{"promote.sh", "dev-up.sh", "dev-down.sh"} {
		if out, code := s.try(script); code != 1 || !strings.Contains(out, "another promotion, dev-up or dev-down is under way") {
			t.Errorf("%s: exit code %d: %s", script, code, out)
		}
	}
	s.wantServing("blue")
}

func TestPromotionIsAskedForAColour(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	if out := s.must("promote.sh blue"); !strings.Contains(out, "blue serves already, alone: nothing to do") {
		t.Error(out)
	}
	s.must("promote.sh green")
	s.wantServing("green")
}

// A colour that has crashed is replaced, and its clients are back.
func TestPromotionAfterACrash(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 100)
	syscall.Kill(s.pid("blue"), syscall.SIGKILL)
	c.WaitOffline()
	s.must("promote.sh")
	s.wantServing("green")
	c.WaitOnline()
	c.Settle()
}

// ^C before the drain puts everything back.
func TestPromotionIsInterrupted(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 50)
	for step, argument := range map[int]string{3: "green.sock:/healthz/", 4: "smoke unix:", 6: "-reaches"} {
		bin, called, _ := waitingPrograms(t, argument)
		cmd := s.script("promote.sh", "TURNSTILE_BIN="+bin)
		out := startOnPipe(t, cmd)
		eventually(t, "the program is called", called)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		said, _ := io.ReadAll(out)
		want := fmt.Sprintf("promote.sh: step %d failed: it was interrupted; putting everything back", step)
		if cmd.Wait(); cmd.ProcessState.ExitCode() != 130 || !strings.Contains(string(said), want) {
			t.Errorf("interrupted at step %d: exit code %d:\n%s", step, cmd.ProcessState.ExitCode(), said)
		}
		s.wantServing("blue")
		c.WantUndisturbed()
	}
	c.Settle()
}

// A colour that does not answer to SIGTERM is killed, and its clients come back.
func TestPromotionFromAColourThatHangs(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 50)
	syscall.Kill(s.pid("blue"), syscall.SIGSTOP)
	if out := s.must("promote.sh"); !strings.Contains(out, "blue will be drained, since it cannot hand over") ||
		!strings.Contains(out, "blue was killed: it did not end within 10 s") {
		t.Error(out)
	}
	s.wantServing("green")
	c.WaitBack()
	c.Settle()
}
