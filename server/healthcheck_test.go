package main

import (
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// healthOf runs a health check as a process of its own, as an image does.
func healthOf(t *testing.T, target string) (code int, complaint string) {
	t.Helper()
	p := startProcess(t, nil, "-healthcheck", target)
	return p.wait(), p.stderr.String()
}

func TestHealthCheck(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	p := startServer(t, "-listen", testHost+":0,unix:"+socket)
	healthy := func(target string) {
		t.Helper()
		if code, complaint := healthOf(t, target); code != exitOK || complaint != "" {
			t.Errorf("%s: exit code %d, %s", target, code, complaint)
		}
	}
	healthy("http://" + p.addr)
	healthy("http://" + p.addr + "/readyz/")
	healthy("unix:" + socket)
	healthy("unix:" + socket + ":/readyz/")

	ill := func(target, want string) {
		t.Helper()
		if code, complaint := healthOf(t, target); code != exitFailure ||
			!strings.Contains(complaint, want) || strings.Count(complaint, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q, want one line with %q", target, code, complaint, want)
		}
	}
	ill("http://"+p.addr+"/nothing/", "404 Not Found: {")
	ill("unix:"+socket+".gone", "no such file or directory")
}

func TestHealthCheckOfAServerWithoutItsStore(t *testing.T) {
	p := startServer(t, "-redis", "unix://"+filepath.Join(t.TempDir(), "none.sock"))
	if code, complaint := healthOf(t, "http://"+p.addr); code != exitOK {
		t.Errorf("it lives, but: %s", complaint)
	}
	if code, complaint := healthOf(t, "http://"+p.addr+"/readyz/"); code != exitFailure || !strings.Contains(complaint, "not_ready") {
		t.Errorf("it is not ready, but: exit code %d, %s", code, complaint)
	}
}

// A service manager hears of the two moments that matter to it: the first one
// when clients are served.
func TestServiceManagerIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify.sock")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	hear := func(want string) {
		t.Helper()
		manager.SetDeadline(time.Now().Add(patience))
		var datagram [100]byte
		n, err := manager.Read(datagram[:])
		if err != nil || string(datagram[:n]) != want {
			t.Fatalf("%q, %v, want %q", datagram[:n], err, want)
		}
	}
	p := startProcess(t, []string{"NOTIFY_SOCKET=" + socket}, "-listen", testHost+":0", "-log-format", "json")
	hear("READY=1")
	p.addr = p.waitLog("server_started")["listen"].([]any)[0].(string)
	if status, _, _ := p.get("/readyz/"); status != 200 {
		t.Errorf("status %d after READY=1", status)
	}
	p.signal(syscall.SIGTERM)
	hear("STOPPING=1")
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// Who cannot be told is no reason not to serve.
func TestServiceManagerIsGone(t *testing.T) {
	p := startProcess(t, []string{"NOTIFY_SOCKET=" + filepath.Join(t.TempDir(), "none.sock")}, "-listen", testHost+":0", "-log-format", "json")
	p.waitLog("server_started")
	p.waitLog("service_manager_not_told")
}
