package deploy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"turnstile/netpoll"
)

const (
	// patience bounds every wait; nothing waits for so long that works.
	patience = 60 * time.Second
	// stackHost is a loopback address of the tests' own: a port there is never
	// the source port of somebody's connection to 127.0.0.1.
	stackHost = "127.0.0.82"
	// toolsFolder is where make stack-tools puts what it builds.
	toolsFolder = "../.cache/bin"
)

// TestMain removes the server that serverBinary has built.
func TestMain(m *testing.M) {
	if signal.Ignored(syscall.SIGHUP) { // by nohup, say: what tests start would inherit it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	code := m.Run()
	os.RemoveAll(binaries)
	os.Exit(code)
}

var binaries, binariesErr = os.MkdirTemp("", "turnstile-deploy-")

// serverBinary is the server as it is deployed.
var serverBinary = sync.OnceValues(func() (string, error) {
	if binariesErr != nil {
		return "", binariesErr
	}
	path := filepath.Join(binaries, "server")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.revision=tested", "-o", path, "./server")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// tool is one of the programs that make stack-tools builds.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(toolsFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		missing(t, "%v: run make stack-tools compose-plugin", err)
	}
	return path
}

// missing fails where everything has to be there, and skips elsewhere.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// A child is a process that a test has started, and ends.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// startChild starts a program whose output goes to a file in dir.
func startChild(t testing.TB, dir string, env []string, path string, args ...string) *child {
	t.Helper()
	out, err := os.OpenFile(filepath.Join(dir, filepath.Base(path)+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	return startInto(t, out, env, path, args...)
}

func startInto(t testing.TB, out *os.File, env []string, path string, args ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr = append(os.Environ(), env...), out, out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait()
		close(c.exited)
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("the end of %s:\n%s", out.Name(), text[max(len(text)-2000, 0):])
		}
	})
	return c
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	<-c.exited
}

// startServer starts the server with a log in JSON at logPath, and waits until
// it lives.
func startServer(t testing.TB, logPath, addr string, flags ...string) *child {
	t.Helper()
	path, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := startInto(t, out, nil, path, append([]string{"-listen", addr, "-log-format", "json"}, flags...)...)
	eventually(t, "the server at "+addr+" lives", answers("http://"+addr+"/healthz/"))
	return c
}

// freeAddr is an address that nobody listens on, kept for this test.
func freeAddr(t testing.TB) string {
	t.Helper()
	return freeAddrOn(t, stackHost)
}

// freeAddrOn is one of another address of this machine, which may not have it.
func freeAddrOn(t testing.TB, host string) string {
	t.Helper()
	addr, release, err := netpoll.ReservePort(host)
	if err != nil {
		missing(t, "%v", err)
	}
	t.Cleanup(release)
	return addr
}

// eventually waits for a condition; what says what should come true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func answers(url string) func() bool {
	return func() bool {
		_, err := fetch(url)
		return err == nil
	}
}

var client = http.Client{Timeout: 10 * time.Second}

// fetch gets a page; any status but 200 is an error.
func fetch(url string) ([]byte, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Cache-Control", "no-cache") // a page of metrics is no older than the request
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", url, response.Status, bytes.TrimSpace(body))
	}
	return body, nil
}
