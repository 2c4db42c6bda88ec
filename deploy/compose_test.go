package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/server/doctest"
)

// TestContainers opens every door of the stack as containers, on an engine of its
// own: as root from another machine, so to speak, and as a plain user on the
// engine's own. No image can be pulled, so those of the stack are made here;
// the ones of Loki, Alloy and Grafana are missing.
func TestContainers(t *testing.T) {
	e := newEngine(t)
	built := tool(t, "docker-compose")
	for _, name := range []string{"curl", "nginx", "redis-server", "git"} {
		wantProgram(t, name)
	}
	plugin := e.dir + "/docker-compose" // where every user may read it
	if out, err := exec.Command("cp", built, plugin).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	addPlugin(t, e.dir+"/config", plugin)
	makeImages(e)
	source := copySource(t, e.dir+"/source")
	t.Run("as root", func(t *testing.T) { testContainersAsRoot(t, e, source) })
	blocks := doctest.Blocks(t, "deploy/README.md")
	t.Run("as a user", func(t *testing.T) {
		s := newContainersOfAUser(t, e, source, plugin)
		s.follow(blocks)
		wantNoneLeft(t, s)
		wantOwner(t, s.run, engineUser)
	})
}

// addPlugin adds the compose plugin to a folder of docker's settings.
func addPlugin(t *testing.T, config, plugin string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(config+"/cli-plugins", 0o755), os.Symlink(plugin, config+"/cli-plugins/docker-compose")); err != nil {
		t.Fatal(err)
	}
}

func testContainersAsRoot(t *testing.T, e *engine, source string) {
	s := newContainers(t, e, source, e.dir+"/root")
	s.env = append(s.env, "TURNSTILE_HOST="+e.addr)
	testContainerSetup(t, s)
	out := s.must("dev-up.sh", "TURNSTILE_MONITORING=on")
	for _, want := range []string{
		"  redis runs\n", "  blue runs\n", "  nginx runs\n", "  victoriametrics runs\n", "  vmalert runs\n",
		"loki does not start: see make logs\n",
		"warning: the service runs, but not all of what watches it: no loki alloy grafana. " +
			"To start the stack without monitoring: TURNSTILE_MONITORING=off make dev-up\n",
		"http://" + s.site + "/ ", "http://" + e.addr + ":8428/vmui/", "make promote",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("dev-up.sh does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "Grafana") {
		t.Errorf("dev-up.sh leads to Grafana, which does not run:\n%s", out)
	}
	wantWatched(t, s, "blue")
	eventually(t, "vmalert evaluates the rules", func() bool {
		page, err := fetch("http://" + e.addr + ":8880/api/v1/rules")
		return err == nil && bytes.Contains(page, []byte(`"health":"ok"`))
	})
	testConsole(t, s)
	testContainerPromotions(t, s)
	testContainerViews(t, s)
	wantNoneLeft(t, s)
}

// testContainerSetup is what setup.sh says of an engine with and without the plugin.
func testContainerSetup(t *testing.T, s *stack) {
	t.Helper()
	if out := s.must("setup.sh"); !strings.Contains(out, "the stack will be containers") {
		t.Errorf("setup.sh: %s", out)
	}
	const noPlugin = "DOCKER_CONFIG=/nonexistent"
	if s.command([]string{"docker", "compose", "version"}, noPlugin).Run() == nil {
		return // it is installed for everybody
	}
	if out := s.must("setup.sh", noPlugin); !strings.Contains(out, "no compose plugin, so the stack will be processes") {
		t.Errorf("setup.sh without the plugin: %s", out)
	}
	if out, code := s.try("dev-up.sh", noPlugin, "TURNSTILE_BACKEND=compose"); code != 1 ||
		!strings.Contains(out, "no compose plugin: install docker-compose-plugin") {
		t.Errorf("dev-up.sh without the plugin: exit code %d: %s", code, out)
	}
}

// testConsole opens the console in Chromium, through nginx.
func testConsole(t *testing.T, s *stack) {
	t.Helper()
	cmd := exec.Command(wantProgram(t, "node"), "--test", "--test-reporter=spec", "console.test.mjs")
	cmd.Env = append(os.Environ(), "TURNSTILE_SITE="+s.site)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the console: %v:\n%s", err, out)
	}
}

// Clients send all the time, over promotions of all kinds.
func testContainerPromotions(t *testing.T, s *stack) {
	t.Helper()
	const clients = 50
	c := newCrowd(t, s.site, clients)
	for _, colour := range []string{"green", "blue"} {
		out := s.must("promote.sh")
		if want := fmt.Sprintf("%s took over %d connections", colour, clients); !strings.Contains(out, want) {
			t.Errorf("not %q in:\n%s", want, out)
		}
		s.wantServing(colour)
		c.WantUndisturbed()
	}
	if out, code := s.try("promote.sh", "TURNSTILE_MAX_MESSAGE=4"); code != 1 ||
		!strings.Contains(out, "step 4 failed: green is not fit to serve; putting everything back") {
		t.Errorf("a broken release: exit code %d:\n%s", code, out)
	}
	s.wantServing("blue")
	c.WantUndisturbed()
	for _, step := range []int{3, 7} {
		killAtStep(t, s, step)
		s.must("promote.sh")
		c.WantUndisturbed()
	}
	next := map[string]string{"blue": "green", "green": "blue"}[s.serving()]
	s.must("promote.sh --drain")
	s.wantServing(next)
	c.WaitBack()
	if pauses, ends := c.TakePauses(); len(pauses) != clients || ends.Goodbyes() != clients {
		t.Errorf("%d pauses, of connections that ended: %v", len(pauses), ends)
	}
	c.Settle()
}

// testContainerViews looks at what the stack says of itself.
func testContainerViews(t *testing.T, s *stack) {
	t.Helper()
	colour := s.serving()
	if out := s.must("smoke.sh"); !strings.Contains(out, "it leads to unix:/run/turnstile/"+colour+".sock") {
		t.Errorf("smoke.sh:\n%s", out)
	}
	if out := s.must("metrics.sh websocket_ready"); !strings.Contains(out, "# "+colour+"\n") ||
		!strings.Contains(out, "\nwebsocket_ready 1\n") {
		t.Errorf("metrics.sh:\n%s", out)
	}
	view := s.must("monitor.sh 1")
	blue, green := row(t, view, "state")
	if got := map[string]string{"blue": blue, "green": green}; got[colour] != "ready" {
		t.Errorf("monitor.sh, where %s serves:\n%s", colour, view)
	}
	logs := s.script("logs.sh")
	out, err := logs.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	defer logs.Wait()
	defer syscall.Kill(-logs.Process.Pid, syscall.SIGKILL)
	wantLines(t, out, colour+"-1 ", "redis-1 ", "nginx-1 ", "victoriametrics-1 ", "vmalert-1 ")
}

// wantLines reads until each of the texts has come.
func wantLines(t *testing.T, out io.Reader, texts ...string) {
	t.Helper()
	if err := out.(*os.File).SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for len(texts) > 0 && lines.Scan() {
		texts = slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(lines.Text(), text) })
	}
	if len(texts) > 0 {
		t.Errorf("no lines with %q came: %v", texts, lines.Err())
	}
}

// engineUser is no user of the machine.
const engineUser = 65530

// newContainersOfAUser is a stack of somebody who may use the engine's socket and
// is not root, on the engine's machine, with the addresses that it has by default.
func newContainersOfAUser(t *testing.T, e *engine, source, plugin string) *stack {
	t.Helper()
	s := newContainers(t, e, source, e.dir+"/user")
	config := e.dir + "/user.config"
	addPlugin(t, config, plugin)
	own := exec.Command("chown", "--recursive", fmt.Sprintf("%d:%d", engineUser, engineGroup), s.run, config)
	if out, err := own.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.env = append(s.env, "DOCKER_CONFIG="+config)
	s.host, s.site = "127.0.0.1", "127.0.0.1:8080"
	s.before = []string{wantProgram(t, "nsenter"), "--net", "--target", fmt.Sprint(e.init.Process.Pid),
		wantProgram(t, "setpriv"), fmt.Sprintf("--reuid=%d", engineUser), fmt.Sprintf("--regid=%d", engineGroup), "--clear-groups"}
	return s
}

// wantOwner holds that all in a folder belongs to a user.
func wantOwner(t *testing.T, folder string, uid uint32) {
	t.Helper()
	filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
		if info, statErr := os.Lstat(path); err != nil || statErr != nil || info.Sys().(*syscall.Stat_t).Uid != uid {
			t.Errorf("%s is not the user's: %v", path, errors.Join(err, statErr))
		}
		return nil
	})
}

// wantNoneLeft ends the stack, after which the engine has nothing of it.
func wantNoneLeft(t *testing.T, s *stack) {
	t.Helper()
	s.must("dev-down.sh")
	if left := s.engine.docker("ps", "--all", "--format", "{{.Names}}"); left != "" {
		t.Errorf("containers are left: %s", left)
	}
	if left := s.engine.docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"); left != "" {
		t.Errorf("networks are left: %s", left)
	}
	if left, _ := filepath.Glob(s.run + "/*.sock"); !slices.Equal(left, []string{s.run + "/active.sock"}) {
		t.Errorf("sockets are left: %q", left)
	}
}

// newContainers is a stack as containers, not started yet. It ends with the test.
func newContainers(t *testing.T, e *engine, source, run string) *stack {
	t.Helper()
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	s := &stack{t: t, run: run, host: e.addr, site: e.addr + ":8080", source: source, engine: e}
	s.env = []string{"TURNSTILE_RUN_DIR=" + run, "TURNSTILE_MONITORING=off", fmt.Sprintf("TURNSTILE_NOFILE=%d", min(limit.Max, 65536))}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for name := range strings.FieldsSeq(e.docker("ps", "--all", "--format", "{{.Names}}")) {
			out, _ := e.try("logs", "--tail", "5", name)
			t.Logf("the end of %s:\n%s", name, out)
		}
		s.try("dev-down.sh")
	})
	return s
}

// copySource copies the repository to where every user may read it.
func copySource(t *testing.T, folder string) string {
	t.Helper()
	const command = `mkdir "$1" && cd .. && git ls-files -z --cached --others --exclude-standard |
		tar --create --null --ignore-failed-read --files-from - | tar --extract --directory "$1"`
	if out, err := exec.Command("sh", "-c", command, "sh", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return folder
}

// makeImages makes the images that compose.yml and the Dockerfile name, of what is
// installed here.
func makeImages(e *engine) {
	t := e.t.(*testing.T)
	project, err := loadCompose(t, "TURNSTILE_RUN_DIR=/srv/turnstile", "TURNSTILE_USER=1000:1000")
	if err != nil {
		t.Fatal(err)
	}
	const path = "ENV PATH=/bin:/usr/bin:/usr/sbin:/usr/local/bin"
	programs := map[string]map[string]string{
		"redis":           {"/usr/bin/redis-server": wantProgram(t, "redis-server"), "/usr/bin/redis-cli": wantProgram(t, "redis-cli")},
		"nginx":           {"/usr/sbin/nginx": wantProgram(t, "nginx")},
		"victoriametrics": {"/victoria-metrics-prod": tool(t, "victoria-metrics")},
		"vmalert":         {"/vmalert-prod": tool(t, "vmalert")},
	}
	for service, files := range programs {
		r := newRootfs(t)
		for at, program := range files {
			r.add(at, program)
		}
		e.importImage(project.Services[service].Image, r.dir, path)
	}
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	from := regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(from) != 2 {
		t.Fatalf("the Dockerfile builds from %q", from)
	}
	e.importImage(from[0][1], goRootfs(t).dir, "ENV PATH=/usr/local/go/bin:/bin GOPATH=/go GOPROXY=off GOTOOLCHAIN=local GOCACHE=/go/cache")
	e.importImage(from[1][1], newRootfs(t).dir, path)
}

// goRootfs has Go and the modules of the server. Its cache has what was built
// already: by the flags of the Dockerfile, which then takes seconds.
func goRootfs(t *testing.T) *rootfs {
	r := newRootfs(t)
	const command = `
cd .. && cache=$PWD/.cache/docker/go-build modules=$(go env GOMODCACHE)/cache/download
go mod download
GOMODCACHE=$1/go/pkg/mod GOFLAGS=-modcacherw GOSUMDB=off GOPROXY=file://$modules go mod download
GOCACHE=$cache CGO_ENABLED=0 go list -export -trimpath -deps ./server ./bench >/dev/null
cp -r "$cache" "$1/go/cache"
mkdir -p "$1/usr/local" && cp -r "$(go env GOROOT)" "$1/usr/local/go"
`
	if out, err := exec.Command("sh", "-ec", command, "sh", r.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}
