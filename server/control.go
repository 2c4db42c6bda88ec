package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/server/handover"
)

// A control is the socket at which processes of the same user give this one commands.
// A command is one line, and its answer is one line of JSON.
type control struct {
	server   *server
	path     string
	inode    uint64 // the file at path, while it is this process's
	listener *net.UnixListener
}

// The commands. PATH is the control socket of another process.
const (
	commandStatus   = "status"
	commandDrain    = "drain"
	commandHandover = "handover"  // sent by a process that takes over: the exchange follows
	commandPrepare  = "prepare"   // PATH: ask whether that process would hand over to this one
	commandTakeOver = "take-over" // PATH: take over from that process
)

const (
	longestCommand  = 512
	commandPatience = 5 * time.Second // for the line to come

	// How long -tell waits for an answer. A server that is asked to prepare
	// asks another one, which may be stopped.
	answerPatience   = 2 * handover.Patience
	takeOverPatience = 2 * time.Minute
)

// openControl listens at path; nobody is answered until accept. It takes the place of a process that is gone, or
// of the one at predecessor.
func openControl(s *server, path, predecessor string) (*control, error) {
	fail := func(err error) (*control, error) { return nil, fmt.Errorf("-control %q: %w", path, err) }
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		if path != predecessor {
			return fail(errors.New("another process listens there: it is replaced only by -take-over-from the same path"))
		}
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return fail(errors.New("the path exists and is no socket"))
	}
	// The socket is bound beside the path and then moved there, so that at any time
	// somebody listens at the path.
	aside := fmt.Sprintf("%s.%d", path, os.Getpid())
	os.Remove(aside)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // without the temporary name
	}
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false)
	c := &control{server: s, path: path, listener: l}
	if err := errors.Join(os.Chmod(aside, 0o600), os.Rename(aside, path)); err != nil {
		l.Close()
		return fail(err)
	}
	c.inode = inodeOf(path)
	return c, nil
}

func inodeOf(path string) uint64 {
	var stat unix.Stat_t
	if unix.Lstat(path, &stat) != nil {
		return 0
	}
	return stat.Ino
}

// close ends the socket, and removes its file unless it is a successor's.
func (c *control) close() {
	if !c.server.hasGiven.Load() && inodeOf(c.path) == c.inode {
		os.Remove(c.path)
	}
	c.listener.Close()
}

// accept serves whoever comes, until close.
func (c *control) accept() {
	for {
		conn, err := c.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go c.serve(conn)
		}
	}
}

// serve answers one command.
func (c *control) serve(conn *net.UnixConn) {
	defer conn.Close()
	if err := checkPeer(conn); err != nil {
		c.server.log.Warn().Err(err).Msg("control_refused")
		return
	}
	conn.SetReadDeadline(time.Now().Add(commandPatience))
	line, err := readLine(conn)
	if err != nil {
		return
	}
	if line == commandHandover {
		c.server.giveTo(conn)
		return
	}
	answer, err := c.obey(line)
	if err != nil {
		answer = map[string]string{"error": err.Error()}
	}
	json.NewEncoder(conn).Encode(answer)
}

// peerOf is the process at the other end. See SO_PEERCRED in unix(7).
func peerOf(conn *net.UnixConn) (peer *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(controlErr, err)
}

// checkPeer refuses a peer that runs neither as the same user nor as root.
func checkPeer(conn *net.UnixConn) error {
	peer, err := peerOf(conn)
	if err == nil && peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		err = fmt.Errorf("user %d may not control a process of user %d", peer.Uid, os.Geteuid())
	}
	return err
}

// readLine reads a line and not a byte more: the handover's exchange may follow.
func readLine(conn io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < longestCommand; line = append(line, one[0]) {
		if _, err := io.ReadFull(conn, one); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return strings.TrimSpace(string(line)), nil
		}
	}
	return "", errors.New("the line is too long")
}

// obey carries out a command and returns its answer.
func (c *control) obey(line string) (answer any, err error) {
	if err := checkCommand(line); err != nil {
		return nil, fmt.Errorf("the command %q %w", line, err)
	}
	word, path, _ := strings.Cut(line, " ")
	switch word {
	case commandDrain:
		c.server.requestDrain()
		answer := c.server.status()
		answer.Ready, answer.Draining = false, true // it begins at once
		return answer, nil
	case commandPrepare:
		t, err := c.prepare(path)
		if err != nil {
			return nil, err
		}
		return prepared{WouldHandOver: true, Connections: t.welcome.Connections}, nil
	case commandTakeOver:
		return c.takeOver(path)
	}
	return c.server.status(), nil
}

// prepared is the answer to commandPrepare; a refusal is an error instead.
type prepared struct {
	WouldHandOver bool `json:"would_hand_over"`
	Connections   int  `json:"connections"`
}

// prepare prepares a takeover. It is forgotten if nobody begins it.
func (c *control) prepare(path string) (*takeover, error) {
	t, err := c.server.prepareTakeover(path)
	if err != nil {
		return nil, err
	}
	time.AfterFunc(preparedFor, t.forget)
	go func() {
		t.receive()
		t.answerClaims()
	}()
	return t, nil
}

// takeOver begins the takeover that was prepared for path, or prepares it first.
func (c *control) takeOver(path string) (takeoverTotals, error) {
	t := c.server.takeover.Load()
	if t == nil || t.isEnding() {
		var err error
		if t, err = c.prepare(path); err != nil {
			return takeoverTotals{}, err
		}
	}
	if t.path != path || !t.phase.CompareAndSwap(takeoverPrepared, takeoverBegun) {
		return takeoverTotals{}, fmt.Errorf("cannot take over from %q: %w", path, t.busy())
	}
	return t.run(func(error) {})
}

// status is the answer to commandStatus.
type status struct {
	PID         int   `json:"pid"`
	Ready       bool  `json:"ready"`
	Draining    bool  `json:"draining"`
	Connections int   `json:"connections"`
	Sessions    int   `json:"sessions"`
	UptimeMS    int64 `json:"uptime_ms"`
}

func (s *server) status() status {
	return status{
		PID: os.Getpid(), Ready: s.isReady(), Draining: s.drainSince.Load() != 0, Connections: s.connections(),
		Sessions: s.store.Len(), UptimeMS: time.Since(s.started).Milliseconds(),
	}
}

// tell sends a command to the process whose control socket is at path, and writes its
// answer to out. The error is the process's, or says why there is no answer.
func tell(path, command string, out io.Writer) (err error) {
	patience := answerPatience
	word, other, _ := strings.Cut(command, " ")
	if word == commandTakeOver {
		patience = takeOverPatience
	}
	if checkCommand(command) == nil && other != "" { // the server may have another working directory
		if other, err = filepath.Abs(other); err != nil {
			return err
		}
		command = word + " " + other
	}
	answer, err := ask(path, command, patience)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return fmt.Errorf("-tell: nobody answers at -control %q: %w", path, err)
	}
	var refused struct{ Error string }
	if err != nil || json.Unmarshal(answer, &refused) != nil {
		return fmt.Errorf("-tell: no answer from %q: is it the -control socket of a server, and does that run?", path)
	}
	if refused.Error != "" {
		return errors.New(refused.Error)
	}
	_, err = out.Write(answer)
	return err
}

// ask sends a command to the process whose control socket is at path, and returns its
// answer.
func ask(path, command string, patience time.Duration) ([]byte, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(conn, command)
	return io.ReadAll(conn)
}
