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
	"turnstile/server/handover"
	"turnstile/server/session"
)

// A server is the process: its workers, their acceptor, and what they share.
type server struct {
	// Fixed after newServer.
	config    *Config
	log       zerolog.Logger
	metrics   *metrics.Metrics
	store     session.Store
	memory    *session.Memory // the store, if it is the embedded one
	peers     *peers
	endpoints []*endpoint
	plain     *plainHTTP
	debug     *http.Server
	pool      *netpoll.Pool
	workers   []*worker
	acceptor  *acceptor
	started   time.Time
	failure   chan error    // what ends the process
	asked     chan struct{} // a drain is asked for
	given     chan struct{} // another process has taken over
	giver     chan struct{} // full while connections are given to another process
	first     *takeover     // what -take-over-from asks for, nil without it

	// Atomic.
	connections atomic.Int64 // sockets of the workers
	beyond      atomic.Int64 // sockets that only wait to be refused
	ready       atomic.Bool
	handingOver atomic.Bool             // or being asked to
	gone        atomic.Bool             // everything is another process's
	control     atomic.Pointer[control] // nil without -control
	drainSince  atomic.Int64            // time.Duration on netpoll's clock, 0 before the drain
}

// errKilled is the end by a second signal.
var errKilled = errors.New("ended by a second signal before the drain was over")

// newServer opens the listeners and starts the loops. Nobody is served until
// run.
func newServer(config *Config, log zerolog.Logger) (*server, error) {
	s := &server{
		config: config, log: log, started: time.Now(),
		failure: make(chan error, 1), asked: make(chan struct{}, 1), given: make(chan struct{}, 1), giver: make(chan struct{}, 1),
	}
	if config.Redis == nil {
		s.openMemory()
	}
	s.peers = newPeers(config)
	s.metrics = s.newMetrics()
	if err := s.openDebug(); err != nil {
		return nil, err
	}
	if config.Redis != nil {
		s.openRedis()
	}
	s.endpoints = s.newEndpoints()
	var err error
	if s.first, err = s.takeOverFirst(); err != nil {
		return nil, err
	}
	listeners, err := listenAll(s.first.listensElse(config.Listen))
	if err != nil {
		return nil, err
	}
	if err := s.startLoops(listeners); err != nil {
		return nil, err
	}
	s.plain = newPlainHTTP(admin.Handler(admin.Config{
		Started: s.started,
		State:   func() (bool, bool) { return s.isReady(), s.drainSince.Load() != 0 },
		Metrics: s.metrics.Write,
	}), config.HandshakeTimeout)
	if s.first == nil || config.Control != config.TakeOverFrom {
		err = s.openControl()
	} // else when what is there now has handed over
	return s, err
}

// openControl listens for commands, if the configuration says so.
func (s *server) openControl() error {
	if s.config.Control == "" {
		if s.first != nil {
			s.log.Warn().Msg("no_control")
		}
		return nil
	}
	c, err := openControl(s, s.config.Control, s.config.TakeOverFrom)
	if err == nil {
		s.control.Store(c)
	}
	return err
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

// startLoops starts a loop for each worker, and the last one for the acceptor.
func (s *server) startLoops(listeners []*netpoll.Listener) (err error) {
	n := s.config.Workers
	s.pool, err = netpoll.NewPool(n+1, func(i int) netpoll.Config {
		config := netpoll.Config{Fatal: s.fail}
		if i < n {
			latency := s.metrics.Workers[i].LoopLatency
			config.OnTick = func(late time.Duration) { latency.Update(late.Seconds()) }
		}
		return config
	})
	if err != nil {
		return err
	}
	for i, loop := range s.pool.Loops[:n] {
		s.workers = append(s.workers, newWorker(s, loop, s.metrics.Workers[i]))
	}
	s.acceptor = newAcceptor(s, s.pool.Loops[n], listeners)
	return nil
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
	for _, reason := range closeReasonNames {
		labels.Closes = append(labels.Closes, metrics.Label{Value: reason.name, IsError: reason.isError})
	}
	for _, outcome := range handshakeOutcomes {
		labels.Handshakes = append(labels.Handshakes, metrics.Label{Value: outcome.name, IsError: outcome.isError})
	}
	for _, reason := range handover.Refusals {
		labels.Refusals = append(labels.Refusals, string(reason))
	}
	sources := metrics.Sources{
		Sessions:       func() int { return s.store.Len() },
		MaxConnections: s.config.MaxConnections,
		Revision:       revision,
		Ready:          s.isReady,
		ShutdownTime:   s.drainTime,
	}
	if s.memory != nil {
		sources.SessionsEvicted, sources.SessionsExpired = s.memory.Evicted.Load, s.memory.Expired.Load
	}
	return metrics.New(s.config.Workers, labels, sources)
}

// run is the life of the server. It returns after a drain (nil), at a second
// signal (errKilled), or when something broke that cannot be mended.
func (s *server) run(signals <-chan os.Signal) error {
	s.acceptor.loop.Post(s.open)
	if s.first != nil {
		go s.first.runFirst()
	}
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
			if s.drainSince.Load() != 0 {
				return errKilled
			}
			begin(signal.String())
		case <-s.asked:
			begin(commandDrain)
		case <-s.given:
			begin(commandHandover)
		case <-drained:
			drained, over, stopped = nil, nil, s.stop()
		case <-over:
			drained, over, stopped = nil, nil, s.stop()
		case err := <-stopped:
			return err
		case err := <-s.failure:
			return err
		}
	}
}

// open begins to accept; it runs on the acceptor's loop.
func (s *server) open() {
	if err := s.acceptor.start(); err != nil {
		s.fail(err)
		return
	}
	if s.memory != nil {
		(&sweeper{server: s}).start()
	}
	s.ready.Store(s.drainSince.Load() == 0)
	var addresses []string
	for _, l := range s.acceptor.listeners {
		addresses = append(addresses, l.Addr)
	}
	if s.first != nil {
		addresses = append(addresses, s.first.wants()...)
	}
	e := s.log.Info()
	if url := pageURL(addresses); url != "" {
		e = e.Str("url", url)
	}
	e.Strs("listen", addresses).Int("pid", os.Getpid()).Str("revision", revision).Stringer("flags", s.config).Msg("server_started")
	s.notify(notifyReady)
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

// fail ends the process; the first reason is the one that is told.
func (s *server) fail(err error) {
	select {
	case s.failure <- err:
	default:
	}
}

// arrive counts a socket that was accepted. One beyond a limit takes nobody's
// place while it waits to be refused; ok is false if too many wait for that.
// See forget.
func (s *server) arrive(fd int, ip netip.Addr) (a arrival, ok bool) {
	s.metrics.Accepted.Inc()
	a = arrival{fd: fd, ip: ip}
	if !s.peers.trusts(ip) {
		a.charged = s.peers.charge(ip)
		a.refused = !a.charged
	}
	a.over = a.refused
	if !a.over && s.connections.Add(1) > int64(s.config.MaxConnections) {
		a.over = true
		s.connections.Add(-1)
	}
	if a.over && s.beyond.Add(1) > beyondMost {
		s.beyond.Add(-1)
		s.metrics.Dropped.Inc()
		if a.charged {
			s.peers.release(ip)
		}
		return a, false
	}
	return a, true
}

// beyondMost is how many sockets beyond the limits may wait to be refused; the
// file descriptors for them are set aside.
const beyondMost = 128

// forget undoes arrive.
func (s *server) forget(c *Conn) {
	if c.over {
		s.beyond.Add(-1)
	} else {
		s.connections.Add(-1)
	}
	if c.charged {
		s.peers.release(c.clientIP())
	}
}

// drain lets every worker say goodbye. The channel is closed when no upgraded
// connection is left. The listeners stay open until then, for new requests to
// be refused in so many words, and for health checks and scrapes.
func (s *server) drain(why string) <-chan struct{} {
	s.log.Info().Str("reason", why).Int64("connections", s.connections.Load()).Msg("drain_started")
	s.notify(notifyStopping)
	s.ready.Store(false)
	s.drainSince.Store(int64(netpoll.Monotonic()))
	done := make(chan struct{})
	left := atomic.Int64{}
	left.Store(int64(len(s.workers)))
	for _, w := range s.workers {
		w.loop.Post(func() {
			w.drain(func() {
				if left.Add(-1) == 0 {
					close(done)
				}
			})
		})
	}
	return done
}

// requestDrain has run begin a drain, as a signal does.
func (s *server) requestDrain() {
	select {
	case s.asked <- struct{}{}:
	default: // it is asked for already
	}
}

// isReady reports whether new connections are served.
func (s *server) isReady() bool { return s.ready.Load() && s.store.Available() }

func (s *server) drainTime() time.Duration {
	since := s.drainSince.Load()
	if since == 0 {
		return 0
	}
	return netpoll.Monotonic() - time.Duration(since)
}

// stop ends what is left, and sends what came of it.
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
	case s.giver <- struct{}{}: // and nothing is given from here on
	case <-ctx.Done():
	}
	wait(s.acceptor.loop, func() { s.acceptor.stop() })
	var cut int
	for _, w := range s.workers {
		wait(w.loop, func() { cut += w.cut() })
	}
	s.plain.stop(ctx)
	if s.debug != nil {
		s.debug.Close()
	}
	if err := s.store.Close(ctx); err != nil {
		s.log.Error().Err(err).Msg("sessions_not_released")
	}
	err := s.pool.Close()
	s.log.Info().Int64("duration_ms", s.drainTime().Milliseconds()).Int("cut", cut).Msg("server_stopped")
	return err
}

// wait runs task on loop and waits until it has returned.
func wait(loop *netpoll.Loop, task func()) {
	done := make(chan struct{})
	if loop.Post(func() { task(); close(done) }) {
		<-done
	}
}
