package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// engineGroup may use an engine's socket: a number that no group of a machine has.
const engineGroup = 65531

// An engine is a Docker engine of a test's own. It runs in namespaces of its own,
// as if it had a machine to itself: no rule, bridge or mount of it is seen
// outside, and the kernel ends all that is in there with it. What its containers
// publish at addr can be reached from here.
type engine struct {
	t      testing.TB
	dir    string // all that it keeps
	socket string
	addr   string // its machine's address
	group  string // the cgroup above those of its containers
	init   *exec.Cmd
	stdin  io.Closer // the engine ends with it
	exited chan struct{}
}

// engineInit is the first process of the engine's namespaces: the kernel ends all
// others with it. It ends with the engine, which it kills when its input ends:
// also if the test has been killed.
const engineInit = `
mount -t proc proc /proc && ip link set lo up || exit
exec 3<&0
"$@" 3<&- &
engine=$!
{ read -r _ <&3; kill -KILL $engine; } &
wait $engine
`

// newEngine starts an engine, which ends with the test. Where none can be
// started, the test is skipped, and fails with CI=true.
func newEngine(t testing.TB) *engine {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "no Docker engine can be started: only root may")
	}
	for _, program := range []string{"dockerd", "docker", "containerd", "runc", "iptables", "ip"} {
		wantProgram(t, program)
	}
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
	// Open, since a plain user's programs use the socket as well.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/config", 0o755)); err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, dir: dir, socket: dir + "/docker.sock", group: "/turnstile-" + filepath.Base(dir), exited: make(chan struct{})}
	t.Cleanup(e.end)
	if err := e.start(); err != nil {
		missing(t, "no Docker engine can be started: %v", err)
	}
	return e
}

// start returns when the engine answers.
func (e *engine) start() error {
	log, err := os.Create(e.dir + "/dockerd.log")
	if err != nil {
		return err
	}
	defer log.Close()
	e.init = exec.Command("sh", "-c", engineInit, "init",
		"dockerd", "--data-root", e.dir+"/data", "--exec-root", e.dir+"/exec", "--pidfile", e.dir+"/pid",
		"--host", "unix://"+e.socket, "--group", fmt.Sprint(engineGroup), "--cgroup-parent", e.group)
	e.init.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	e.init.Stdout, e.init.Stderr = log, log
	// With Unshareflags, and not with Cloneflags, Go keeps mounts from spreading.
	e.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	if e.stdin, err = e.init.StdinPipe(); err != nil {
		return err
	}
	if err := e.init.Start(); err != nil {
		close(e.exited)
		return err
	}
	go func() {
		e.init.Wait()
		close(e.exited)
	}()
	if err := e.connect(); err != nil {
		return err
	}
	return e.await()
}

// connect lays a cable from this machine to the engine's.
func (e *engine) connect() error {
	// Of the addresses for tests of networks, RFC 2544: nobody has a route to them.
	link, n := fmt.Sprintf("turn%x", rand.Uint32()), rand.IntN(1<<14)*4
	here, there := fmt.Sprintf("198.18.%d.%d", n>>8, n&255+1), fmt.Sprintf("198.18.%d.%d", n>>8, n&255+2)
	pid := fmt.Sprint(e.init.Process.Pid)
	for _, command := range []string{
		"ip link add " + link + " type veth peer name outside netns " + pid,
		"ip addr add " + here + "/30 dev " + link,
		"ip link set " + link + " up",
		"nsenter --net --target " + pid + " ip addr add " + there + "/30 dev outside",
		"nsenter --net --target " + pid + " ip link set outside up",
	} {
		words := strings.Fields(command)
		cmd := exec.Command(wantProgram(e.t, words[0]), words[1:]...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(out))
		}
	}
	e.addr = there
	return nil
}

// await waits until the engine answers, or has ended.
func (e *engine) await() error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		if conn, err := net.Dial("unix", e.socket); err == nil {
			conn.Close()
			if _, err := e.try("version"); err == nil {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-e.exited:
			return fmt.Errorf("dockerd has ended: %s", e.lastLine())
		case <-deadline:
			return fmt.Errorf("dockerd does not answer after %v: %s", patience, e.lastLine())
		}
	}
}

func (e *engine) lastLine() string {
	log, _ := os.ReadFile(e.dir + "/dockerd.log")
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return lines[len(lines)-1]
}

// end ends the engine with its containers, and removes what it has kept.
func (e *engine) end() {
	if e.stdin != nil {
		e.stdin.Close()
		select {
		case <-e.exited:
		case <-time.After(patience):
			e.t.Errorf("the Docker engine did not end within %v: it is killed", patience)
			e.init.Process.Kill()
			<-e.exited
		}
	}
	if e.t.Failed() {
		e.t.Logf("the last line of the Docker engine: %s", e.lastLine())
	}
	e.removeCgroups()
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("something of the Docker engine is left: %v", err)
	}
}

// removeCgroups removes the groups, empty by now, from all hierarchies.
func (e *engine) removeCgroups() {
	tops, _ := filepath.Glob("/sys/fs/cgroup/*" + e.group) // version 1
	for _, top := range append(tops, "/sys/fs/cgroup"+e.group) {
		var groups []string
		filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0; i-- { // children first
			if err := syscall.Rmdir(groups[i]); err != nil {
				e.t.Errorf("a cgroup of the Docker engine is left: %s: %v", groups[i], err)
			}
		}
	}
}

// env is what a program needs to find this engine, and no other one's settings.
func (e *engine) env() []string {
	return []string{"DOCKER_HOST=unix://" + e.socket, "DOCKER_CONFIG=" + e.dir + "/config"}
}

// command is docker with arguments.
func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), e.env()...)
	return cmd
}

// try runs docker, and returns all that it says.
func (e *engine) try(args ...string) (out string, err error) {
	text, err := e.command(args...).CombinedOutput()
	return string(text), err
}

// docker runs docker, which has to succeed, and returns what it prints.
func (e *engine) docker(args ...string) string {
	e.t.Helper()
	var complaint bytes.Buffer
	cmd := e.command(args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("docker %s: %v: %s%s", strings.Join(args, " "), err, out, complaint.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// importImage makes an image of a folder. The changes are lines of a Dockerfile:
// "ENV A=b", `ENTRYPOINT ["server"]`.
func (e *engine) importImage(name, folder string, changes ...string) {
	e.t.Helper()
	arguments := []string{"import"}
	for _, change := range changes {
		arguments = append(arguments, "--change", change)
	}
	pack, load := exec.Command("tar", "--create", "--numeric-owner", "--directory", folder, "."), e.command(append(arguments, "-", name)...)
	var packed, loaded bytes.Buffer
	var err error
	pack.Stderr, load.Stderr = &packed, &loaded
	if load.Stdin, err = pack.StdoutPipe(); err != nil {
		e.t.Fatal(err)
	}
	if err := errors.Join(pack.Start(), load.Run(), pack.Wait()); err != nil {
		e.t.Fatalf("the image %s cannot be made: %v: %s%s", name, err, packed.Bytes(), loaded.Bytes())
	}
}

// A rootfs is a folder that becomes an image: a shell and its tools, and the
// programs that are put into it.
type rootfs struct {
	t   testing.TB
	dir string
}

const rootfsPasswd = "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/home/nonroot:/bin/sh\n"

// newRootfs has busybox in it.
func newRootfs(t testing.TB) *rootfs {
	t.Helper()
	r := &rootfs{t, t.TempDir()}
	busybox := wantProgram(t, "busybox")
	r.add("/bin/busybox", busybox)
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			r.check(os.Symlink("busybox", r.dir+"/bin/"+applet))
		}
	}
	r.check(os.Mkdir(r.dir+"/etc", 0o755), os.Mkdir(r.dir+"/tmp", 0o755), os.Chmod(r.dir+"/tmp", 0o777|os.ModeSticky))
	r.check(os.WriteFile(r.dir+"/etc/passwd", []byte(rootfsPasswd), 0o644))
	return r
}

func (r *rootfs) check(errs ...error) {
	r.t.Helper()
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

// add copies a program to a path, and the libraries that it needs to where they are here.
func (r *rootfs) add(path, program string) {
	r.t.Helper()
	r.copy(path, program)
	out, _ := exec.Command("ldd", program).Output() // which fails for a static program
	for _, library := range regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(out), -1) {
		r.copy(library, library)
	}
}

// copy copies a file, or all of a folder, to a path.
func (r *rootfs) copy(path, from string) {
	r.t.Helper()
	r.check(os.MkdirAll(filepath.Dir(r.dir+path), 0o755))
	if out, err := exec.Command("cp", "--recursive", "--dereference", "--no-target-directory", from, r.dir+path).CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
}

// The engine does what the tests of containers ask of it, and leaves nothing.
func TestEngine(t *testing.T) {
	var dir, link string
	t.Run("it serves", func(t *testing.T) {
		e := newEngine(t)
		dir = e.dir
		r := newRootfs(t)
		e.importImage("web:1", r.dir, "ENV PATH=/bin", `ENTRYPOINT ["httpd", "-f", "-h", "/etc", "-p"]`)
		e.docker("run", "--detach", "--publish", e.addr+":8080:80", "web:1", "80")
		eventually(t, "the container answers", answers("http://"+e.addr+":8080/passwd"))
		if out, err := e.try("run", "web:2"); err == nil {
			t.Errorf("an image that is not there: %s", out)
		}
		link = engineLink(t, e)
	})
	if dir == "" {
		missing(t, "no Docker engine can be started")
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts of the engine are left: %v\n%s", err, mounts)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
	// The kernel takes its time over a namespace whose last process has gone.
	eventually(t, "its link "+link+" is gone", func() bool {
		_, err := net.InterfaceByName(link)
		return err != nil
	})
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/turnstile-" + filepath.Base(dir)); len(left) > 0 {
		t.Errorf("its cgroups are left: %q", left)
	}
}

// engineLink is the network interface that leads to the engine.
func engineLink(t *testing.T, e *engine) string {
	t.Helper()
	out, err := exec.Command(wantProgram(t, "ip"), "-oneline", "route", "get", e.addr).Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 3 || !strings.HasPrefix(words[2], "turn") {
		t.Fatalf("the way to the engine: %v: %s", err, out)
	}
	return words[2]
}
