// Package engine holds WebSocket connections, from accept to close, on a fixed
// number of event loops: handshakes, frames, deadlines, backpressure, commits,
// drain, and the transfer of a connection to another process. A Handler decides what
// a message means, and appends answers; the rest is the same for every Handler.
//
// The methods of an Engine may be called from any goroutine, but not from a loop,
// since they wait for one. The methods of a Conn run on its worker's loop. The engine
// reads no flag and ends no process: it reports an error that it cannot survive to
// Config.Fatal.
package engine

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/server/session"
)

// A Config is what an Engine is made with. The caller has checked the values.
type Config struct {
	Workers   int // event loops
	Endpoints []Endpoint

	// Limits; see -help.
	MaxConnections      int
	MaxConnectionsPerIP int // 0 is no limit
	PlacesBeyondLimit   int // sockets beyond these limits that wait for their refusal, or for a page
	PlainPlaces         int // sockets that Plain serves at once
	MaxMessage          int // bytes
	MessageRate         int // a second for each connection; 0 is no limit

	// Compress is the shortest answer that is compressed, in bytes, for clients that take
	// that; 0 is no compression.
	Compress int

	// Whose pages may connect, as ParseOrigin takes it, and whose X-Forwarded-For is
	// believed.
	Origins        []string
	TrustedProxies []netip.Prefix

	// Deadlines.
	Heartbeat        time.Duration
	HandshakeTimeout time.Duration
	WriteTimeout     time.Duration
	MessageTimeout   time.Duration

	Store   session.Store    // nil only if no Handler wishes for a session
	Metrics *metrics.Metrics // made with the labels of Labels
	Log     zerolog.Logger
	Plain   PlainServer // must not be nil: any client may send a plain request
	Fatal   func(error) // called from any goroutine
}

// An Endpoint is a path, without its last slash, and the application there. Clients may
// ask for the path with that slash too. A Path that has it is never found.
type Endpoint struct {
	Path string
	New  func() Handler // called once for each worker
}

// An Engine is the acceptor, the workers, and the state that they share.
type Engine struct {
	// Fixed after New.
	config   Config
	origins  []allowedOrigin
	peers    *peers
	pool     *netpoll.Pool
	workers  []*worker
	acceptor *acceptor
	plain    *plainPlaces

	// Atomic.
	connections atomic.Int64 // sockets of the workers
	turn        atomic.Int64 // how many sockets assign has given to workers
}

// New starts a loop for each worker, and one for the acceptor. Nobody is served
// until Listen.
func New(config Config) (*Engine, error) {
	e := &Engine{
		config: config, peers: newPeers(config.TrustedProxies, config.MaxConnectionsPerIP), plain: newPlainPlaces(config.PlainPlaces),
	}
	var err error
	if e.origins, err = parseOrigins(config.Origins); err != nil {
		return nil, err
	}
	e.pool, err = netpoll.NewPool(config.Workers+1, func(i int) netpoll.Config {
		loop := netpoll.Config{Fatal: config.Fatal}
		if i < config.Workers {
			latency := config.Metrics.Workers[i].LoopLatency
			loop.OnTick = func(late time.Duration) { latency.Update(late.Seconds()) }
		}
		return loop
	})
	if err != nil {
		return nil, err
	}
	for i, loop := range e.pool.Loops[:config.Workers] {
		e.workers = append(e.workers, newWorker(e, loop, config.Metrics.Workers[i]))
	}
	e.acceptor = newAcceptor(e, e.pool.Loops[config.Workers])
	return e, nil
}

// Labels are the values of two labels of the metrics: the results of handshakes and
// the reasons of closes, in the order in which an Engine counts them.
func Labels() (handshakes, closes []metrics.Label) {
	for _, outcome := range handshakeOutcomes {
		handshakes = append(handshakes, metrics.Label{Value: outcome.name, IsError: outcome.isError})
	}
	for _, reason := range closeReasonNames {
		closes = append(closes, metrics.Label{Value: reason.name, IsError: reason.isError})
	}
	return handshakes, closes
}

// Listen accepts on more listeners. From then on the engine owns them.
func (e *Engine) Listen(listeners ...*netpoll.Listener) (err error) {
	e.acceptor.loop.Call(func() {
		for i := 0; i < len(listeners) && err == nil; i++ {
			err = e.acceptor.add(listeners[i])
		}
	})
	return err
}

// Listeners are the listeners that the engine accepts on.
func (e *Engine) Listeners() (listeners []netpoll.Listener) {
	e.acceptor.loop.Call(func() {
		for _, l := range e.acceptor.listeners {
			listeners = append(listeners, *l)
		}
	})
	return listeners
}

// Lend stops accepting on the listeners that were asked for by these addresses,
// and returns them. Another process may accept on them.
func (e *Engine) Lend(addresses []string) (lent []*netpoll.Listener) {
	e.acceptor.loop.Call(func() { lent = e.acceptor.lend(addresses) })
	return lent
}

// StopAccepting accepts every client that waits, and then nobody until TakeBack.
func (e *Engine) StopAccepting() {
	e.acceptor.loop.Call(func() { e.acceptor.acceptAll(); e.acceptor.unwatchAll() })
}

// TakeBack undoes Lend and StopAccepting.
func (e *Engine) TakeBack() { e.acceptor.loop.Call(e.acceptor.takeBack) }

// OwnListeners says that no other process accepts on the listeners: their files end with
// them.
func (e *Engine) OwnListeners() {
	e.acceptor.loop.Call(func() {
		for _, l := range e.acceptor.listeners {
			l.Shared = false
		}
	})
}

// CloseListeners ends accepting for good.
func (e *Engine) CloseListeners() { e.acceptor.loop.Call(e.acceptor.stop) }

// Every calls f on the acceptor's loop, now and each period from then on.
func (e *Engine) Every(period time.Duration, f func()) {
	e.acceptor.loop.Post((&repeated{loop: e.acceptor.loop, period: period, f: f}).start)
}

// Connections is how many sockets the workers hold.
func (e *Engine) Connections() int { return int(e.connections.Load()) }

// Shrink gives up the memory that connections of the past have left in tables and
// free lists: maps and slices do not shrink by themselves.
func (e *Engine) Shrink() {
	e.peers.shrink()
	for _, w := range e.workers {
		w.loop.Call(w.shrink)
	}
}

// Drain makes every worker say goodbye to its clients. The channel is closed when no
// upgraded connection is left. The listeners stay open until then: new requests get a
// refusal, and plain HTTP is served.
func (e *Engine) Drain() <-chan struct{} {
	done := make(chan struct{})
	workers := append(slices.Clone(e.workers), e.acceptor.beyondLimit.worker)
	var left atomic.Int64
	left.Store(int64(len(workers)))
	for _, w := range workers {
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

// Cut closes all connections that are left, and returns how many of them were
// upgraded.
func (e *Engine) Cut() (upgraded int) {
	for _, w := range e.workers {
		w.loop.Call(func() { upgraded += w.cut() })
	}
	e.acceptor.loop.Call(func() { e.acceptor.beyondLimit.worker.cut() })
	return upgraded
}

// Close ends the loops. No connection and no listener may be left.
func (e *Engine) Close() error { return e.pool.Close() }

// arrive counts a socket that was accepted. A socket beyond a limit does not count in
// that limit. See forget.
func (e *Engine) arrive(fd int, ip netip.Addr) arrival {
	e.config.Metrics.Accepted.Inc()
	a := arrival{fd: fd, ip: ip}
	if !e.peers.trusts(ip) {
		if a.charged = e.peers.charge(ip); !a.charged {
			a.beyond = handshakeTooManyOfIP
			return a
		}
	}
	if e.connections.Add(1) > int64(e.config.MaxConnections) {
		e.connections.Add(-1)
		a.beyond = handshakeTooMany
	}
	return a
}

// assign chooses the worker with the fewest sockets for one more, and counts it there
// at once, so that a burst spreads before any worker has seen it. Workers with equally
// many take turns. See forget.
func (e *Engine) assign() *worker {
	first := int(e.turn.Add(1) % int64(len(e.workers)))
	chosen := e.workers[first]
	fewest := chosen.sockets.Load()
	for i := range e.workers {
		w := e.workers[(first+i)%len(e.workers)]
		if n := w.sockets.Load(); n < fewest {
			chosen, fewest = w, n
		}
	}
	chosen.sockets.Add(1)
	return chosen
}

// forget undoes arrive and assign.
func (e *Engine) forget(c *Conn) {
	if c.isBeyondLimit() {
		e.acceptor.beyondLimit.forget(c)
	} else {
		c.worker.sockets.Add(-1)
		e.connections.Add(-1)
	}
	if c.charged {
		e.peers.release(c.clientIP())
	}
}

// A repeated calls f once a period.
type repeated struct {
	loop   *netpoll.Loop
	period time.Duration
	f      func()
	timer  netpoll.Timer
}

func (r *repeated) start() {
	r.timer.Owner = r
	r.OnTimer()
}

// OnTimer implements netpoll.Expirer.
func (r *repeated) OnTimer() {
	r.f()
	r.loop.Schedule(&r.timer, r.loop.Now()+r.period)
}
