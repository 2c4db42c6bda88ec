package main

import (
	"context"
	"sync"
	"time"

	"turnstile/netpoll"
)

// A pace is what a lane does at a fixed rate, and when.
type pace struct {
	began, end time.Duration // on Monotonic
	interval   float64       // nanoseconds from one act to the next
	turn       float64       // of the next act, from the lane's share on
	act        func(l *lane, due time.Duration) (more bool)
	over       func() // is called once
}

const (
	// spinTime is how long before an act is due its lane stops sleeping and
	// looks at the clock instead: about what waking up takes.
	spinTime = 20 * time.Microsecond
	// actsAtOnce is how many acts a lane that is late makes up for between two
	// looks at its sockets.
	actsAtOnce = 32
	// overtime is how long after its end a pace may still act, for what was due
	// in time. What is not done then is left undone: the lane was too slow.
	overtime = 50 * time.Millisecond
)

// pace has the lanes act so many times a second in all, in turn, and returns
// when the time is over, or act has told each lane that there is no more.
func (g *generator) pace(ctx context.Context, perSecond float64, length time.Duration, act func(l *lane, due time.Duration) (more bool)) {
	var lanes sync.WaitGroup
	lanes.Add(len(g.lanes))
	began := netpoll.Monotonic()
	g.each(func(l *lane) {
		l.pace = &pace{
			began: began, end: began + length, interval: 1e9 * float64(len(g.lanes)) / perSecond,
			turn: l.share, act: act, over: lanes.Done,
		}
		l.keepPace()
	})
	stop := context.AfterFunc(ctx, func() { g.each((*lane).endPace) })
	defer stop()
	lanes.Wait()
}

// due is when the next act is.
func (p *pace) due() time.Duration { return p.began + time.Duration(p.turn*p.interval) }

// keepPace does what is due, and sets the alarm for what is not. It runs on the
// lane's loop, so nothing has to be woken or waited for but the clock.
func (l *lane) keepPace() {
	for range actsAtOnce {
		p := l.pace
		if p == nil {
			return
		}
		due, now := p.due(), netpoll.Monotonic()
		switch {
		case due >= p.end || now >= p.end+overtime:
			l.endPace()
			return
		case due-now > spinTime:
			l.alarm.Set(due - spinTime)
			return
		}
		for now < due {
			now = netpoll.Monotonic()
		}
		p.turn++
		if !p.act(l, due) {
			l.endPace()
		}
	}
	l.alarm.Set(0) // it is late: its sockets first
}

func (l *lane) endPace() {
	if l.pace != nil {
		l.pace.over()
		l.pace = nil
	}
}
