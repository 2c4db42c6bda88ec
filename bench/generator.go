package main

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
)

// A generator is the clients of one process, spread over a few lanes.
type generator struct {
	// Fixed after newGenerator.
	target  *target
	message []byte // a whole frame
	pool    *netpoll.Pool
	lanes   []*lane
}

// A lane is an event loop with its clients and what they have seen.
type lane struct {
	// Fixed after newLane.
	generator *generator
	loop      *netpoll.Loop
	alarm     *netpoll.Alarm // for pace
	share     float64        // where its turn is between two turns of the first lane of all, 0 to 1

	// Owned by the loop.
	clients     []*client
	in, out     []byte
	seen        Seen
	pace        *pace     // what it does now at a rate, or nil
	refill      bool      // each answer is followed by another message
	toOpen      []*client // wait for their turn to connect
	opening     int       // connections that are being opened
	resuming    bool
	churning    bool          // each answer is followed by the connection's end
	stayersOnly bool          // only clients that stay act at a rate
	stormBegan  time.Duration // on Monotonic; 0 while there is no storm
	turn        int           // of the client that acts next

	// Atomic.
	open     atomic.Int64 // connections
	answers  atomic.Int64
	beats    atomic.Int64
	failed   atomic.Int64 // faults
	pending  atomic.Int64 // connections that are being opened, or wait to be
	settled  atomic.Int64 // open connections without a message that waits
	unserved atomic.Int64 // clients that a storm has cut, and that have no answer since
}

// connectWindow is how many connections a lane opens at once when no rate is
// asked for: fewer than any accept queue.
const connectWindow = 64

// stayEvery is of how many clients one stays in a storm.
const stayEvery = 10

// newGenerator makes this process's share of the clients.
func newGenerator(o *options, s Share) (*generator, error) {
	t, err := parseTarget(o.URL, o.Check == checkCounter)
	if err != nil {
		return nil, err
	}
	g := &generator{target: t}
	text := strings.Repeat("x", o.Size)
	g.message = proto.AppendMaskedFrame(nil, proto.OpText, true, clientMask, []byte(text))
	lanes := min(o.Loops, s.Count)
	// With no P to spare, each wake-up of a loop would begin by waking a thread.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), lanes+2))
	g.pool, err = netpoll.NewPool(lanes, func(int) netpoll.Config {
		return netpoll.Config{Fatal: func(err error) { panic(err) }, KeepProcessor: true}
	})
	if err != nil {
		return nil, err
	}
	for i, loop := range g.pool.Loops {
		l, err := newLane(g, loop, (float64(i)+float64(s.Process)/float64(o.Processes))/float64(lanes))
		if err != nil {
			return nil, err
		}
		for n := i; n < s.Count; n += lanes {
			l.clients = append(l.clients, &client{lane: l, index: s.First + n, stays: len(l.clients)%stayEvery == 0})
		}
		g.lanes = append(g.lanes, l)
	}
	return g, nil
}

func newLane(g *generator, loop *netpoll.Loop, share float64) (l *lane, err error) {
	l = &lane{generator: g, loop: loop, share: share, seen: newSeen()}
	l.alarm, err = loop.NewAlarm(l.keepPace)
	return l, err
}

func (l *lane) fault(what string) {
	l.seen.Errors[what]++
	l.failed.Add(1)
}

func (l *lane) opened(c *client) {
	l.seen.Upgrade.record(netpoll.Monotonic() - c.began)
	l.open.Add(1)
	l.settled.Add(1)
	if l.churning || l.isServing(c) {
		c.ask(netpoll.Monotonic())
	}
	l.onOpening()
}

// isServing reports whether a client has been cut by the storm under way, and has no
// answer since.
func (l *lane) isServing(c *client) bool {
	return l.stormBegan > 0 && c.began > l.stormBegan && !c.answered
}

func (l *lane) failedToOpen(reason string) {
	l.fault(reason)
	if l.stormBegan > 0 {
		l.unserved.Add(-1)
	}
	l.onOpening()
}

// onOpening follows a connection that was being opened.
func (l *lane) onOpening() {
	l.opening--
	l.pending.Add(-1)
	l.openMore(connectWindow)
}

// openMore begins to open connections, until so many are being opened.
func (l *lane) openMore(most int) {
	for l.opening < most && len(l.toOpen) > 0 {
		c := l.toOpen[0]
		l.toOpen = l.toOpen[1:]
		l.opening++
		c.connect(l.resuming)
	}
}

// next is the client that is in a state and whose turn it is; nil if none is.
func (l *lane) next(state clientState) *client {
	for range l.clients {
		c := l.clients[l.turn%len(l.clients)]
		l.turn++
		if c.state == state && (c.stays || !l.stayersOnly) {
			return c
		}
	}
	return nil
}

func (l *lane) closed(c *client) {
	if l.isServing(c) {
		l.unserved.Add(-1)
	}
	l.open.Add(-1)
	if len(c.due) == 0 {
		l.settled.Add(-1)
	}
	c.due = c.due[:0]
}

// each runs act for every lane, on its loop, and waits for all.
func (g *generator) each(act func(*lane)) {
	var wg sync.WaitGroup
	for _, l := range g.lanes {
		wg.Add(1)
		if !l.loop.Post(func() { defer wg.Done(); act(l) }) {
			wg.Done()
		}
	}
	wg.Wait()
}

func (g *generator) sum(of func(*lane) *atomic.Int64) (sum int64) {
	for _, l := range g.lanes {
		sum += of(l).Load()
	}
	return sum
}

func (g *generator) counters() Counters {
	return Counters{
		At:      netpoll.Clock(),
		Open:    g.sum(func(l *lane) *atomic.Int64 { return &l.open }),
		Answers: g.sum(func(l *lane) *atomic.Int64 { return &l.answers }),
		Beats:   g.sum(func(l *lane) *atomic.Int64 { return &l.beats }),
		Faults:  g.sum(func(l *lane) *atomic.Int64 { return &l.failed }),
		CPU:     ownCPU(),
	}
}

// run carries out a step. When ctx is done, it ends early.
func (g *generator) run(ctx context.Context, s Step) (Outcome, error) {
	g.each(func(l *lane) { l.seen = newSeen() })
	before := g.counters()
	if err := g.carryOut(ctx, s); err != nil {
		return Outcome{}, err
	}
	o := Outcome{Counters: g.counters().since(before), Seen: newSeen()}
	var mu sync.Mutex
	g.each(func(l *lane) {
		mu.Lock()
		defer mu.Unlock()
		o.Seen.merge(l.seen)
	})
	return o, nil
}

// close ends all connections and loops.
func (g *generator) close() {
	g.each(func(l *lane) {
		for _, c := range l.clients {
			c.fail("")
		}
		l.alarm.Close()
	})
	g.pool.Close()
}
