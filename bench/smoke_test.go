package main

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// startForSmoke starts a server, and returns its URL.
func startForSmoke(t *testing.T, command string) string {
	t.Helper()
	o := &options{Server: command}
	s, err := openServer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop() })
	return "http://" + strings.TrimSuffix(strings.TrimPrefix(o.URL, "ws://"), defaultPath)
}

func wantSmoke(t *testing.T, code int, text string, args ...string) {
	t.Helper()
	cmd := benchCommand(append([]string{"smoke"}, args...)...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), text) {
		t.Errorf("bench smoke %s: exit code %d, want %d and %q in:\n%s", args, got, code, text, out)
	}
}

func TestSmoke(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	server := buildServer(t)
	url := startForSmoke(t, server+",unix:"+socket)
	wantSmoke(t, exitOK, "resume     ok", url)
	wantSmoke(t, exitOK, "resume     ok", "unix:"+socket)
	wantSmoke(t, exitOK, "it leads to unix:"+socket, "-reaches", "unix:"+socket, url)
	other := startForSmoke(t, server)
	wantSmoke(t, exitFellShort, "answers by another server than "+other, "-reaches", other, url)
}

// A server that is not fit for its clients fails the test at the step that
// shows it.
func TestSmokeFails(t *testing.T) {
	server := buildServer(t)
	wantSmoke(t, exitFellShort, "health     FAILED: cannot connect", "unix:"+filepath.Join(t.TempDir(), "none"))
	wantSmoke(t, exitFellShort, "count      FAILED: no answer to message 1: close 1009", startForSmoke(t, server+" -max-message 4"))
	wantSmoke(t, exitFellShort, "readiness  FAILED: /readyz/ answers 503", startForSmoke(t, server+" -redis unix:///nowhere"))

	silent, err := net.Listen("tcp", serverHost+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	wantSmoke(t, exitFellShort, "i/o timeout", "-timeout", "100ms", "http://"+silent.Addr().String())
	wantSmoke(t, exitFellShort, "not upgraded: HTTP/1.1 200 OK", serveInstead(t, silent))
}

// serveInstead answers every request as a healthy server, but opens no
// WebSocket.
func serveInstead(t *testing.T, l net.Listener) (url string) {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"status":"healthy","ready":true}`))
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return "http://" + l.Addr().String()
}

func TestSmokeUsage(t *testing.T) {
	wantSmoke(t, exitUsage, "usage: bench smoke")
	wantSmoke(t, exitUsage, "usage: bench smoke", "-timeout", "0s", "unix:x")
	wantSmoke(t, exitUsage, `-timeout must be a duration, such as 10s or 1m30s, got "5"`, "-timeout", "5", "unix:x")
	wantSmoke(t, exitUsage, `a server must be http://HOST:PORT, https://HOST:PORT or unix:SOCKET, got "localhost:80"`, "localhost:80")
	wantSmoke(t, exitUsage, `got "ws://localhost/"`, "-reaches", "ws://localhost/", "unix:x")
	wantSmoke(t, exitOK, "URL is http://HOST:PORT", "-help")
}
