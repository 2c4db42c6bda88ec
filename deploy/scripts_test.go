package deploy

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// userScripts are those that somebody may run, by their names; the others are
// sourced.
func userScripts(t testing.TB) (names []string) {
	t.Helper()
	for _, path := range shellScripts(t) {
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && filepath.Dir(path) == "../scripts" {
			names = append(names, filepath.Base(path))
		}
	}
	if len(names) < 11 {
		t.Fatalf("the scripts are %q", names)
	}
	return names
}

// harmless is a PATH on which nothing can be built or installed, for scripts
// that should not come to that.
func harmless(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"make", "go", "npm", "apt-get", "docker"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho \"$0 was run\" >&2\nexit 99\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// wantRefused holds a script to a refusal in one line, before it does anything.
func wantRefused(t *testing.T, s *stack, script string, want string, env ...string) {
	t.Helper()
	out, said, code := s.streams(script, append(env, harmless(t))...)
	if code != 2 || out != "" || strings.Count(said, "\n") != 1 || !strings.Contains(said, want) {
		t.Errorf("%s %s: exit code %d, want 2, and one line with %q; output %q, errors %q", script, strings.Join(env, " "), code, want, out, said)
	}
	if entries, _ := os.ReadDir(s.run); len(entries) != 0 {
		t.Errorf("%s %s has made %v", script, strings.Join(env, " "), entries)
	}
}

// Help is had from every script, and does nothing else, whatever the variables.
func TestScriptsHaveHelp(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	for _, name := range userScripts(t) {
		for _, arguments := range []string{" --help", " -h", " blue --help"} {
			out, said, code := s.streams(name+arguments, "TURNSTILE_PORT=abc", harmless(t))
			if code != 0 || said != "" || !strings.HasPrefix(out, "Usage: scripts/"+name) || strings.Count(out, "\n") < 3 {
				t.Errorf("%s%s: exit code %d, output %q, errors %q", name, arguments, code, out, said)
			}
		}
	}
	if entries, _ := os.ReadDir(s.run); len(entries) != 0 {
		t.Errorf("it has made %v", entries)
	}
}

// Lists of commands and variables fit into a terminal of 80 columns. The folder
// of the stack is one word, however long.
func TestHelpFitsIntoATerminal(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	texts := map[string]string{}
	for _, name := range userScripts(t) {
		texts[name], _, _ = s.streams(name + " --help")
	}
	list, err := exec.Command("make", "--no-print-directory", "-C", "..", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	texts["make help"] = string(list)
	for name, text := range texts {
		if strings.Count(text, "\n") < 3 {
			t.Errorf("%s prints %q", name, text)
		}
		for line := range strings.SplitSeq(text, "\n") {
			if len(line) > 80 && !strings.Contains(line, s.run) {
				t.Errorf("%s has a line of %d bytes: %s", name, len(line), line)
			}
		}
	}
}

func TestScriptsRefuseArguments(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	for _, name := range userScripts(t) {
		wantRefused(t, s, name+" --nonsense", `unexpected argument "--nonsense"`)
		wantRefused(t, s, name+" --nonsense", "see scripts/"+name+" --help")
	}
	for arguments, want := range map[string]string{
		"dev-up.sh blue":         `unexpected argument "blue": this script takes none`,
		"dev-down.sh blue":       `unexpected argument "blue": this script takes none`,
		"smoke.sh blue":          `unexpected argument "blue": this script takes none`,
		"setup.sh blue":          `unexpected argument "blue": this script takes none`,
		"test.sh blue":           `unexpected argument "blue": this script takes none`,
		"promote.sh red":         `unexpected argument "red": a colour is blue or green`,
		"promote.sh blue green":  `unexpected argument "green": a colour is blue or green, and one is enough`,
		"promote.sh --drain red": `unexpected argument "red"`,
		"logs.sh blue apache":    `there is no service "apache", but: blue green redis nginx`,
		"metrics.sh a b":         `unexpected argument "b": it takes one text`,
		"monitor.sh 1m":          `unexpected argument "1m": the time must be a whole number of seconds from 1`,
		"monitor.sh 0":           `unexpected argument "0"`,
		"monitor.sh 1 2":         `unexpected argument "2"`,
		"test_loki.sh soon":      `unexpected argument "soon": the time must be whole seconds from 1 to 3600`,
	} {
		wantRefused(t, s, arguments, want)
	}
}

// A variable that cannot be heeded ends a script before it starts anything.
func TestScriptsCheckVariables(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	for variable, want := range map[string]string{
		"TURNSTILE_RUN_DIR=" + s.run + strings.Repeat("x", 100): "TURNSTILE_RUN_DIR must be a path of at most 85",
		"TURNSTILE_RUN_DIR=/tmp/a b":                            "TURNSTILE_RUN_DIR must be a path of at most 85",
		"TURNSTILE_HOST=localhost":                              `TURNSTILE_HOST must be an IPv4 address, such as 127.0.0.1, got "localhost"`,
		"TURNSTILE_HOST=127.0.0.256":                            "TURNSTILE_HOST must be an IPv4 address",
		"TURNSTILE_PORT=abc":                                    `TURNSTILE_PORT must be a port from 1 to 65535, got "abc"`,
		"TURNSTILE_BLUE_PORT=0":                                 `TURNSTILE_BLUE_PORT must be a port from 1 to 65535, got "0"`,
		"TURNSTILE_GREEN_PORT=65536":                            `TURNSTILE_GREEN_PORT must be a port from 1 to 65535, got "65536"`,
		"TURNSTILE_VLAGENT_PORT=80 81":                          "TURNSTILE_VLAGENT_PORT must be a port",
		"TURNSTILE_BIN=/nope":                                   `TURNSTILE_BIN must be a folder with the programs server and bench, got "/nope"`,
		"TURNSTILE_MONITORING=maybe":                            `TURNSTILE_MONITORING must be on or off, got "maybe"`,
		"TURNSTILE_PATIENCE=abc":                                `TURNSTILE_PATIENCE must be whole seconds from 1 to 3600, got "abc"`,
		"TURNSTILE_BACKEND=cloud":                               `TURNSTILE_BACKEND must be processes, compose or units, got "cloud"`,
		"TURNSTILE_LISTEN=:80": "TURNSTILE_LISTEN must not be set: -listen of a colour is for the scripts to give; " +
			"unset it; TURNSTILE_HOST,",
		"TURNSTILE_CONTROL=/tmp/c": "TURNSTILE_CONTROL must not be set: " +
			"-control of a colour is for the scripts to give; unset it\n",
		"TURNSTILE_TAKE_OVER_FROM=/tmp/c":         "TURNSTILE_TAKE_OVER_FROM must not be set",
		"TURNSTILE_HEALTHCHECK=unix:/a:/healthz/": "TURNSTILE_HEALTHCHECK must not be set",
		"TURNSTILE_TELL=drain":                    "TURNSTILE_TELL must not be set",
	} {
		for _, script := range []string{"dev-up.sh", "promote.sh"} {
			wantRefused(t, s, script, want, variable)
		}
	}
}

// White space around a value is no part of it, and what moves the stack is not
// in the environment of its programs.
func TestVariablesOfTheStackStayWithTheScripts(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	s.must("dev-up.sh", "TURNSTILE_PORT= 8090 ", "TURNSTILE_HEARTBEAT=20s")
	s.must("smoke.sh", "TURNSTILE_PORT=8090")
	environment, err := os.ReadFile(procPath(s.pid("blue"), "environ"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for variable := range strings.SplitSeq(string(environment), "\x00") {
		if strings.HasPrefix(variable, "TURNSTILE_") {
			found = append(found, variable)
		}
	}
	if len(found) != 1 || found[0] != "TURNSTILE_HEARTBEAT=20s" {
		t.Errorf("blue has %q", found)
	}
}

// A port that another program has is told with the variable that chooses
// another one, and nothing is started.
func TestTakenPorts(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	take := func(port string) (release func()) {
		t.Helper()
		l, err := net.Listen("tcp", s.host+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		return func() { l.Close() }
	}
	want := func(script, text string, env ...string) {
		t.Helper()
		if _, said, code := s.streams(script, env...); code != 1 || strings.Count(said, "\n") != 1 || !strings.Contains(said, text) {
			t.Errorf("%s: exit code %d, want 1, and one line with %q: %s", script, code, text, said)
		}
	}
	for port, text := range map[string]string{
		"8080": "port 8080, for nginx, is taken by another program: end that one, or choose another port: TURNSTILE_PORT=8081 make dev-up",
		"8001": "TURNSTILE_BLUE_PORT=8003 make dev-up", // 8002 is green's
		"9428": "TURNSTILE_VICTORIALOGS_PORT=9430 make dev-up",
	} {
		release := take(port)
		want("dev-up.sh", text, "TURNSTILE_MONITORING=on")
		release()
		if _, err := os.Stat(s.run + "/pid"); err == nil {
			t.Errorf("with port %s taken, something was started", port)
		}
	}
	releaseLogs, releaseShipper := take("9428"), take("9429")
	want("dev-up.sh", "port 9428, for victoria-logs, and port 9429, for vlagent, are taken by other programs: end those, or choose other "+
		"ports: TURNSTILE_VICTORIALOGS_PORT=9430 TURNSTILE_VLAGENT_PORT=9431 make dev-up", "TURNSTILE_MONITORING=on")
	releaseLogs()
	releaseShipper()
	s.must("dev-up.sh")
	release := take("8002")
	want("promote.sh", "port 8002, for green, is taken by another program: end that one, or choose "+
		"another port: TURNSTILE_GREEN_PORT=8003 make promote")
	s.wantServing("blue")
	release()
	s.must("promote.sh")
}

// without is a PATH that lacks one program, and has this one in place of docker.
func without(t testing.TB, program, docker string) string {
	t.Helper()
	farm := t.TempDir()
	programs, err := filepath.Glob("/usr/bin/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range programs {
		if name := filepath.Base(path); name != program && name != "docker" {
			if err := os.Symlink(path, filepath.Join(farm, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(farm, "docker"), []byte("#!/bin/sh\n"+docker+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + farm
}

// Without one of the programs that it needs, a script says what installs it.
func TestScriptsWithoutAProgram(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	for script, program := range map[string]string{"dev-up.sh": "redis-server", "monitor.sh 1": "curl", "metrics.sh": "curl"} {
		out, said, code := s.streams(script, without(t, program, "exit 1"))
		name, _, _ := strings.Cut(script, " ")
		if code != 1 || out != "" || said != name+": "+program+" is not installed: make setup installs it\n" {
			t.Errorf("%s: exit code %d, output %q, errors %q", script, code, out, said)
		}
	}
}

// Containers need an engine with the compose plugin, which Debian 12 does not
// have; and a stack of processes stays one until it is ended.
func TestBackendIsChosen(t *testing.T) {
	t.Parallel()
	const noPlugin, plugin = `[ "$1" != compose ]`, "exit 0"
	s := preparedStack(t)
	want := func(docker, watcher string) {
		t.Helper()
		_, said, _ := s.streams("logs.sh apache", "TURNSTILE_BACKEND=", without(t, "", docker))
		if !strings.Contains(said, `there is no service "apache"`) || !strings.Contains(said, " "+watcher+" ") {
			t.Errorf("with docker as %q the backend is not the one of %s: %s", docker, watcher, said)
		}
	}
	want("exit 1", "victoria-metrics")
	want(noPlugin, "victoria-metrics")
	want(plugin, "victoriametrics")
	s.must("dev-up.sh")
	want(plugin, "victoria-metrics")
	s.must("dev-down.sh")
	want(plugin, "victoriametrics")
}

// A stack that somebody else has started is told as such.
func TestScriptsMayNotWrite(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	if err := os.Chmod(s.run, 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(s.run, 0o755)
	for _, script := range []string{"dev-up.sh", "promote.sh", "dev-down.sh"} {
		cmd := s.script(script)
		if os.Getuid() == 0 { // root may write anyway
			cmd = s.command([]string{wantProgram(t, "setpriv"), "--bounding-set=-dac_override", "scripts/" + script})
		}
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "run this as that user, or") {
			t.Errorf("%s: %v, %s", script, err, out)
		}
	}
}

// Where nothing runs, each script says so at once, and what starts the stack:
// where it never ran, and where it was ended.
func TestScriptsWithoutAStack(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	check := func(want map[string]string) {
		t.Helper()
		for script, text := range want {
			out, said, code := s.streams(script)
			if code != 1 || out != "" || strings.Count(said, "\n") != 1 || !strings.Contains(said, text) || !strings.Contains(said, "make dev-up") {
				t.Errorf("%s: exit code %d, want 1, and one line with %q; output %q, errors %q", script, code, text, out, said)
			}
		}
	}
	check(map[string]string{
		"logs.sh": "the stack has logged nothing yet", "logs.sh green": "green has logged nothing yet", "metrics.sh": "no colour runs",
		"smoke.sh": "no colour serves", "promote.sh": "no colour serves yet",
	})
	s.must("dev-up.sh")
	s.must("dev-down.sh")
	check(map[string]string{
		"logs.sh green": "green has logged nothing yet", "metrics.sh": "no colour runs", "smoke.sh": "blue should serve, but does not run",
		"promote.sh": "the stack is down", "promote.sh blue": "the stack is down",
	})
}

func TestMetricsWithoutTheText(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	out, said, code := s.streams("metrics.sh nothing_like_it")
	if code != 1 || out != "" || said != "metrics.sh: no line of the metrics of blue has \"nothing_like_it\" in it\n" {
		t.Errorf("exit code %d, output %q, errors %q", code, out, said)
	}
}

// The log of one service is shown, as it comes, until ^C, which is no failure:
// make would tell of one.
func TestLogsOfOneService(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.must("promote.sh")
	cmd := s.script("logs.sh green")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	lines := bufio.NewScanner(out)
	for _, client := range []string{"first", "second"} {
		dialWebSocket(t, s.site)
		for lines.Scan() && !strings.Contains(lines.Text(), "websocket_connected") {
			if strings.Contains(lines.Text(), "==>") { // which tail says of several files
				t.Errorf("it is not the log of green alone: %s", lines.Text())
			}
		}
		if lines.Err() != nil || !strings.Contains(lines.Text(), "websocket_connected") {
			t.Fatalf("the %s client is not in the log", client)
		}
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("at ^C: %v", err)
	}
}

// What the server has against its variables is told before anything starts, and
// a variable that nobody knows is passed on.
func TestVariablesOfTheServer(t *testing.T) {
	t.Parallel()
	s := preparedStack(t)
	_, said, code := s.streams("dev-up.sh", "TURNSTILE_WORKERS=none")
	if code != 2 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "-workers must be a whole number") {
		t.Errorf("exit code %d, errors %q", code, said)
	}
	if _, err := os.Stat(s.run + "/pid"); err == nil {
		t.Error("something was started")
	}
	_, said, code = s.streams("dev-up.sh", "TURNSTILE_MAX_MESAGE=1000")
	if code != 0 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "warning: TURNSTILE_MAX_MESAGE: no flag has this variable") {
		t.Errorf("exit code %d, errors %q", code, said)
	}
}
