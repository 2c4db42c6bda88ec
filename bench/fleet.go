package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"turnstile/netpoll"
	"turnstile/proto"
)

// A fleet is the clients of one process, spread over a few lanes.
type fleet struct {
	// Fixed after newFleet.
	target  *target
	message []byte // a whole frame
	pool    *netpoll.Pool
	lanes   []*lane
	clients []*client
}

// A lane is an event loop with its clients and what they have seen.
type lane struct {
	fleet *fleet
	loop  *netpoll.Loop

	// Owned by the loop.
	clients  []*client
	in, out  []byte
	upgrade  *hdrhistogram.Histogram // from connecting to the 101, in microseconds
	latency  *hdrhistogram.Histogram // from when a message was due to its answer, in microseconds
	beat     *hdrhistogram.Histogram // between two heartbeats of one client, in microseconds
	late     *hdrhistogram.Histogram // by how much a message was sent after it was due, in microseconds
	faults   map[string]int64
	bytesIn  int64
	refill   bool      // each answer is followed by another message
	toOpen   []*client // wait for their turn to connect
	resuming bool
	churning bool // each answer is followed by the connection's end
	turn     int  // of the client that acts next

	// Atomic.
	open     atomic.Int64 // connections
	answers  atomic.Int64
	beats    atomic.Int64
	failed   atomic.Int64 // faults
	pending  atomic.Int64 // connections that are being opened, or wait to be
	settled  atomic.Int64 // open connections without a message that waits, less those before the step
	inFlight int          // connections that are being opened
}

// connectWindow is how many connections a lane opens at once when no rate is
// asked for: fewer than any accept queue.
const connectWindow = 64

func newFleet(o *options, first, count int) (*fleet, error) {
	t, err := parseTarget(o.URL, o.Check == checkCounter)
	if err != nil {
		return nil, err
	}
	f := &fleet{target: t}
	text := strings.Repeat("x", o.Size)
	f.message = proto.AppendMaskedFrame(nil, proto.OpText, true, clientMask, []byte(text))
	f.pool, err = netpoll.NewPool(min(o.Loops, count), func(int) netpoll.Config {
		return netpoll.Config{Fatal: func(err error) { panic(err) }}
	})
	if err != nil {
		return nil, err
	}
	for _, loop := range f.pool.Loops {
		l := &lane{fleet: f, loop: loop}
		l.reset()
		f.lanes = append(f.lanes, l)
	}
	for i := range count {
		l := f.lanes[i%len(f.lanes)]
		c := &client{lane: l, index: first + i}
		l.clients = append(l.clients, c)
		f.clients = append(f.clients, c)
	}
	return f, nil
}

// The histograms go from a microsecond to a minute, with three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }

func (l *lane) reset() {
	l.upgrade, l.latency, l.beat, l.late = newHistogram(), newHistogram(), newHistogram(), newHistogram()
	l.faults = make(map[string]int64)
	l.answers.Store(0)
	l.beats.Store(0)
	l.failed.Store(0)
}

func recordIn(h *hdrhistogram.Histogram, d time.Duration) {
	h.RecordValue(min(max(d.Microseconds(), 1), h.HighestTrackableValue()))
}

func (l *lane) record(d time.Duration) {
	recordIn(l.latency, d)
	l.answers.Add(1)
}

func (l *lane) recordBeat(d time.Duration) { recordIn(l.beat, d) }

func (l *lane) fault(what string) {
	l.faults[what]++
	l.failed.Add(1)
}

func (l *lane) opened(c *client) {
	recordIn(l.upgrade, netpoll.Monotonic()-c.began)
	l.open.Add(1)
	l.settled.Add(1)
	if l.churning {
		c.ask(netpoll.Monotonic())
	}
	l.onOpening()
}

func (l *lane) failedToOpen(reason string) {
	l.fault(reason)
	l.onOpening()
}

// onOpening follows a connection that was being opened.
func (l *lane) onOpening() {
	l.inFlight--
	l.pending.Add(-1)
	l.openMore(connectWindow)
}

// openMore begins to open connections, until so many are being opened.
func (l *lane) openMore(most int) {
	for l.inFlight < most && len(l.toOpen) > 0 {
		c := l.toOpen[0]
		l.toOpen = l.toOpen[1:]
		l.inFlight++
		c.connect(l.resuming)
	}
}

// next is the client that is in a state and whose turn it is; nil if none is.
func (l *lane) next(state clientState) *client {
	for range l.clients {
		c := l.clients[l.turn%len(l.clients)]
		l.turn++
		if c.state == state {
			return c
		}
	}
	return nil
}

func (l *lane) closed(c *client) {
	l.open.Add(-1)
	if len(c.due) == 0 {
		l.settled.Add(-1)
	}
	c.due = c.due[:0]
}

// each runs act for every lane, on its loop, and waits for all.
func (f *fleet) each(act func(*lane)) {
	var wg sync.WaitGroup
	for _, l := range f.lanes {
		wg.Add(1)
		if !l.loop.Post(func() { defer wg.Done(); act(l) }) {
			wg.Done()
		}
	}
	wg.Wait()
}

func (f *fleet) sum(of func(*lane) *atomic.Int64) (sum int64) {
	for _, l := range f.lanes {
		sum += of(l).Load()
	}
	return sum
}

func (f *fleet) counters() counters {
	return counters{
		Open:    f.sum(func(l *lane) *atomic.Int64 { return &l.open }),
		Answers: f.sum(func(l *lane) *atomic.Int64 { return &l.answers }),
		Beats:   f.sum(func(l *lane) *atomic.Int64 { return &l.beats }),
		Faults:  f.sum(func(l *lane) *atomic.Int64 { return &l.failed }),
		CPU:     ownCPU(),
	}
}

// run carries out a step, and tells how far it is.
func (f *fleet) run(ctx context.Context, s step, progress func(counters)) (outcome, error) {
	f.each((*lane).reset)
	stop := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() { f.tell(stop, progress) })
	usage := ownCPU()
	began := netpoll.Monotonic()
	err := f.carryOut(ctx, s)
	elapsed := netpoll.Monotonic() - began
	close(stop)
	told.Wait()
	o := newOutcome()
	o.Elapsed, o.Busy = elapsed, ownCPU()-usage
	o.counters = f.counters()
	f.each(func(l *lane) { l.addTo(o) })
	return *o, err
}

var addLock sync.Mutex

func (l *lane) addTo(o *outcome) {
	addLock.Lock()
	defer addLock.Unlock()
	o.Upgrade.Merge(l.upgrade)
	o.Latency.Merge(l.latency)
	o.Beat.Merge(l.beat)
	o.Late.Merge(l.late)
	for what, n := range l.faults {
		o.Errors[what] += n
	}
}

const tellEvery = 200 * time.Millisecond

func (f *fleet) tell(stop <-chan struct{}, progress func(counters)) {
	progress(f.counters())
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			progress(f.counters())
		}
	}
}

func (f *fleet) carryOut(ctx context.Context, s step) error {
	switch s.Kind {
	case stepConnect:
		return f.connect(ctx, s)
	case stepEcho:
		return f.echo(ctx, s)
	case stepRate:
		return f.rate(ctx, s)
	case stepWatch:
		return f.watch(ctx, s)
	case stepChurn:
		return f.churn(ctx, s)
	case stepCut:
		f.each(func(l *lane) {
			for _, c := range l.clients {
				c.close()
			}
		})
		return nil
	}
	return fmt.Errorf("unknown step %q", s.Kind)
}

// close ends all connections and loops.
func (f *fleet) close() {
	f.each(func(l *lane) {
		for _, c := range l.clients {
			c.fail("")
		}
	})
	f.pool.Close()
}
