package main

import (
	"context"
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
}

func (c *counters) add(other counters) {
	c.Open += other.Open
	c.Answers += other.Answers
	c.Beats += other.Beats
	c.Faults += other.Faults
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
	CPU     time.Duration // of the generator
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
	o.CPU += other.CPU
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
		f.pace(ctx, s.Rate, openTime+time.Duration(float64(len(f.clients))/s.Rate*float64(time.Second)), func(l *lane, _ time.Duration) {
			l.openMore(l.inFlight + 1)
		}, func() bool { return left() == 0 })
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

// pace calls act on the lanes in turn, so many times a second, each with the
// time at which it was due, until the length is over or done says so.
func (f *fleet) pace(ctx context.Context, perSecond float64, length time.Duration, act func(*lane, time.Duration), done func() bool) {
	began := netpoll.Monotonic()
	dueAt := func(n int) time.Duration { return began + time.Duration(float64(n)/perSecond*float64(time.Second)) }
	for n := 0; ctx.Err() == nil && !done(); {
		now := netpoll.Monotonic()
		if now-began > length {
			return
		}
		turns := make([][]time.Duration, len(f.lanes))
		for ; dueAt(n) <= now && dueAt(n)-began < length; n++ {
			turns[n%len(turns)] = append(turns[n%len(turns)], dueAt(n))
		}
		for i, due := range turns {
			if len(due) > 0 {
				l := f.lanes[i]
				l.loop.Post(func() {
					for _, d := range due {
						act(l, d)
					}
				})
			}
		}
		time.Sleep(max(100*time.Microsecond, dueAt(n)-netpoll.Monotonic()))
	}
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
	turns := make(map[*lane]*int)
	for _, l := range f.lanes {
		turns[l] = new(int)
	}
	f.pace(ctx, s.Rate, s.Duration, func(l *lane, due time.Duration) {
		for range len(l.clients) {
			c := l.clients[*turns[l]%len(l.clients)]
			*turns[l]++
			if c.state == clientOpen {
				recordIn(l.late, netpoll.Monotonic()-due)
				c.ask(due)
				c.send()
				return
			}
		}
	}, func() bool { return false })
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
	turns := make(map[*lane]*int)
	for _, l := range f.lanes {
		turns[l] = new(int)
	}
	f.pace(ctx, s.Rate, s.Duration, func(l *lane, _ time.Duration) {
		for range len(l.clients) {
			c := l.clients[*turns[l]%len(l.clients)]
			*turns[l]++
			if c.state == clientIdle {
				l.inFlight++
				l.pending.Add(1)
				c.connect(false)
				return
			}
		}
		l.fault("no client is free: more -conns, or a lower -connect-rate")
	}, func() bool { return false })
	left := func() bool {
		return f.counters().Open == 0
	}
	until(ctx, settleTime, left)
	f.each(func(l *lane) { l.churning = false })
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
