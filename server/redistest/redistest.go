// Package redistest runs real redis-servers for tests: each in a folder of its
// own, on a port or a socket of its own, and never the system's. They end with
// the test.
package redistest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"turnstile/netpoll"
	"turnstile/server/certtest"
)

// Host is a loopback address of the package's own: a port there is never the
// source port of somebody's connection to 127.0.0.1.
const Host = "127.0.0.78"

// patience bounds every wait; nothing waits for so long that works.
const patience = 2 * time.Minute

// answerPatience is how long a server may take for one answer.
const answerPatience = 30 * time.Second

// A Server is one redis-server process, or one redis-sentinel.
type Server struct {
	// Client talks to it, past whatever is tested.
	Client *redis.Client
	// Addr is its host:port, Socket its unix socket.
	Addr, Socket string

	t      testing.TB
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start runs a redis-server with the given options, such as "--appendonly",
// "yes", and waits until it answers. Where redis-server is not installed the
// test is skipped, or fails if CI=true.
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	s := newServer(t)
	s.args = append([]string{
		"--port", port(s.Addr), "--bind", Host, "--unixsocket", s.Socket, "--dir", s.dir,
		"--replica-announce-ip", Host, "--save", "", "--daemonize", "no", "--enable-debug-command", "yes",
	}, options...)
	s.Restart()
	return s
}

func newServer(t testing.TB) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: run make deps")
		}
		t.Skip("redis-server is not installed: run make deps")
	}
	dir, err := os.MkdirTemp("", "redistest") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, Addr: reserveAddr(t), Socket: filepath.Join(dir, "redis.sock")}
	s.Client = redis.NewClient(&redis.Options{
		Addr: s.Addr, MaxRetries: -1, Protocol: 2, DisableIdentity: true,
		DialTimeout: answerPatience, ReadTimeout: answerPatience, WriteTimeout: answerPatience, // a busy machine may stand still
	})
	t.Cleanup(func() {
		s.Client.Close()
		s.Kill()
		os.RemoveAll(dir)
	})
	return s
}

// reserveAddr is an address that is kept for the test's servers.
func reserveAddr(t testing.TB) string {
	t.Helper()
	addr, release, err := netpoll.ReservePort(Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// StartTLS is Start with a port that speaks TLS as well, with a certificate of
// its own making, at the address that is returned.
func StartTLS(t testing.TB, options ...string) (s *Server, tlsAddr string) {
	t.Helper()
	tlsAddr = reserveAddr(t)
	cert, key := certtest.SelfSigned(t, Host)
	tls := []string{"--tls-port", port(tlsAddr), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"}
	return Start(t, append(tls, options...)...), tlsAddr
}

// URL is for -redis: the unix socket.
func (s *Server) URL() string { return "unix://" + s.Socket }

// Kill ends the process with SIGKILL, if it runs, and waits for it.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// PID is the process's, for others to kill it.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// WaitGone waits until others have killed the process.
func (s *Server) WaitGone() {
	s.t.Helper()
	select {
	case <-s.exited:
		s.cmd = nil
	case <-time.After(patience):
		s.t.Fatal("nobody kills the redis-server")
	}
}

// Pause stops the process with SIGSTOP, and returns when it stands still: it keeps its
// connections and answers nothing until Continue.
func (s *Server) Pause() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGSTOP)
	until(s.t, patience, "the process stands still", s.dir, func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.PID()), "stat"))
		return err != nil || bytes.Contains(stat, []byte(") T ")) || bytes.Contains(stat, []byte(") Z ")) // others may kill it
	})
}

// Continue ends a Pause.
func (s *Server) Continue() { s.cmd.Process.Signal(syscall.SIGCONT) }

// Restart starts the process (again) with the data it had stored, and waits
// until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	os.Remove(s.Socket)
	cmd := exec.Command("redis-server", s.args...)
	cmd.Dir = s.dir
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd, s.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) { cmd.Wait(); close(exited) }(s.exited)
	s.Until("redis-server answers", func() bool { return s.Client.Ping(context.Background()).Err() == nil })
}

// RestartEmpty starts the process again without the data it had.
func (s *Server) RestartEmpty() {
	s.t.Helper()
	s.Kill()
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		os.RemoveAll(filepath.Join(s.dir, e.Name()))
	}
	s.Restart()
}

// Do carries out one command and returns what it answers.
func (s *Server) Do(args ...any) any {
	s.t.Helper()
	value, err := s.Client.Do(context.Background(), args...).Result()
	if err != nil && err != redis.Nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return value
}

// Keys are the keys that match a pattern.
func (s *Server) Keys(pattern string) []string {
	s.t.Helper()
	keys, err := s.Client.Keys(context.Background(), pattern).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

// Until waits for a condition.
func (s *Server) Until(what string, condition func() bool) {
	s.t.Helper()
	until(s.t, patience, what, s.dir, condition)
}

func until(t testing.TB, patience time.Duration, what, dir string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("never: %s; redis-server's log:\n%s", what, log)
		}
	}
}
