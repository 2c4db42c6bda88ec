package engine

import (
	"slices"
	"time"

	"turnstile/netpoll"
)

const (
	// acceptBatch is how many sockets the acceptor takes from one listener before it
	// looks at the others, and at the clients beyond a limit. The event is
	// level-triggered, so the rest comes next.
	acceptBatch = 16
	// acceptPause is how long the acceptor pauses when no file descriptors are
	// left.
	acceptPause = 250 * time.Millisecond
)

// An acceptor accepts sockets on a loop of its own, and gives each to the worker
// with the fewest. It keeps those beyond a limit.
type acceptor struct {
	// Fixed after newAcceptor.
	engine      *Engine
	loop        *netpoll.Loop
	beyondLimit *beyondLimit

	// Owned by the loop.
	listeners []*netpoll.Listener
	lent      []*netpoll.Listener // another process accepts on them, or will soon
	paused    bool
	resume    netpoll.Timer
	failed    error // the last error that was logged; nil once accepting works again
}

func newAcceptor(e *Engine, loop *netpoll.Loop) *acceptor {
	a := &acceptor{engine: e, loop: loop, beyondLimit: newBeyondLimit(e, loop)}
	a.resume.Owner = a
	return a
}

// watchAll watches the listeners; it runs on the loop.
func (a *acceptor) watchAll() error {
	for _, l := range a.listeners {
		if err := a.watch(l); err != nil {
			return err
		}
	}
	return nil
}

// stop closes the listeners; it runs on the loop.
func (a *acceptor) stop() {
	a.loop.Cancel(&a.resume)
	for _, l := range a.listeners {
		if !a.paused {
			a.loop.Del(l.FD)
		}
		l.Unlink()
		l.Close()
	}
	for _, l := range a.lent {
		l.Close() // the other process keeps the socket, and the file of a unix socket
	}
	a.listeners, a.lent = nil, nil
}

// lend stops accepting on the listeners that were asked for by these addresses,
// and returns them; it runs on the loop.
func (a *acceptor) lend(addresses []string) []*netpoll.Listener {
	kept := a.listeners[:0]
	for _, l := range a.listeners {
		if !slices.Contains(addresses, l.Asked) {
			kept = append(kept, l)
			continue
		}
		if !a.paused {
			a.loop.Del(l.FD)
		}
		l.Shared = true // for good: if the exchange breaks, both processes may listen
		a.lent = append(a.lent, l)
	}
	a.listeners = kept
	return a.lent
}

// unwatchAll accepts nobody until takeBack or stop; it runs on the loop.
func (a *acceptor) unwatchAll() {
	a.loop.Cancel(&a.resume)
	for _, l := range a.listeners {
		if !a.paused {
			a.loop.Del(l.FD)
		}
	}
	a.paused = true
}

// takeBack undoes lend and unwatchAll; it runs on the loop.
func (a *acceptor) takeBack() {
	a.unwatchAll()
	a.listeners, a.lent = append(a.listeners, a.lent...), nil
	a.OnTimer()
}

// add accepts on one more listener; it runs on the loop.
func (a *acceptor) add(l *netpoll.Listener) error {
	a.listeners = append(a.listeners, l)
	if a.paused {
		return nil
	}
	return a.watch(l)
}

func (a *acceptor) watch(l *netpoll.Listener) error {
	return a.loop.Add(l.FD, netpoll.Readable, func(w netpoll.Woken) {
		a.loop.Awake(w)
		a.onConnections(l)
	})
}

// acceptAll accepts every client that waits; it runs on the loop.
func (a *acceptor) acceptAll() {
	for _, l := range a.listeners {
		for a.onConnections(l) {
		}
	}
}

// onConnections accepts clients that wait, and reports whether more may wait.
func (a *acceptor) onConnections(l *netpoll.Listener) (more bool) {
	for range acceptBatch {
		fd, peer, err := l.Accept()
		if err == netpoll.ErrAgain {
			a.onNobodyWaits()
			return false
		}
		if err != nil {
			a.onFailure(l, err)
			return false
		}
		arrival := a.engine.arrive(fd, peer.Addr())
		if arrival.beyond != withinLimits {
			a.beyondLimit.welcome(arrival)
			continue
		}
		a.engine.assign().inbox.put(arrival)
	}
	return true
}

// onFailure stops watching the listeners for acceptPause: level-triggered, they
// would call back at once, again and again. Clients wait in the kernel's queues.
func (a *acceptor) onFailure(l *netpoll.Listener, err error) {
	if a.paused {
		return
	}
	a.paused = true
	a.engine.config.Metrics.Paused.Inc()
	for _, l := range a.listeners {
		a.loop.Del(l.FD)
	}
	a.loop.Schedule(&a.resume, a.loop.Now()+acceptPause)
	if a.failed != err {
		a.failed = err
		e := a.engine.config.Log.Error().Err(err).Str("listen", l.Addr)
		if netpoll.IsExhausted(err) {
			e = e.Str("advice", "file descriptors or socket memory have run out: raise LimitNOFILE or lower -max-connections")
		}
		e.Msg("accept_paused")
	}
}

// onNobodyWaits logs the end of a shortage. Only an empty queue is its end:
// before, accepting may fail again at once.
func (a *acceptor) onNobodyWaits() {
	if a.failed != nil {
		a.failed = nil
		a.engine.config.Log.Info().Msg("accept_resumed")
	}
}

// OnTimer implements netpoll.Expirer: accepting goes on.
func (a *acceptor) OnTimer() {
	a.paused = false
	if err := a.watchAll(); err != nil {
		a.engine.config.Fatal(err)
	}
}
