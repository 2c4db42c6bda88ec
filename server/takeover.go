package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/handover"
	"turnstile/server/session"
)

// A takeover is the new process's side of a handover. It is prepared first, which asks
// the old process whether it would hand over, and begins later. A process has one at a
// time.
type takeover struct {
	// Fixed after dialTakeover.
	server   *server
	path     string // the other process's control socket
	exchange *handover.Exchange
	done     chan struct{} // closed when nothing more comes

	// Atomic.
	phase atomic.Int32 // a takeoverPhase
	stays atomic.Bool  // of the initial takeover: this process has taken the other one's place

	// Written before it is prepared.
	welcome handover.Welcome

	// Written before done is closed.
	totals takeoverTotals
	taken  []string // the addresses of the listeners that were taken over
	err    error
}

// A takeoverPhase is how far a takeover is.
type takeoverPhase = int32

const (
	takeoverAsks     takeoverPhase = iota
	takeoverPrepared               // it may begin
	takeoverBegun
	takeoverForgotten // nobody has begun it
)

// takeoverTotals are how much this process has taken over.
type takeoverTotals struct {
	Connections int   `json:"connections"`
	Sessions    int   `json:"unheld_sessions"` // those that no connection holds
	DurationMS  int64 `json:"duration_ms"`
}

var (
	// errNobody says that there is no process to take over from.
	errNobody = errors.New("nobody listens there")
	// errNoSocket says that the path cannot be a process's control socket.
	errNoSocket = errors.New("that is no socket: give the path of the running server's -control socket")
)

// hello is this process's description for the one that it takes over from.
func (s *server) hello() handover.Hello {
	h := handover.Hello{
		Version: handover.Oldest, Newest: handover.Newest, LastField: handover.LastField,
		Store: "embedded", Subprotocols: []string{proto.Subprotocol},
		MaxMessage:      s.config.MaxMessage,
		Compress:        s.config.Compress > 0,
		Connections:     s.config.files.connections - s.connections(),
		FileDescriptors: s.config.files.sockets - s.connections(),
	}
	if s.config.Redis != nil {
		h.Store = s.config.Redis.String()
	}
	for _, e := range s.endpoints {
		h.Endpoints = append(h.Endpoints, e.Path)
	}
	return h
}

// prepareTakeover asks the process with the control socket at path whether it would
// hand over to this one. Until the takeover is over, requests for sessions that this
// process does not know wait, since the other process may know them.
func (s *server) prepareTakeover(path string) (*takeover, error) {
	t, conn, err := s.dialTakeover(path)
	if err == nil {
		err = s.reserveTakeover(t)
	}
	if err == nil {
		if err = t.greet(conn); err != nil {
			t.end()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot take over from %q: %w", path, err)
	}
	if s.memory != nil {
		s.memory.Await()
	}
	t.phase.Store(takeoverPrepared)
	return t, nil
}

func (s *server) dialTakeover(path string) (*takeover, *net.UnixConn, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if info, e := os.Stat(path); e == nil && info.Mode().Type() != os.ModeSocket {
		err = errNoSocket
	} else if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		err = errNobody
	}
	if err != nil {
		return nil, nil, err
	}
	return &takeover{server: s, path: path, exchange: handover.NewExchange(conn), done: make(chan struct{})}, conn, nil
}

// reserveTakeover makes t the process's takeover, and refuses it if there is one already.
func (s *server) reserveTakeover(t *takeover) error {
	for !s.takeover.CompareAndSwap(nil, t) {
		if other := s.takeover.Load(); other != nil {
			if !other.isEnding() {
				t.exchange.Close()
				return other.busy()
			}
			<-other.done
		}
	}
	if s.drainSince.Load() != 0 { // after the takeover is there: see server.drain
		t.end()
		return errDraining
	}
	return nil
}

// isEnding reports whether the takeover ends without ever having begun.
func (t *takeover) isEnding() bool { return t.phase.Load() == takeoverForgotten }

// busy refuses another takeover beside t.
func (t *takeover) busy() error {
	text := "a takeover from %q is under way: wait until it is over"
	if t.phase.Load() == takeoverPrepared {
		text = "a takeover from %q is prepared: begin it with take-over, or wait, it is forgotten " +
			preparedFor.String() + " after it was prepared"
	}
	return &handover.RefusedError{Reason: handover.RefusedBusy, Text: fmt.Sprintf(text, t.path)}
}

// end says that nothing more comes: another takeover may be prepared.
func (t *takeover) end() {
	t.exchange.Close()
	t.server.takeover.CompareAndSwap(t, nil)
	close(t.done)
}

// stop ends the takeover as soon as this can be: what has come has come. It waits for
// that.
func (t *takeover) stop() {
	t.exchange.Stop()
	<-t.done
}

// preparedFor is how long a takeover may wait for its beginning. Tests shorten it.
var preparedFor = handover.PreparedFor

// forget ends the takeover unless it has begun. The other process sees the end of the
// exchange, and is free for others.
func (t *takeover) forget() {
	if t.phase.CompareAndSwap(takeoverPrepared, takeoverForgotten) {
		t.server.log.Warn().Str("from", t.path).Stringer("after", preparedFor).Msg("takeover_forgotten")
		t.exchange.Stop()
	}
}

// errItself says that a process was told to take over from itself.
var errItself = errors.New("that is this server itself")

// greet asks the other process. It counts a refusal here too, because the process that
// refuses often ends before its metrics are scraped.
func (t *takeover) greet(conn *net.UnixConn) (err error) {
	if peer, err := peerOf(conn); err == nil && int(peer.Pid) == os.Getpid() {
		return errItself
	}
	if _, err = io.WriteString(conn, commandHandover+"\n"); err != nil {
		return err
	}
	t.welcome, err = t.exchange.Greet(t.server.hello())
	if refused, ok := errors.AsType[*handover.RefusedError](err); ok {
		t.server.countRefusal(refused.Reason)
	}
	return err
}

// wants are the listeners to take over: those that -listen of this process names.
func (t *takeover) wants() (addresses []string) {
	for _, address := range t.welcome.Listeners {
		if slices.Contains(t.server.config.Listen, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// run begins the takeover and waits until it is over. It calls finish before it logs
// the end.
func (t *takeover) run(finish func(err error)) (takeoverTotals, error) {
	began := netpoll.Monotonic()
	log := t.server.log
	log.Info().Str("from", t.path).Int("connections", t.welcome.Connections).Msg("takeover_started")
	if err := t.exchange.Begin(handover.Go{Listeners: t.wants()}); err != nil {
		t.exchange.Stop()
	}
	<-t.done
	took := netpoll.Monotonic() - began
	t.totals.DurationMS = took.Milliseconds()
	t.server.metrics.HandoverTime.Set(took)
	finish(t.err)
	e := log.Info()
	if t.err != nil {
		e = log.Error().Err(t.err)
	}
	e.Str("from", t.path).Int("connections", t.totals.Connections).Int("unheld_sessions", t.totals.Sessions).
		Strs("listeners", t.taken).Int64("duration_ms", took.Milliseconds()).Msg("takeover_finished")
	return t.totals, t.err
}

// receive takes batches until there are no more.
func (t *takeover) receive() {
	defer t.end()
	for {
		batch, err := t.exchange.Take()
		if batch == nil {
			t.err = err
			return
		}
		t.take(batch)
	}
}

// answerClaims answers the requests that have waited for the takeover's end.
func (t *takeover) answerClaims() {
	if s := t.server; s.memory != nil {
		s.memory.Complete()
	}
}

func (t *takeover) take(b *handover.Batch) {
	s := t.server
	for i, address := range b.Listeners {
		t.takeListener(b.FDs[i], address)
	}
	if len(b.Records) > 0 {
		s.engine.Adopt(b.FDs, b.Records)
		t.totals.Connections += len(b.Records)
	}
	if s.memory != nil && len(b.Sessions) > 0 {
		states := make([]session.State, len(b.Sessions))
		for i, received := range b.Sessions {
			states[i] = session.State(received)
		}
		s.memory.Import(states)
		t.totals.Sessions += len(states)
	}
}

func (t *takeover) takeListener(fd int, address string) {
	l, err := netpoll.AdoptListener(fd, address)
	if err == nil {
		l.Shared = true // until OwnListeners
		err = t.server.engine.Listen(l)
	}
	if err != nil {
		t.server.fail(fmt.Errorf("cannot take over the listener at %q: %w", address, err))
		return
	}
	t.taken = append(t.taken, address)
}

// withoutTaken is the addresses whose listeners are not taken over; t may be nil.
func (t *takeover) withoutTaken(addresses []string) (others []string) {
	for _, address := range addresses {
		if t == nil || !slices.Contains(t.welcome.Listeners, address) {
			others = append(others, address)
		}
	}
	return others
}

// runInitial runs the takeover that -take-over-from asks for, and then takes the other
// process's place. If the takeover fails, this process opens the listeners that did not
// come. But if the other process goes on serving, this one ends: two at one address would
// have sessions of the same clients.
func (t *takeover) runInitial() {
	go t.receive()
	t.run(func(err error) {
		if err == nil || !t.mustEnd() {
			t.stays.Store(true)
			t.server.engine.OwnListeners()
			t.answerClaims()
		}
		if err == nil {
			t.takeItsPlace()
		}
	})
	switch {
	case !t.stays.Load() && t.server.drainSince.Load() != 0:
	case !t.stays.Load():
		t.server.takeoverBroke <- fmt.Errorf("the takeover from %q broke, and that server goes on: %w", t.path, t.err)
	case t.err != nil:
		for _, address := range t.wants() {
			if !slices.Contains(t.taken, address) {
				t.listenInstead(address)
			}
		}
		t.takeItsPlace()
	case len(t.taken) < len(t.welcome.Listeners):
		t.server.log.Warn().Strs("listened", t.welcome.Listeners).Strs("taken_over", t.taken).Msg("listeners_end")
	}
}

// mustEnd reports whether this process ends after a takeover that has failed: it drains
// already, or the other process goes on serving.
func (t *takeover) mustEnd() bool {
	if t.server.drainSince.Load() != 0 {
		return true
	}
	answer, err := ask(t.path, commandStatus, handover.Patience)
	if err != nil {
		return errors.Is(err, os.ErrDeadlineExceeded) // it stands still, and may go on
	}
	var other status
	return json.Unmarshal(answer, &other) == nil && !other.Draining
}

// takeItsPlace listens for commands where the other process did.
func (t *takeover) takeItsPlace() {
	s := t.server
	if s.control.Load() != nil || s.drainSince.Load() != 0 {
		return // this process has a control socket of its own, or ends
	}
	if err := s.listenForCommands(); err != nil {
		s.fail(err)
	}
	s.obeyCommands()
}

// listenInstead opens a listener as soon as the other process has closed its own at that
// address. Connections that were taken over are served meanwhile.
func (t *takeover) listenInstead(address string) {
	s := t.server
	l, err := netpoll.Listen(address)
	for told := false; errors.Is(err, syscall.EADDRINUSE) && s.drainSince.Load() == 0; told = true {
		if !told {
			s.log.Warn().Err(err).Msg("listen_address_in_use")
		}
		time.Sleep(listenAgain)
		l, err = netpoll.Listen(address)
	}
	if err == nil {
		err = s.engine.Listen(l)
	}
	if err != nil {
		s.fail(err)
	}
}

// listenAgain is how long to wait before an address in use is tried again.
const listenAgain = 20 * time.Millisecond

// prepareInitialTakeover prepares the takeover that -take-over-from asks for, before
// the listeners are opened; nil without it, or if nobody is there.
func (s *server) prepareInitialTakeover() (*takeover, error) {
	path := s.config.TakeOverFrom
	if path == "" {
		return nil, nil
	}
	t, err := s.prepareTakeover(path)
	if errors.Is(err, errNobody) {
		s.log.Warn().Str("path", path).Msg("nobody_to_take_over_from")
		return nil, nil
	}
	return t, err
}
