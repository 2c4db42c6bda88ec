package netpoll

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestClockIsOfTheCallbackThatRuns(t *testing.T) {
	l := newLoop(t, Config{})
	for range 3 {
		before := Monotonic()
		onLoop(t, l, func() {
			if now := l.Now(); now < before || now > Monotonic() {
				t.Errorf("the clock says %v after %v and before %v", now, before, Monotonic())
			}
		})
	}
}

// A loop without a timer that is due sleeps: the one tick comes for the timer.
func TestOnlyTimersTick(t *testing.T) {
	var ticks []time.Duration
	l := newLoop(t, Config{OnTick: func(late time.Duration) { ticks = append(ticks, late) }})
	done := make(chan struct{})
	var begin time.Duration
	far, near := newAlarm(nil), newAlarm(func() { close(done) })
	onLoop(t, l, func() {
		begin = l.Now()
		l.Schedule(&far.Timer, begin+time.Hour)
		l.Schedule(&near.Timer, begin+6*Tick) // and not when far is due
	})
	wait(t, done, "the timer")
	onLoop(t, l, func() {
		if len(ticks) != 1 || l.Now()-ticks[0] < begin+6*Tick-Tick {
			t.Errorf("%d ticks, late by %v", len(ticks), ticks)
		}
	})
}

// Timers that are due at once do not keep out what becomes ready meanwhile.
func TestManyTimersShareTheLoop(t *testing.T) {
	const timers = 10 * expireMost
	l := newLoop(t, Config{})
	rang, before := 0, 0
	done := make(chan struct{})
	var alarms [timers]*alarm
	for i := range alarms {
		alarms[i] = newAlarm(func() {
			if rang++; rang == 1 {
				l.Post(func() { before = rang })
			}
			if rang == timers {
				close(done)
			}
		})
	}
	onLoop(t, l, func() {
		for _, a := range alarms {
			l.Schedule(&a.Timer, l.Now()+Tick)
		}
	})
	wait(t, done, "the last timer")
	onLoop(t, l, func() {
		if before == 0 || before > 2*expireMost {
			t.Errorf("a task ran after %d of %d timers, want %d to %d", before, timers, expireMost, 2*expireMost)
		}
	})
}

// Before the first timer of an idle time, the wheel is where the clock is.
func TestWheelFollowsAfterASleep(t *testing.T) {
	l := newLoop(t, Config{})
	for begin := Monotonic() / Tick; Monotonic()/Tick == begin; {
		runtime.Gosched()
	}
	onLoop(t, l, func() {
		l.Schedule(&newAlarm(func() {}).Timer, l.Now()+Tick)
		if want := int64(l.Now() / Tick); l.wheel.tick != want {
			t.Errorf("the wheel is at tick %d, want %d", l.wheel.tick, want)
		}
	})
}

// TestGiveWayOnlyInTraffic makes up how long ago the last yield and the callback before were.
func TestGiveWayOnlyInTraffic(t *testing.T) {
	const begin = time.Hour
	for _, kind := range []struct {
		yields yields
		of     func(*Loop) *yields
	}{
		{goroutineYields(), func(l *Loop) *yields { return &l.goroutines }},
		{threadYields(), func(l *Loop) *yields { return &l.threads }},
	} {
		for _, c := range []struct {
			sinceYield, sinceCallback time.Duration
			want                      bool
		}{
			{kind.yields.every, 0, true},
			{kind.yields.every, kind.yields.gap - 1, true},
			{kind.yields.every, kind.yields.gap, false}, // there is no traffic: it would only cost
			{kind.yields.every - 1, 0, false},
			{time.Hour, time.Hour, false},
		} {
			l := Loop{now: begin - c.sinceCallback, goroutines: yields{at: never}, threads: yields{at: never}}
			*kind.of(&l) = kind.yields
			next := kind.yields.every - c.sinceYield + begin
			kind.of(&l).at = next
			if got := l.giveWay(begin); got != c.want {
				t.Errorf("%+v, %v after the last yield and %v after the last callback: %v", kind.yields, c.sinceYield, c.sinceCallback, got)
			}
			if moved := kind.of(&l).at != next; moved != c.want {
				t.Errorf("%+v, %v after the last yield: the next one has moved: %v", kind.yields, c.sinceYield, moved)
			}
		}
	}
}

// The others of the processor have to run, or the scheduler has not seen the loop.
func TestYieldLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var ran atomic.Bool
	go ran.Store(true)
	for range 100 { // far shorter than the scheduler lets a goroutine run
		yield()
	}
	if !ran.Load() {
		t.Error("nobody else ran")
	}
}

// TestClockStandsStillWithTheLoop keeps the loop from its ticks for longer than its
// clock may move at once.
func TestClockStandsStillWithTheLoop(t *testing.T) {
	l := newLoop(t, Config{})
	var before, after, absent, behind time.Duration
	done := make(chan struct{})
	second := newAlarm(func() { close(done) })
	first := newAlarm(func() {
		after, behind = l.Now(), l.lost
		l.Schedule(&second.Timer, after+Tick) // a tick of its own: time goes on
	})
	onLoop(t, l, func() {
		before = l.Now()
		began := Monotonic()
		l.Schedule(&first.Timer, before+Tick)
		for absent < 2*longestStep {
			runtime.Gosched()
			absent = Monotonic() - began
		}
	})
	wait(t, done, "a timer behind the standstill")
	if step := after - before; step > longestStep {
		t.Errorf("the clock moved by %v in one tick, want %v at the most", step, longestStep)
	}
	if least := absent - longestStep; behind < least {
		t.Errorf("the clock is behind by %v, want %v at least", behind, least)
	}
}

// TestOnTickTellsHowLate keeps the loop from its fds for three ticks.
func TestOnTickTellsHowLate(t *testing.T) {
	var worst time.Duration
	done := make(chan struct{})
	hogged := false
	l := newLoop(t, Config{OnTick: func(late time.Duration) {
		if hogged {
			hogged, worst = false, late
			close(done)
		}
	}})
	l.Post(func() {
		l.Schedule(&newAlarm(func() {}).Timer, l.Now())
		for until := Monotonic() + 3*Tick; Monotonic() < until; {
			runtime.Gosched()
		}
		hogged = true
	})
	wait(t, done, "the tick after the task")
	if worst < Tick { // two at least, less what it took to start the clock
		t.Errorf("told of %v", worst)
	}
}

func TestTimersOnALoop(t *testing.T) {
	l := newLoop(t, Config{})
	done := make(chan struct{})
	var begin, firstAt, movedAt time.Duration
	first := newAlarm(func() { firstAt = Monotonic() })
	moved := newAlarm(func() { movedAt = Monotonic() })
	cancelled := newAlarm(nil)
	last := newAlarm(func() { close(done) })
	onLoop(t, l, func() {
		begin = l.Now()
		for _, a := range []*alarm{first, moved, cancelled} {
			l.Schedule(&a.Timer, begin+2*Tick)
		}
		l.Schedule(&moved.Timer, begin+4*Tick)
		l.Schedule(&last.Timer, begin+6*Tick)
		l.Cancel(&cancelled.Timer)
	})
	wait(t, done, "the last timer")
	if first.rang != 1 || moved.rang != 1 || cancelled.rang != 0 {
		t.Errorf("expired %d, %d and %d times; want 1, 1 and 0", first.rang, moved.rang, cancelled.rang)
	}
	if firstAt < begin+2*Tick || movedAt < begin+4*Tick {
		t.Errorf("early: %v and %v after the start", firstAt-begin, movedAt-begin)
	}
}
