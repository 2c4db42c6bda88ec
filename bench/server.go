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
	note   string // what is odd about it
	// release gives back the port that is kept for the server.
	release func()
}

// openServer starts the server, or takes the one that runs, and sets o.URL.
func openServer(ctx context.Context, o *options) (*server, error) {
	if o.Server == "" {
		s := &server{pid: o.PID}
		return s, s.check(o)
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
	err = s.waitUntilItListens(ctx, listen)
	if err == nil {
		err = s.check(o)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// check sees that the process can be what is asked for, where it is known.
func (s *server) check(o *options) error {
	if s.pid == 0 {
		return nil
	}
	t, err := parseTarget(o.URL, true)
	if err != nil {
		return err
	}
	tree, err := processTree(s.pid)
	if err != nil {
		return err
	}
	if s.cmd == nil {
		if s.note, err = tree.serves(t); err != nil {
			return err
		}
	}
	if files := tree.mostFiles(); o.Conns > files {
		return fmt.Errorf("-conns is %d, but the server may have no more than %d files open: "+
			"raise its limit (ulimit -n, LimitNOFILE), or lower -conns", o.Conns, files)
	}
	return nil
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
	return errors.Join(ctx.Err(), fmt.Errorf("the server does not listen on %s", address))
}

// lastWords is how the server has ended, and what it said last on standard
// error: on the same line if it is one.
func (s *server) lastWords() string {
	said := strings.TrimSpace(s.stderr.String())
	switch {
	case said == "":
		return s.cmd.ProcessState.String()
	case strings.Contains(said, "\n"):
		return s.cmd.ProcessState.String() + "\n" + said
	}
	return s.cmd.ProcessState.String() + ": " + said
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
