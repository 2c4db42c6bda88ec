package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"turnstile/netpoll"
)

const (
	listenPlace = "{listen}"
	// serverHost is a loopback address on which a port is never the source
	// port of somebody's connection to 127.0.0.1.
	serverHost = "127.0.0.80"
	startTime  = 30 * time.Second
	stopTime   = 30 * time.Second
)

// A server is the process that is measured, started by this one or not.
type server struct {
	pid    int
	cmd    *exec.Cmd // nil if it was there before
	stderr tail
	exited chan struct{}
	// release gives back the port that is kept for the server.
	release func()
}

// openServer starts the server, or takes the one that runs, and sets o.URL.
func openServer(ctx context.Context, o *options) (*server, error) {
	if o.Server == "" {
		return &server{pid: o.PID}, nil
	}
	listen, release, err := netpoll.ReservePort(serverHost)
	if err != nil {
		return nil, err
	}
	command := strings.Fields(strings.ReplaceAll(o.Server, listenPlace, listen))
	s := &server{cmd: exec.Command(command[0], command[1:]...), exited: make(chan struct{}), release: release}
	s.cmd.Stderr, s.cmd.Dir = &s.stderr, o.folder
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		release()
		return nil, fmt.Errorf("cannot start the server: %w", err)
	}
	go func() { s.cmd.Wait(); close(s.exited) }()
	s.pid = s.cmd.Process.Pid
	o.URL = "ws://" + listen + defaultPath
	return s, s.waitUntilItListens(ctx, listen)
}

func (s *server) waitUntilItListens(ctx context.Context, address string) error {
	ok := until(ctx, startTime, func() bool {
		if s.hasExited() {
			return true
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	switch {
	case s.hasExited():
		return fmt.Errorf("the server ended at once: %s", s.lastWords())
	case ok:
		return nil
	}
	s.stop()
	return errors.Join(ctx.Err(), fmt.Errorf("the server does not listen on %s", address))
}

// lastWords is what the server said last on standard error, and how it ended.
func (s *server) lastWords() string {
	return strings.TrimSpace(s.cmd.ProcessState.String() + "\n" + s.stderr.String())
}

// hasExited reports whether a server that was started here has ended.
func (s *server) hasExited() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// stop ends a server that was started here, gracefully, and returns how long
// that took; ok says that it ended by itself, with exit code 0.
func (s *server) stop() (took time.Duration, ok bool) {
	if s.cmd == nil {
		return 0, false
	}
	defer s.release()
	began := time.Now()
	syscall.Kill(-s.pid, syscall.SIGTERM)
	select {
	case <-s.exited:
		return time.Since(began), s.cmd.ProcessState.ExitCode() == 0
	case <-time.After(stopTime):
		syscall.Kill(-s.pid, syscall.SIGKILL)
		<-s.exited
		return time.Since(began), false
	}
}

// A tail keeps the last of what is written to it.
type tail struct {
	mu   sync.Mutex
	text bytes.Buffer
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(p)
	if over := t.text.Len() - tailBytes; over > 0 {
		t.text.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.text.String())
}
