package deploy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turnstile/server/doctest"
	"turnstile/server/oracle"
)

// machinePackages is what the machine of TestSystemd has before anybody pastes
// anything. It has no network, so what the document installs is there too.
const machinePackages = "systemd,systemd-sysv,nginx,redis-server,curl"

// A machine is a Debian whose first process is systemd: a container. What it
// keeps in /run is gone when it is restarted.
type machine struct {
	t      testing.TB
	engine *engine
	folder string // where the next commands are pasted
	site   string // nginx, from outside
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	e := newEngine(t)
	e.docker("import", debian(t), "debian:systemd")
	e.docker("run", "--detach", "--name", "machine", "--hostname", "machine", "--publish", e.addr+":8080:8080",
		"--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--tmpfs", "/run:exec", "--tmpfs", "/tmp", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--env", "container=docker",
		"debian:systemd", "/lib/systemd/systemd")
	m := &machine{t: t, engine: e, folder: "/root", site: e.addr + ":8080"}
	t.Cleanup(m.showJournal)
	m.awaitBoot()
	m.limitFiles()
	return m
}

// debian is an archive of the machine's files, made once for each list of packages.
func debian(t testing.TB) string {
	t.Helper()
	archive := fmt.Sprintf("../.cache/debian-%.8x.tar", sha256.Sum256([]byte(machinePackages)))
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	root, err := os.MkdirTemp("", "debian")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	bootstrap := exec.Command(wantProgram(t, "debootstrap"), "--variant=minbase", "--include="+machinePackages, "bookworm", root)
	if out, err := bootstrap.CombinedOutput(); err != nil {
		said := strings.TrimSpace(string(out))
		missing(t, "no Debian can be made: debootstrap, which needs a network: %v: %s", err, said[strings.LastIndexByte(said, '\n')+1:])
	}
	// apt-get update asks nobody.
	err = errors.Join(os.WriteFile(root+"/etc/apt/sources.list", nil, 0o644), os.RemoveAll(root+"/var/cache/apt/archives"))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(archive), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	tar := exec.Command("tar", "--create", "--file", archive+".new", "--numeric-owner", "--directory", root, ".")
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(archive+".new", archive); err != nil {
		t.Fatal(err)
	}
	return archive
}

// awaitBoot waits until systemd has started what it starts by itself.
func (m *machine) awaitBoot() {
	m.t.Helper()
	eventually(m.t, "the machine has started", func() bool {
		state, _ := m.engine.try("exec", "machine", "systemctl", "is-system-running")
		return strings.Contains(state, "running") || strings.Contains(state, "degraded")
	})
}

// limitFiles lets units start where this process may open fewer files than they
// ask for: a container without privilege cannot have more.
func (m *machine) limitFiles() {
	_, allowed := fileLimit(m.t)
	_, files, _ := strings.Cut(allowed, " ")
	for _, unit := range []string{"turnstile@", "redis-server", "nginx"} {
		m.run(fmt.Sprintf("mkdir -p /etc/systemd/system/%s.service.d && "+
			"printf '[Service]\nLimitNOFILE=%s\n' >/etc/systemd/system/%[1]s.service.d/files.conf",
			unit, files))
	}
	// Nor a user namespace in all kernels.
	m.run("printf 'PrivateUsers=no\n' >>/etc/systemd/system/redis-server.service.d/files.conf; systemctl daemon-reload")
}

// try runs commands as root in a shell, and returns what they say.
func (m *machine) try(commands string) (out string, err error) {
	return m.engine.try("exec", "--workdir", m.folder, "--env", "HOME=/root", "machine", "bash", "-e", "-o", "pipefail", "-c", commands)
}

// run is try, which has to succeed.
func (m *machine) run(commands string) (out string) {
	m.t.Helper()
	out, err := m.try(commands)
	if err != nil {
		m.t.Fatalf("%v: %s\n%s", err, commands, out)
	}
	return out
}

// paste runs a block of the document where the one before it has ended.
func (m *machine) paste(block doctest.Block) (out string) {
	m.t.Helper()
	m.t.Logf("%s", block)
	out = strings.TrimSpace(m.run(block.Text + "\npwd"))
	at := strings.LastIndexByte(out, '\n') + 1
	m.folder = out[at:]
	return out[:at]
}

// property is what systemd says of a colour.
func (m *machine) property(colour, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl show --value --property=" + name + " turnstile@" + colour))
}

// wantServing holds that nginx leads to a colour, which alone runs, and which
// alone starts with the machine.
func (m *machine) wantServing(colour, other string) {
	m.t.Helper()
	for _, want := range []struct{ command, says string }{
		{"readlink /run/turnstile/active.sock", colour + ".sock"},
		{"systemctl is-active turnstile@" + colour, "active"},
		{"systemctl is-enabled turnstile@" + colour, "enabled"},
		{"systemctl is-active turnstile@" + other, "inactive"},
		{"systemctl is-enabled turnstile@" + other, "disabled"},
	} {
		out, _ := m.try(want.command)
		if got := strings.TrimSpace(out); got != want.says {
			m.t.Errorf("%s: %s, want %s", want.command, got, want.says)
		}
	}
}

// restart is a reboot: all processes end, and /run is new.
func (m *machine) restart() {
	m.t.Helper()
	m.engine.docker("restart", "machine")
	m.awaitBoot()
}

func (m *machine) showJournal() {
	if m.t.Failed() {
		out, _ := m.engine.try("exec", "machine", "journalctl", "--no-pager", "--lines", "30")
		m.t.Logf("the end of the journal:\n%s", out)
	}
}

// TestSystemd pastes the commands of the document's chapter, in their order: the
// first block where the project is, the others into a new Debian. In between,
// what the chapter promises happens to the units, with clients that send.
func TestSystemd(t *testing.T) {
	blocks := doctest.Blocks(t, "deploy/README.md")
	m := newMachine(t)
	m.receiveRelease(blocks[0])
	blocks = blocks[1:]
	pasteThrough := func(command string) (out string) {
		t.Helper()
		for len(blocks) > 0 {
			block := blocks[0]
			blocks = blocks[1:]
			if out = m.paste(block); strings.Contains(block.Text, command) {
				return out
			}
		}
		t.Fatalf("the document does not say %s, or not here", command)
		return ""
	}

	if out := pasteThrough("scripts/smoke.sh"); strings.Count(out, "ok") == 0 {
		t.Errorf("the smoke test: %s", out)
	}
	m.wantServing("blue", "green")
	m.wantSettings("blue")
	c := newCrowd(t, m.site, 50)

	m.packAnotherRelease()
	out := pasteThrough("2/scripts/promote.sh")
	m.wantHandover(c, out, "green", "blue")
	m.run("cmp /opt/turnstile/2/bin/server /usr/local/bin/turnstile-green")

	m.restart()
	c.WaitBack()
	m.wantServing("green", "blue")

	m.crash(c, "green")
	m.promoteBrokenRelease(c, "green", "blue")

	out = pasteThrough("1/scripts/promote.sh")
	m.wantHandover(c, out, "blue", "green")
	m.run("cmp /opt/turnstile/1/bin/server /usr/local/bin/turnstile-blue")

	out = pasteThrough("readlink")
	for _, want := range []string{"blue.sock\nenabled\n", "server_started", "websocket_active_connections 50"} {
		if !strings.Contains(out, want) {
			t.Errorf("not %q in what the commands say:\n%s", want, out)
		}
	}
	c.Settle()
	m.stop("blue")
	if len(blocks) > 0 {
		t.Errorf("%s was not pasted", blocks[0])
	}
}

// receiveRelease packs a release as the block says, here, and copies it to root's
// folder on the machine.
func (m *machine) receiveRelease(block doctest.Block) {
	m.t.Helper()
	pack := exec.Command("bash", "-e", "-c", block.Text)
	pack.Dir = doctest.Root(m.t)
	if out, err := pack.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v: %s", block, err, out)
	}
	m.engine.docker("cp", pack.Dir+"/bin/turnstile.tar.gz", "machine:/root/")
}

// packAnotherRelease puts one in the place of the first that differs in its
// server, by a byte that nobody reads.
func (m *machine) packAnotherRelease() {
	m.t.Helper()
	m.run(`cp -r /opt/turnstile/1 /tmp/next
		echo >>/tmp/next/bin/server
		tar -czf /root/turnstile.tar.gz -C /tmp/next .`)
}

// wantSettings holds that a colour runs as its unit wants it.
func (m *machine) wantSettings(colour string) {
	m.t.Helper()
	for name, want := range map[string]string{"TimerSlackNSec": "1000000", "User": "turnstile", "Group": "www-data", "NRestarts": "0"} {
		if got := m.property(colour, name); got != want {
			m.t.Errorf("%s of %s: %s, want %s", name, colour, got, want)
		}
	}
}

// wantHandover holds that a promotion has disturbed nobody, and that the old
// colour has ended for good.
func (m *machine) wantHandover(c *oracle.Crowd, said, next, old string) {
	m.t.Helper()
	if want := fmt.Sprintf("%s took over %d connections", next, c.Size()); !strings.Contains(said, want) {
		m.t.Errorf("not %q in:\n%s", want, said)
	}
	c.WantUndisturbed()
	m.wantServing(next, old)
	if result := m.property(old, "Result"); result != "success" {
		m.t.Errorf("%s, which has handed over: %s", old, result)
	}
}

// crash kills a colour: systemd starts it again, and its clients are back.
func (m *machine) crash(c *oracle.Crowd, colour string) {
	m.t.Helper()
	c.TakePauses()
	m.run("systemctl kill --signal=SIGKILL turnstile@" + colour)
	eventually(m.t, colour+" is started again", func() bool {
		return m.property(colour, "NRestarts") == "1" && m.property(colour, "ActiveState") == "active"
	})
	c.WaitBack()
}

// promoteBrokenRelease has a promotion fail, which clients do not notice.
func (m *machine) promoteBrokenRelease(c *oracle.Crowd, serves, next string) {
	m.t.Helper()
	c.TakePauses()
	m.run(`mkdir /opt/turnstile/broken
		cp -r /opt/turnstile/2/. /opt/turnstile/broken
		ln -sf /bin/false /opt/turnstile/broken/bin/server`)
	out, err := m.try("/opt/turnstile/broken/scripts/promote.sh")
	if err == nil || !strings.Contains(out, next+" cannot be started") {
		m.t.Errorf("a promotion of a server that does not start: %v: %s", err, out)
	}
	c.WantUndisturbed()
	m.wantServing(serves, next)
}

// stop drains a colour, which is not started again.
func (m *machine) stop(colour string) {
	m.t.Helper()
	m.run("systemctl stop turnstile@" + colour)
	if state, result := m.property(colour, "ActiveState"), m.property(colour, "Result"); state != "inactive" || result != "success" {
		m.t.Errorf("%s, which was stopped: %s, %s", colour, state, result)
	}
	if r := get(m.t, m.site, "/ws/chat/"); r.StatusCode != 503 {
		m.t.Errorf("nginx, with no colour to lead to: %s", r.Status)
	}
}
