package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"turnstile/netpoll"
)

// The types with large letters travel between the processes (net/rpc).

// A Step is one thing that all clients do at the same time.
type Step struct {
	Kind     StepKind
	Rate     float64       // a second: connections of stepConnect (0: as fast as it goes) and stepChurn, messages of stepRate and stepStorm
	InFlight int           // messages of each client, in stepEcho
	Duration time.Duration // of all but stepConnect, stepCut and stepStorm
	Resume   bool          // stepConnect comes back with the sessions
	Stayers  bool          // only clients that stay in a storm send at Rate
}

// A StepKind is a step's name.
type StepKind string

const (
	stepConnect StepKind = "connect" // open what is not open
	stepEcho    StepKind = "echo"    // closed loop: each answer is followed by a message
	stepRate    StepKind = "rate"    // open loop: messages at a fixed rate
	stepWatch   StepKind = "watch"   // say nothing
	stepChurn   StepKind = "churn"   // connect, send, leave, again and again
	stepCut     StepKind = "cut"     // close all without a word
	stepStorm   StepKind = "storm"   // cut all but the stayers, who send at a fixed rate until the others are back and served
)

// Counters are how far a step is.
type Counters struct {
	At                           time.Duration // by netpoll.Clock, which all processes share
	Open, Answers, Beats, Faults int64
	CPU                          time.Duration // of the process, since its start
}

// since is what was added after an earlier look; Open stays what it is.
func (c Counters) since(before Counters) Counters {
	c.At -= before.At
	c.Answers -= before.Answers
	c.Beats -= before.Beats
	c.Faults -= before.Faults
	c.CPU -= before.CPU
	return c
}

// add adds another process's.
func (c *Counters) add(other Counters) {
	c.At = max(c.At, other.At)
	c.Open += other.Open
	c.Answers += other.Answers
	c.Beats += other.Beats
	c.Faults += other.Faults
	c.CPU += other.CPU
}

// sumSince adds up what was added in each process.
func sumSince(before, now []Counters) (sum Counters) {
	for i, c := range now {
		sum.add(c.since(before[i]))
	}
	return sum
}

// Seen is what clients have seen in a step.
type Seen struct {
	Upgrade *Histogram // from connecting to the 101
	Latency *Histogram // from when a message was due to its answer
	Beat    *Histogram // between a client's heartbeats
	Late    *Histogram // by how much a message was sent after it was due
	Served  *Histogram // from the cut of a storm to the client's first answer after it
	Cut     float64    // how many clients a storm has cut
	Errors  map[string]int64
}

func newSeen() Seen {
	return Seen{
		Upgrade: newHistogram(), Latency: newHistogram(), Beat: newHistogram(), Late: newHistogram(), Served: newHistogram(),
		Errors: make(map[string]int64),
	}
}

func (s *Seen) merge(other Seen) {
	s.Upgrade.Merge(other.Upgrade.Histogram)
	s.Latency.Merge(other.Latency.Histogram)
	s.Beat.Merge(other.Beat.Histogram)
	s.Late.Merge(other.Late.Histogram)
	s.Served.Merge(other.Served.Histogram)
	s.Cut += other.Cut
	for what, n := range other.Errors {
		s.Errors[what] += n
	}
}

// An Outcome is what became of a step: the Counters since its begin, At being
// how long it took.
type Outcome struct {
	Counters
	Seen
}

// merge adds another process's outcome of the same step.
func (o *Outcome) merge(other Outcome) {
	o.Counters.add(other.Counters)
	o.Seen.merge(other.Seen)
}

// A Histogram is of times in microseconds, from one to a minute, with three
// digits.
type Histogram struct{ *hdrhistogram.Histogram }

func newHistogram() *Histogram { return &Histogram{hdrhistogram.New(1, 60_000_000, 3)} }

func (h *Histogram) record(d time.Duration) {
	h.RecordValue(min(max(d.Microseconds(), 1), h.HighestTrackableValue()))
}

// GobEncode is for encoding/gob, by which a Histogram travels.
func (h *Histogram) GobEncode() ([]byte, error) {
	return h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
}

// GobDecode is GobEncode's other end.
func (h *Histogram) GobDecode(data []byte) (err error) {
	h.Histogram, err = hdrhistogram.Decode(data)
	return err
}

const (
	checkEvery = 5 * time.Millisecond
	// settleTime is how long answers may take that are still missing when a
	// step's time is over, and openTime how long connections may.
	settleTime = 10 * time.Second
	openTime   = time.Minute
)

// until waits for a condition, and reports false if the time is over first, or
// ctx is done.
func until(ctx context.Context, patience time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(checkEvery) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return condition()
		}
	}
	return true
}

func (g *generator) carryOut(ctx context.Context, s Step) error {
	g.each(func(l *lane) { l.stayersOnly = s.Stayers })
	switch s.Kind {
	case stepConnect:
		g.connect(ctx, s)
	case stepEcho:
		g.echo(ctx, s)
	case stepRate:
		g.rate(ctx, s)
	case stepWatch:
		g.watch(ctx, s)
	case stepChurn:
		g.churn(ctx, s)
	case stepCut:
		g.each((*lane).cut)
	case stepStorm:
		g.storm(ctx, s)
	default:
		return fmt.Errorf("unknown step %q", s.Kind)
	}
	return nil
}

// connect opens every client that is not open.
func (g *generator) connect(ctx context.Context, s Step) {
	g.each(func(l *lane) {
		l.resuming = s.Resume
		for _, c := range l.clients {
			if c.state == clientIdle {
				l.toOpen = append(l.toOpen, c)
			}
		}
		l.pending.Store(int64(len(l.toOpen)))
		if s.Rate == 0 {
			l.openMore(connectWindow)
		}
	})
	if s.Rate > 0 {
		g.pace(ctx, s.Rate, forever, func(l *lane, _ time.Duration) bool {
			l.openMore(l.opening + 1)
			return len(l.toOpen) > 0
		})
	}
	if !until(ctx, openTime, g.nonePending) && ctx.Err() == nil {
		g.each((*lane).giveUpOpening)
	}
}

const forever = 365 * 24 * time.Hour

func (g *generator) nonePending() bool {
	for _, l := range g.lanes {
		if l.pending.Load() > 0 {
			return false
		}
	}
	return true
}

// giveUpOpening ends what has waited for too long.
func (l *lane) giveUpOpening() {
	l.toOpen = nil
	for _, c := range l.clients {
		if c.state == clientDialing || c.state == clientUpgrading {
			c.fail("connect: no answer within a minute")
		}
	}
}

// cut ends all connections without a word.
func (l *lane) cut() {
	for _, c := range l.clients {
		c.close()
	}
}

// echo keeps messages in flight on every connection.
func (g *generator) echo(ctx context.Context, s Step) {
	g.each(func(l *lane) {
		l.refill = true
		for _, c := range l.clients {
			if c.state == clientOpen {
				c.askTimes(s.InFlight)
			}
		}
	})
	sleep(ctx, s.Duration)
	g.each(func(l *lane) { l.refill = false })
	g.settle(ctx)
}

// rate sends messages at a fixed rate, over the connections in turn. A message
// that cannot be sent in time counts from when it was due.
func (g *generator) rate(ctx context.Context, s Step) {
	g.pace(ctx, s.Rate, s.Duration, func(l *lane, due time.Duration) bool {
		l.sendNext(due)
		return true
	})
	g.settle(ctx)
}

// sendNext sends a message that was due, on the connection whose turn it is.
func (l *lane) sendNext(due time.Duration) {
	c := l.next(clientOpen)
	if c == nil {
		l.fault("a message that no connection was open for")
		return
	}
	l.seen.Late.record(netpoll.Monotonic() - due)
	c.ask(due)
	c.send()
}

// storm cuts the clients that do not stay. They come back at once, and each sends a
// message. The others send at the step's rate until all of these are answered.
func (g *generator) storm(ctx context.Context, s Step) {
	g.each((*lane).beginStorm)
	g.pace(ctx, s.Rate, openTime, func(l *lane, due time.Duration) bool {
		l.sendNext(due)
		return g.sum(func(l *lane) *atomic.Int64 { return &l.unserved }) > 0
	})
	g.each((*lane).giveUpOpening)
	g.settle(ctx)
	g.each(func(l *lane) { l.stormBegan = 0 })
}

func (l *lane) beginStorm() {
	l.resuming, l.stormBegan = true, netpoll.Monotonic()
	for _, c := range l.clients {
		if c.stays {
			continue
		}
		c.close()
		if c.state == clientIdle {
			l.toOpen = append(l.toOpen, c)
		}
	}
	n := len(l.toOpen)
	l.seen.Cut = float64(n)
	l.unserved.Store(int64(n))
	l.pending.Store(int64(n))
	l.openMore(connectWindow)
}

// settle waits for the answers that are missing; those that do not come are
// faults.
func (g *generator) settle(ctx context.Context) {
	settled := func() bool {
		var open, quiet int64
		for _, l := range g.lanes {
			open += l.open.Load()
			quiet += l.settled.Load()
		}
		return open == quiet
	}
	if until(ctx, settleTime, settled) {
		return
	}
	g.each(func(l *lane) {
		for _, c := range l.clients {
			for range c.due {
				l.fault("no answer")
			}
		}
	})
}

// watch says nothing, and lets the server speak.
func (g *generator) watch(ctx context.Context, s Step) {
	g.each(func(l *lane) {
		for _, c := range l.clients {
			c.lastBeat = 0
		}
	})
	sleep(ctx, s.Duration)
}

// churn has every client connect, send a message, and leave when it is
// answered, at so many connections a second.
func (g *generator) churn(ctx context.Context, s Step) {
	g.each(func(l *lane) {
		l.cut()
		l.churning = true
	})
	g.pace(ctx, s.Rate, s.Duration, func(l *lane, _ time.Duration) bool {
		c := l.next(clientIdle)
		if c == nil {
			l.fault("no client is free: more -conns, or a lower -connect-rate")
			return true
		}
		l.opening++
		l.pending.Add(1)
		c.connect(false)
		return true
	})
	until(ctx, settleTime, func() bool { return g.counters().Open == 0 })
	g.each(func(l *lane) { l.churning = false })
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
