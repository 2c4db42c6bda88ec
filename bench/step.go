package main

import (
	"context"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"turnstile/netpoll"
)

// A step is one thing that all clients do at the same time.
type step struct {
	Kind     stepKind
	Rate     float64       // a second: connections of stepConnect (0: as fast as it goes), messages of stepRate
	InFlight int           // messages of each client, in stepEcho
	Duration time.Duration // of all but stepConnect and stepCut
	Resume   bool          // stepConnect comes back with the sessions
}

type stepKind string

const (
	stepConnect stepKind = "connect" // open what is not open
	stepEcho    stepKind = "echo"    // closed loop: each answer is followed by a message
	stepRate    stepKind = "rate"    // open loop: messages at a fixed rate
	stepWatch   stepKind = "watch"   // say nothing
	stepChurn   stepKind = "churn"   // connect, send, leave, again and again
	stepCut     stepKind = "cut"     // close all without a word
)

// counters are how far a step is.
type counters struct {
	Open, Answers, Beats, Faults int64
	CPU                          time.Duration // of the generator, since its start
}

func (c *counters) add(other counters) {
	c.Open += other.Open
	c.Answers += other.Answers
	c.Beats += other.Beats
	c.Faults += other.Faults
	c.CPU += other.CPU
}

// An outcome is what became of a step. Histograms are in microseconds.
type outcome struct {
	counters
	Upgrade *hdrhistogram.Histogram // from connecting to the 101
	Latency *hdrhistogram.Histogram // from when a message was due to its answer
	Beat    *hdrhistogram.Histogram // between a client's heartbeats
	Late    *hdrhistogram.Histogram // the generator's own lateness
	Errors  map[string]int64
	Elapsed time.Duration
	Busy    time.Duration // processor time of the generator in this step
}

func newOutcome() *outcome {
	return &outcome{Upgrade: newHistogram(), Latency: newHistogram(), Beat: newHistogram(), Late: newHistogram(), Errors: make(map[string]int64)}
}

// merge adds another process's outcome of the same step.
func (o *outcome) merge(other outcome) {
	o.add(other.counters)
	o.Upgrade.Merge(other.Upgrade)
	o.Latency.Merge(other.Latency)
	o.Beat.Merge(other.Beat)
	o.Late.Merge(other.Late)
	for what, n := range other.Errors {
		o.Errors[what] += n
	}
	o.Elapsed = max(o.Elapsed, other.Elapsed)
	o.Busy += other.Busy
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

// connect opens every client that is not open.
func (f *fleet) connect(ctx context.Context, s step) error {
	f.each(func(l *lane) {
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
	left := func() (n int64) {
		for _, l := range f.lanes {
			n += l.pending.Load()
		}
		return n
	}
	if s.Rate > 0 {
		f.pace(ctx, pace{
			perSecond: s.Rate,
			length:    openTime + time.Duration(float64(len(f.clients))/s.Rate*float64(time.Second)),
			act:       func(l *lane, _ time.Duration) { l.openMore(l.inFlight + 1) },
			done:      func() bool { return left() == 0 },
		})
	}
	if !until(ctx, openTime, func() bool { return left() == 0 }) && ctx.Err() == nil {
		f.each(func(l *lane) {
			l.toOpen = nil
			for _, c := range l.clients {
				if c.state == clientDialing || c.state == clientUpgrading {
					c.fail("connect: no answer within a minute")
				}
			}
		})
	}
	return ctx.Err()
}

// A pace is so many acts a second for a length of time, dealt to the lanes in
// turn.
type pace struct {
	perSecond float64
	length    time.Duration
	act       func(l *lane, due time.Duration)
	done      func() bool // before the length is over

	began time.Duration
}

// dueAt is when the n-th act is due.
func (p *pace) dueAt(n int) time.Duration {
	return p.began + time.Duration(float64(n)/p.perSecond*float64(time.Second))
}

// pace lets each lane act at its own pace, so that none waits for another.
func (f *fleet) pace(ctx context.Context, p pace) {
	p.began = netpoll.Monotonic()
	var lanes sync.WaitGroup
	for i, l := range f.lanes {
		lanes.Go(func() { l.keepUp(ctx, &p, i, len(f.lanes)) })
	}
	lanes.Wait()
}

// turnsAtOnce is how many acts a lane that is late makes up for between two
// looks at its sockets.
const turnsAtOnce = 1000

// keepUp does the lane's share of the acts. What is not done when the time is
// over is left undone: the lane was too slow.
func (l *lane) keepUp(ctx context.Context, p *pace, first, each int) {
	for n := first; ctx.Err() == nil && !p.done(); {
		now := netpoll.Monotonic()
		if now-p.began >= p.length {
			return
		}
		ran := make(chan struct{})
		if !l.loop.Post(func() { n += each * l.actOnDue(p, n, each, now); close(ran) }) {
			return
		}
		<-ran
		sleep(ctx, max(100*time.Microsecond, min(p.dueAt(n), p.began+p.length)-netpoll.Monotonic()))
	}
}

// actOnDue does what is due now, from the n-th act on, and returns how many
// acts that were.
func (l *lane) actOnDue(p *pace, n, each int, now time.Duration) (acts int) {
	for ; acts < turnsAtOnce; acts++ {
		due := p.dueAt(n + acts*each)
		if due > now || due-p.began >= p.length {
			break
		}
		p.act(l, due)
	}
	return acts
}

// echo keeps messages in flight on every connection.
func (f *fleet) echo(ctx context.Context, s step) error {
	f.each(func(l *lane) {
		l.refill = true
		for _, c := range l.clients {
			if c.state != clientOpen {
				continue
			}
			now := netpoll.Monotonic()
			for range s.InFlight {
				c.ask(now)
			}
			c.send()
		}
	})
	sleep(ctx, s.Duration)
	f.each(func(l *lane) { l.refill = false })
	f.settle(ctx)
	return ctx.Err()
}

// rate sends messages at a fixed rate, over the connections in turn. A message
// that cannot be sent in time counts from when it was due.
func (f *fleet) rate(ctx context.Context, s step) error {
	f.pace(ctx, pace{perSecond: s.Rate, length: s.Duration, done: never, act: func(l *lane, due time.Duration) {
		c := l.next(clientOpen)
		if c == nil {
			l.fault("a message that no connection was open for")
			return
		}
		recordIn(l.late, netpoll.Monotonic()-due)
		c.ask(due)
		c.send()
	}})
	f.settle(ctx)
	return ctx.Err()
}

// settle waits for the answers that are missing; those that do not come are
// faults.
func (f *fleet) settle(ctx context.Context) {
	settled := func() bool {
		var open, quiet int64
		for _, l := range f.lanes {
			open += l.open.Load()
			quiet += l.settled.Load()
		}
		return open == quiet
	}
	if until(ctx, settleTime, settled) {
		return
	}
	f.each(func(l *lane) {
		for _, c := range l.clients {
			for range c.due {
				l.fault("no answer")
			}
		}
	})
}

// watch says nothing, and lets the server speak.
func (f *fleet) watch(ctx context.Context, s step) error {
	f.each(func(l *lane) {
		for _, c := range l.clients {
			c.lastBeat = 0
		}
	})
	sleep(ctx, s.Duration)
	return ctx.Err()
}

// churn has every client connect, send a message, and leave when it is
// answered, at so many connections a second.
func (f *fleet) churn(ctx context.Context, s step) error {
	f.each(func(l *lane) {
		for _, c := range l.clients {
			c.close()
		}
		l.churning = true
	})
	f.pace(ctx, pace{perSecond: s.Rate, length: s.Duration, done: never, act: func(l *lane, _ time.Duration) {
		c := l.next(clientIdle)
		if c == nil {
			l.fault("no client is free: more -conns, or a lower -connect-rate")
			return
		}
		l.inFlight++
		l.pending.Add(1)
		c.connect(false)
	}})
	until(ctx, settleTime, func() bool { return f.counters().Open == 0 })
	f.each(func(l *lane) { l.churning = false })
	return ctx.Err()
}

func never() bool { return false }

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
