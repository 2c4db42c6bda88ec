package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/server/admin"
	"turnstile/server/engine"
	"turnstile/server/handover"
	"turnstile/server/session"
)

// A server is the process: the engine, what it is built from, and its life.
type server struct {
	// Fixed after newServer: its parts.
	config    *Config
	log       zerolog.Logger
	logQueue  *logQueue
	metrics   *metrics.Metrics
	store     session.Store
	memory    *session.Memory // the store, if it is the embedded one
	endpoints []engine.Endpoint
	listeners []*netpoll.Listener // the listeners at the start
	engine    *engine.Engine
	plain     *plainHTTP
	debug     *http.Server
	started   time.Time

	// Fixed after newServer: run waits for the first four channels.
	failure         chan error    // an error that ends the process
	drainRequested  chan struct{} // somebody has asked for a drain
	handedOver      chan struct{} // another process has taken over
	takeoverBroke   chan error    // the initial takeover has failed, and the other process goes on
	giving          chan struct{} // full while this process gives connections to another
	initialTakeover *takeover     // the takeover of -take-over-from, nil without it

	// Atomic.
	ready       atomic.Bool
	handingOver atomic.Bool              // another process takes over, or prepares to
	hasGiven    atomic.Bool              // another process has everything
	control     atomic.Pointer[control]  // nil without -control
	takeover    atomic.Pointer[takeover] // the takeover that is prepared or under way, nil without one
	drainSince  atomic.Int64             // time.Duration on netpoll's clock, 0 before the drain

	// Owned by the acceptor's loop.
	connectionPeak, sessionPeak peak
	wave                        wave
}

// sameWish is how long after the first signal others mean the same: timeout(1) and
// supervisors that signal a whole group send two at once.
const sameWish = time.Second

// errKilled says that a second signal ended the process.
var errKilled = errors.New("ended by a second signal before the drain was over")

// newServer opens the listeners and starts the loops. Nobody is served until
// run.
func newServer(config *Config, log zerolog.Logger, queue *logQueue) (*server, error) {
	s := &server{
		config: config, log: log, logQueue: queue, started: time.Now(),
		failure: make(chan error, 1), drainRequested: make(chan struct{}, 1), handedOver: make(chan struct{}, 1), giving: make(chan struct{}, 1),
		takeoverBroke: make(chan error, 1),
	}
	if config.Redis == nil {
		s.openMemory()
	}
	s.metrics = s.newMetrics()
	if err := s.openDebug(); err != nil {
		return nil, err
	}
	if config.Redis != nil {
		s.openRedis()
	}
	s.endpoints = s.newEndpoints()
	var err error
	if s.initialTakeover, err = s.prepareInitialTakeover(); err != nil {
		return nil, err
	}
	if s.listeners, err = listenAll(s.initialTakeover.withoutTaken(config.Listen)); err != nil {
		return nil, err
	}
	if s.engine, err = s.newEngine(); err != nil {
		return nil, err
	}
	if s.initialTakeover == nil || config.Control != config.TakeOverFrom {
		err = s.listenForCommands()
	} // else runInitial does, when the other process has handed over
	return s, err
}

// newEndpoints are the applications. DESIGN.md has a recipe for one more.
func (s *server) newEndpoints() []engine.Endpoint {
	endpoints := []engine.Endpoint{{Path: "/ws/chat", New: func() engine.Handler { return &counter{drainTimeout: s.config.DrainTimeout} }}}
	if s.config.Echo {
		endpoints = append(endpoints, engine.Endpoint{Path: "/ws/echo", New: func() engine.Handler { return echo{} }})
	}
	return endpoints
}

// webSockets is where clients find the applications.
func (s *server) webSockets() (paths []string) {
	for _, e := range s.endpoints {
		paths = append(paths, e.Path+"/")
	}
	return paths
}

func (s *server) newEngine() (*engine.Engine, error) {
	c := s.config
	s.plain = newPlainHTTP(admin.Config{
		Started: s.started,
		State:   func() (string, bool) { return s.notReady(), s.drainSince.Load() != 0 },
		Metrics: s.metrics.Write, WebSockets: s.webSockets(),
	}, c.files.plainHTTP, c.HandshakeTimeout)
	return engine.New(engine.Config{
		Workers: c.Workers, Endpoints: s.endpoints,
		MaxConnections: c.files.connections, MaxConnectionsPerIP: c.MaxConnectionsPerIP, MaxMessage: c.MaxMessage, MessageRate: c.MessageRate,
		Compress:          c.Compress,
		PlacesBeyondLimit: c.files.beyondLimit, PlainPlaces: c.files.plainHTTP,
		Origins: c.Origins, TrustedProxies: c.TrustedProxies,
		Heartbeat: c.Heartbeat, HandshakeTimeout: c.HandshakeTimeout, WriteTimeout: c.WriteTimeout, MessageTimeout: c.MessageTimeout,
		Store: s.store, Metrics: s.metrics, Log: s.log, Plain: s.plain, Fatal: s.fail,
	})
}

// listenForCommands opens the control socket, if the configuration says so. A command
// waits until obeyCommands: before, this process could give listeners away that its engine
// does not have yet.
func (s *server) listenForCommands() error {
	if s.config.Control == "" {
		if s.initialTakeover != nil {
			s.log.Warn().Msg("control_not_configured")
		}
		return nil
	}
	c, err := openControl(s, s.config.Control, s.config.TakeOverFrom)
	if err == nil {
		s.control.Store(c)
	}
	return err
}

// obeyCommands answers at the control socket from now on.
func (s *server) obeyCommands() {
	if c := s.control.Load(); c != nil {
		go c.accept()
	}
}

func listenAll(addresses []string) (listeners []*netpoll.Listener, err error) {
	for _, address := range addresses {
		l, err := netpoll.Listen(address)
		if err != nil {
			for _, open := range listeners {
				open.Unlink()
				open.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func (s *server) openDebug() error {
	if s.config.DebugListen == "" {
		return nil
	}
	l, err := net.Listen("tcp", s.config.DebugListen)
	if err != nil {
		return fmt.Errorf("-debug-listen: %w", err)
	}
	s.debug = &http.Server{Handler: admin.Profiles(), ReadHeaderTimeout: s.config.HandshakeTimeout}
	s.log.Info().Stringer("address", l.Addr()).Msg("profiles_listening")
	go s.debug.Serve(l)
	return nil
}

func (s *server) newMetrics() *metrics.Metrics {
	var labels metrics.Labels
	labels.Handshakes, labels.Closes = engine.Labels()
	for _, reason := range handover.Refusals {
		labels.Refusals = append(labels.Refusals, string(reason))
	}
	sources := metrics.Sources{
		Sessions:       func() int { return s.store.Len() },
		MaxConnections: s.config.files.connections,
		Revision:       revision,
		Ready:          s.isReady,
		ShutdownTime:   s.drainTime,
		LogDropped:     s.logQueue.dropped.Load,
	}
	if s.memory != nil {
		sources.SessionsEvicted, sources.SessionsExpired = s.memory.Evicted.Load, s.memory.Expired.Load
	}
	return metrics.New(s.config.Workers, labels, sources)
}

// run is the life of the server. It returns nil after a drain, errKilled at a second
// signal later than sameWish, and otherwise the error that the process cannot survive, or
// that has made it drain. A first signal during a drain that a command or a handover has
// begun is the same wish.
func (s *server) run(signals <-chan os.Signal) error {
	if err := s.open(); err != nil {
		return err
	}
	if s.initialTakeover != nil {
		go s.initialTakeover.runInitial()
	}
	var signalled time.Time // when the first signal's drain had begun
	var broke error
	var drained <-chan struct{}
	var over <-chan time.Time
	var stopped <-chan error
	begin := func(why string) {
		if s.drainSince.Load() == 0 {
			drained, over = s.drain(why), time.After(s.config.DrainTimeout*9/10)
		}
	}
	for {
		select {
		case signal := <-signals:
			if !signalled.IsZero() {
				if time.Since(signalled) > sameWish {
					return errKilled
				}
				continue
			}
			if s.drainSince.Load() != 0 {
				s.log.Info().Str("reason", signal.String()).Msg("drain_under_way")
			}
			begin(signal.String())
			signalled = time.Now()
		case <-s.drainRequested:
			begin(commandDrain)
		case <-s.handedOver:
			begin(commandHandover)
		case broke = <-s.takeoverBroke:
			begin("takeover_failed")
		case <-drained:
			drained, over, stopped = nil, nil, s.stop()
		case <-over:
			drained, over, stopped = nil, nil, s.stop()
		case err := <-stopped:
			return errors.Join(broke, err)
		case err := <-s.failure:
			return err
		}
	}
}

// open begins to accept.
func (s *server) open() error {
	var addresses []string
	for _, l := range s.listeners {
		addresses = append(addresses, l.Addr)
	}
	if err := s.engine.Listen(s.listeners...); err != nil {
		return err
	}
	s.engine.Every(time.Second, s.onSecond)
	s.ready.Store(true)
	s.obeyCommands()
	if s.initialTakeover != nil {
		addresses = append(addresses, s.initialTakeover.wants()...)
	}
	e := s.log.Info()
	if url := pageURL(addresses); url != "" {
		e = e.Str("url", url)
	}
	e.Strs("listen", addresses).Int("pid", os.Getpid()).Str("revision", revision).Stringer("flags", s.config).Msg("server_started")
	s.notify(notifyReady)
	return nil
}

// pageURL is where a browser on this machine finds the console; empty if no
// address is one for TCP.
func pageURL(addresses []string) string {
	for _, address := range addresses {
		if strings.HasPrefix(address, "unix:") {
			continue
		}
		host, port, err := net.SplitHostPort(address)
		if ip, e := netip.ParseAddr(host); host == "" || e == nil && ip.IsUnspecified() {
			host = "localhost"
		}
		if err == nil {
			return "http://" + net.JoinHostPort(host, port) + "/"
		}
	}
	return ""
}

func (s *server) notify(state string) {
	if err := notifyManager(state); err != nil {
		s.log.Warn().Err(err).Msg("service_manager_not_told")
	}
}

// fail ends the process. Only the first error is reported.
func (s *server) fail(err error) {
	select {
	case s.failure <- err:
	default:
	}
}

// drain says goodbye to every client. The channel is closed when none is left.
func (s *server) drain(why string) <-chan struct{} {
	s.log.Info().Str("reason", why).Int("connections", s.connections()).Msg("drain_started")
	s.notify(notifyStopping)
	s.drainSince.Store(int64(netpoll.Monotonic()))
	s.ready.Store(false)
	s.stopTakeover()
	return s.engine.Drain()
}

// stopTakeover leaves to the other process what has not come yet. Its listeners are not
// this process's any more, and clients that come now are the other one's.
func (s *server) stopTakeover() {
	if t := s.takeover.Load(); t != nil {
		t.stop()
	}
	if t := s.initialTakeover; t != nil && !t.stays.Load() {
		s.engine.CloseListeners()
	}
}

// requestDrain makes run begin a drain, as a signal does.
func (s *server) requestDrain() {
	select {
	case s.drainRequested <- struct{}{}:
	default: // somebody has asked before
	}
}

// connections is how many sockets the server holds.
func (s *server) connections() int {
	if s.engine == nil {
		return 0 // the server prepares its initial takeover, before it has an engine
	}
	return s.engine.Connections()
}

// isReady reports whether new connections are served.
func (s *server) isReady() bool { return s.notReady() == "" }

// notReady is why new connections are not served; empty if they are.
func (s *server) notReady() string {
	trouble := s.store.Trouble()
	switch {
	case s.drainSince.Load() != 0:
		return "draining"
	case !s.ready.Load():
		return "starting"
	case trouble != "":
		return "session store out of reach: " + trouble
	}
	return ""
}

func (s *server) drainTime() time.Duration {
	since := s.drainSince.Load()
	if since == 0 {
		return 0
	}
	return netpoll.Monotonic() - time.Duration(since)
}

// stop runs end on a goroutine of its own, and sends its result.
func (s *server) stop() <-chan error {
	stopped := make(chan error, 1)
	go func() { stopped <- s.end() }()
	return stopped
}

// end ends listeners, connections, requests and loops, in this order.
func (s *server) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), max(s.config.DrainTimeout-s.drainTime(), 0))
	defer cancel()
	if c := s.control.Load(); c != nil {
		c.close()
	}
	select {
	case s.giving <- struct{}{}: // from here on no handover begins
	case <-ctx.Done():
	}
	s.engine.CloseListeners()
	cut := s.engine.Cut()
	s.plain.stop(ctx)
	if s.debug != nil {
		s.debug.Close()
	}
	if err := s.store.Close(ctx); err != nil {
		s.log.Error().Err(err).Msg("sessions_not_released")
	}
	err := s.engine.Close()
	s.log.Info().Int64("duration_ms", s.drainTime().Milliseconds()).Int("cut", cut).Msg("server_stopped")
	return err
}
