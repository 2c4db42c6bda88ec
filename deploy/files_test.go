package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// shellScripts are all of the repository's.
func shellScripts(t testing.TB) []string {
	t.Helper()
	var scripts []string
	for _, pattern := range []string{"../scripts/*.sh", "../bench/peers/*.sh", "../.ci/run"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		scripts = append(scripts, found...)
	}
	return scripts
}

func TestShellcheck(t *testing.T) {
	args := append([]string{"--external-sources"}, shellScripts(t)...)
	if out, err := exec.Command(wantProgram(t, "shellcheck"), args...).CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// loadCompose reads compose.yml as docker compose does.
func loadCompose(t *testing.T, env ...string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"compose.yml"}, cli.WithEnv(env))
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(t.Context())
}

func TestCompose(t *testing.T) {
	project, err := loadCompose(t, "TURNSTILE_RUN_DIR=/srv/turnstile", "TURNSTILE_USER=1000:1000")
	if err != nil {
		t.Fatal(err)
	}
	for name, service := range project.Services {
		checkService(t, name, &service)
	}
	for _, colour := range []string{"blue", "green"} {
		service := project.Services[colour]
		if !slices.ContainsFunc(service.Command, func(arg string) bool {
			return strings.Contains(arg, "unix:/run/turnstile/"+colour+".sock")
		}) {
			t.Errorf("%s does not listen on its socket: %q", colour, service.Command)
		}
		if !slices.Contains(service.HealthCheck.Test, "unix:/run/turnstile/"+colour+".sock:/healthz/") {
			t.Errorf("the health check of %s: %q", colour, service.HealthCheck.Test)
		}
	}
	for _, part := range composeParts(t) {
		if _, ok := project.Services[part]; !ok {
			t.Errorf("scripts/compose.sh starts %s, which is no service", part)
		}
	}
	if _, err := loadCompose(t, "TURNSTILE_RUN_DIR=/srv/turnstile"); err == nil || !strings.Contains(err.Error(), "start it by make dev-up") {
		t.Errorf("without the scripts' variables: %v", err)
	}
}

// checkService holds a service to what all of them have to be.
func checkService(t *testing.T, name string, service *types.ServiceConfig) {
	t.Helper()
	if service.Build == nil && !regexp.MustCompile(`:v?\d+\.\d+`).MatchString(service.Image) {
		t.Errorf("%s: the image %q has no version", name, service.Image)
	}
	for _, port := range service.Ports {
		if port.HostIP == "" {
			t.Errorf("%s: port %s is open to everybody", name, port.Published)
		}
	}
	for _, volume := range service.Volumes {
		ours := strings.HasPrefix(volume.Source, "/srv/turnstile") || strings.HasPrefix(volume.Source, "/var/run/docker.sock")
		if _, err := os.Stat(volume.Source); err != nil && !ours {
			t.Errorf("%s mounts %s, which is not there", name, volume.Source)
		}
	}
	if build := service.Build; build != nil {
		if _, err := os.Stat(filepath.Join(build.Context, build.Dockerfile)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// composeParts are the services that scripts/compose.sh starts.
func composeParts(t *testing.T) []string {
	t.Helper()
	script, err := os.ReadFile("../scripts/compose.sh")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?m)^PARTS=\((.*)\)$`).FindSubmatch(script)
	if list == nil {
		t.Fatal("no PARTS in scripts/compose.sh")
	}
	return strings.Fields(string(list[1]))
}

func TestSystemdUnit(t *testing.T) {
	analyze := wantProgram(t, "systemd-analyze")
	server, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	unit, err := os.ReadFile("turnstile@.service")
	if err != nil {
		t.Fatal(err)
	}
	const binary = "/usr/local/bin/turnstile-%i"
	if !strings.Contains(string(unit), binary) {
		t.Fatalf("the unit does not start %s", binary)
	}
	path := filepath.Join(t.TempDir(), "turnstile@blue.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(unit), binary, server)), 0o644); err != nil {
		t.Fatal(err)
	}
	// Warnings do not change its exit code.
	if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=20", path).CombinedOutput(); err != nil {
		t.Errorf("it is exposed more than 2.0: %v: %s", err, out)
	}
}

// Every setting has its reason above it, and a name that the kernel knows.
func TestSysctls(t *testing.T) {
	text, err := os.ReadFile("sysctl.conf")
	if err != nil {
		t.Fatal(err)
	}
	reason, settings := false, 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		name, value, isSetting := strings.Cut(line, " = ")
		switch {
		case strings.HasPrefix(line, "#"):
			reason = true
		case line == "":
			reason = false
		case !isSetting || value == "":
			t.Errorf("no setting: %q", line)
		default:
			settings++
			path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !reason {
				t.Errorf("%s has no reason above it", name)
			}
		}
	}
	if settings == 0 {
		t.Error("no settings")
	}
}
