package netpoll

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// turn is the time in which the wheel comes round once.
const turn = wheelSlots * Tick

func newWheel(now time.Duration) *Wheel {
	w := new(Wheel)
	w.init(now)
	return w
}

// An alarm is a timer that counts how often it expired.
type alarm struct {
	Timer
	rang int
	ring func() // if set, called at each expiration
}

func newAlarm(ring func()) *alarm {
	a := &alarm{ring: ring}
	a.Owner = a
	return a
}

func (a *alarm) OnTimer() {
	a.rang++
	if a.ring != nil {
		a.ring()
	}
}

func TestTimerExpiresAtTheFirstTickNotBefore(t *testing.T) {
	f := func(start, at, want time.Duration) {
		t.Helper()
		w, a := newWheel(start), newAlarm(nil)
		w.Schedule(&a.Timer, at)
		for now := start; now <= want+2*turn; now += Tick {
			w.Advance(now)
			if (a.rang == 1) != (now >= want) || a.rang > 1 {
				t.Fatalf("a timer for %v, set at %v, has expired %d times by %v; it is due at %v", at, start, a.rang, now, want)
			}
		}
		if w.Len() != 0 {
			t.Errorf("a timer for %v is still held", at)
		}
	}
	f(0, 1, Tick)
	f(0, Tick-1, Tick)
	f(0, Tick, Tick)
	f(0, Tick+1, 2*Tick)
	f(0, turn-Tick, turn-Tick)
	f(0, turn, turn)
	f(0, turn+1, turn+Tick)
	f(0, 3*turn+7*Tick, 3*turn+7*Tick)
	f(0, 3*turn+7*Tick+1, 3*turn+8*Tick)
	f(1000*time.Hour, 1000*time.Hour+5*Tick, 1000*time.Hour+5*Tick)
	// What is overdue comes with the next tick, not at once.
	f(0, 0, Tick)
	f(0, -time.Hour, Tick)
	f(10*Tick, 3*Tick, 11*Tick)
	f(10*Tick, 10*Tick, 11*Tick)
}

// TestAdvanceByAnyStep jumps over everything that can be due on the way.
func TestAdvanceByAnyStep(t *testing.T) {
	f := func(step, at time.Duration) {
		t.Helper()
		w, a, later := newWheel(0), newAlarm(nil), newAlarm(nil)
		w.Schedule(&a.Timer, at)
		w.Schedule(&later.Timer, step+1)
		w.Advance(step)
		if a.rang != 1 || later.rang != 0 {
			t.Errorf("a step of %v: the timer for %v expired %d times, the one after the step %d times", step, at, a.rang, later.rang)
		}
		w.Advance(step + Tick)
		if a.rang != 1 || later.rang != 1 || w.Len() != 0 {
			t.Errorf("a tick after a step of %v: %d and %d expirations, %d held", step, a.rang, later.rang, w.Len())
		}
	}
	for _, step := range []time.Duration{turn - Tick, turn, turn + Tick, turn + Tick/2, 2*turn - Tick, 2 * turn, 10*turn + 3*Tick} {
		for _, at := range []time.Duration{-1, 0, 1, Tick, step / 2, step - Tick, step - step%Tick} {
			f(step, at)
		}
	}
}

func TestAdvanceWithinATickDoesNothing(t *testing.T) {
	w, a := newWheel(5*Tick), newAlarm(nil)
	w.Schedule(&a.Timer, 0)
	for _, now := range []time.Duration{5 * Tick, 6*Tick - 1, 0} {
		w.Advance(now)
	}
	if a.rang != 0 || w.Len() != 1 {
		t.Errorf("%d expirations without a tick, %d held", a.rang, w.Len())
	}
}

func TestScheduleMovesATimer(t *testing.T) {
	w, a := newWheel(0), newAlarm(nil)
	for _, at := range []time.Duration{Tick, 9 * turn, 2 * Tick, 5 * Tick} {
		w.Schedule(&a.Timer, at)
		if w.Len() != 1 {
			t.Fatalf("%d timers held, but there is one", w.Len())
		}
	}
	w.Advance(4 * Tick)
	if a.rang != 0 {
		t.Error("expired by an earlier setting")
	}
	w.Advance(10 * turn)
	if a.rang != 1 {
		t.Errorf("expired %d times", a.rang)
	}
}

func TestCancel(t *testing.T) {
	w := newWheel(0)
	alarms := []*alarm{newAlarm(nil), newAlarm(nil), newAlarm(nil)}
	w.Cancel(&alarms[0].Timer) // not on the wheel: left alone
	for _, a := range alarms { // all in one slot: its first, middle and last
		w.Schedule(&a.Timer, Tick)
	}
	for i, a := range alarms {
		w.Cancel(&a.Timer)
		w.Cancel(&a.Timer)
		if want := len(alarms) - i - 1; w.Len() != want {
			t.Errorf("%d timers held, want %d", w.Len(), want)
		}
	}
	w.Schedule(&alarms[1].Timer, Tick) // a cancelled timer can be set again
	w.Advance(2 * turn)
	for i, want := range []int{0, 1, 0} {
		if alarms[i].rang != want {
			t.Errorf("timer %d expired %d times, want %d", i, alarms[i].rang, want)
		}
	}
}

func TestTimerThatSetsItselfAgain(t *testing.T) {
	f := func(step, again time.Duration, want int) {
		t.Helper()
		w := newWheel(0)
		var a *alarm
		a = newAlarm(func() { w.Schedule(&a.Timer, again) })
		w.Schedule(&a.Timer, Tick)
		w.Advance(step)
		if a.rang != want || w.Len() != 1 {
			t.Errorf("set to %v while a step of %v is handled: %d expirations, want %d; %d held", again, step, a.rang, want, w.Len())
		}
	}
	f(Tick, 0, 1)    // overdue, but never twice in a tick
	f(Tick, Tick, 1) // and not for the tick itself
	f(Tick, turn+Tick, 1)
	f(3*Tick, 0, 3)      // each tick of a step counts
	f(3*Tick, 3*Tick, 2) // once at the first tick, once at the third
	f(3*Tick, 4*Tick, 1)
}

func TestTimersThatTouchEachOtherWhileTheyExpire(t *testing.T) {
	f := func(what string, do func(w *Wheel, other *Timer), wantBoth, wantHeld int) {
		t.Helper()
		for _, gap := range []time.Duration{0, Tick} { // in one slot and in the next
			w := newWheel(0)
			var a, b *alarm
			a = newAlarm(func() { do(w, &b.Timer) })
			b = newAlarm(func() { do(w, &a.Timer) })
			w.Schedule(&a.Timer, Tick)
			w.Schedule(&b.Timer, Tick+gap)
			w.Advance(2 * Tick)
			if a.rang+b.rang != wantBoth || w.Len() != wantHeld {
				t.Errorf("%s: %d expirations, want %d; %d held, want %d", what, a.rang+b.rang, wantBoth, w.Len(), wantHeld)
			}
		}
	}
	f("each cancels the other", (*Wheel).Cancel, 1, 0)
	f("each puts the other off", func(w *Wheel, other *Timer) { w.Schedule(other, 9*Tick) }, 1, 1)
	f("each cancels what has expired or not, then sets it", func(w *Wheel, other *Timer) {
		w.Cancel(other)
		w.Schedule(other, turn)
	}, 1, 1)
}

// A wheel that is advanced only when it asks for it expires each timer at its tick.
func TestWheelTellsWhatComesNext(t *testing.T) {
	w := newWheel(0)
	if w.next() != never {
		t.Errorf("an empty wheel waits for tick %d", w.next())
	}
	var now time.Duration
	left := 0
	for _, at := range []time.Duration{1, Tick, 3*Tick + 1, 40 * Tick, turn - Tick, turn, turn + 7*Tick, 3*turn + 1} {
		left++
		var a *alarm
		a = newAlarm(func() {
			left--
			if want := (at + Tick - 1) / Tick * Tick; now != want {
				t.Errorf("the timer for %v expires at %v, want %v", at, now, want)
			}
		})
		w.Schedule(&a.Timer, at)
	}
	cancelled := newAlarm(nil)
	w.Schedule(&cancelled.Timer, 2*Tick)
	w.Cancel(&cancelled.Timer)
	for steps := 0; w.next() != never; steps++ {
		if steps > 20 {
			t.Fatalf("%d timers are left after %d steps", left, steps)
		}
		now = time.Duration(w.next()) * Tick
		w.Advance(now)
	}
	if left != 0 {
		t.Errorf("%d timers have not expired", left)
	}
}

// A wheelModel is a Wheel and what it ought to hold, in a plain slice.
type wheelModel struct {
	t      *testing.T
	rand   *rand.Rand
	wheel  *Wheel
	timers []*modelTimer
	now    time.Duration // of the last Advance, or of the one that runs
}

type modelTimer struct {
	Timer
	model *wheelModel
	set   bool
	at    time.Duration
	by    int64 // the tick by which it must have expired
}

func TestWheelAgainstModel(t *testing.T) {
	// A seed that a failure names can be added here.
	for _, seed := range []uint64{1, 2, 3, rand.Uint64()} {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newWheelModel(t, seed)
			for range 3000 {
				m.act()
				if m.rand.IntN(3) == 0 {
					m.advance(m.now + m.randomStep())
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

func newWheelModel(t *testing.T, seed uint64) *wheelModel {
	m := &wheelModel{t: t, rand: rand.New(rand.NewPCG(seed, 0)), now: 3*time.Hour + 7}
	m.wheel = newWheel(m.now)
	for range 100 {
		timer := &modelTimer{model: m}
		timer.Owner = timer
		m.timers = append(m.timers, timer)
	}
	return m
}

// act sets or cancels one timer. It also runs inside OnTimer.
func (m *wheelModel) act() {
	timer := m.timers[m.rand.IntN(len(m.timers))]
	if m.rand.IntN(4) == 0 {
		m.wheel.Cancel(&timer.Timer)
		timer.set = false
		return
	}
	timer.set, timer.at = true, m.now+m.randomDelay()
	timer.by = max(int64((timer.at+Tick-1)/Tick), int64(m.now/Tick)+1)
	m.wheel.Schedule(&timer.Timer, timer.at)
}

func (m *wheelModel) randomDelay() time.Duration {
	longest := []time.Duration{Tick, 20 * Tick, turn, 3 * turn}[m.rand.IntN(4)]
	delay := time.Duration(m.rand.Int64N(int64(longest)))
	switch m.rand.IntN(6) {
	case 0:
		return -delay
	case 1: // exactly on a tick
		return delay - (m.now+delay)%Tick
	}
	return delay
}

func (m *wheelModel) randomStep() time.Duration {
	longest := []time.Duration{Tick, 5 * Tick, turn + 2*Tick, 3 * turn}[m.rand.IntN(4)]
	return time.Duration(m.rand.Int64N(int64(longest)))
}

func (m *wheelModel) advance(now time.Duration) {
	m.now = now
	for !m.wheel.Advance(now) {
	}
	held := 0
	for i, timer := range m.timers {
		if !timer.set {
			continue
		}
		held++
		if timer.by <= int64(now/Tick) {
			m.t.Errorf("at %v timer %d is late: it was for %v", now, i, timer.at)
		}
	}
	if m.wheel.Len() != held {
		m.t.Errorf("at %v the wheel holds %d timers, want %d", now, m.wheel.Len(), held)
	}
}

func (timer *modelTimer) OnTimer() {
	m := timer.model
	if !timer.set {
		m.t.Errorf("at %v a timer expires that is not set", m.now)
	}
	if timer.at > m.now {
		m.t.Errorf("at %v a timer is early: it was for %v", m.now, timer.at)
	}
	timer.set = false
	if m.rand.IntN(2) == 0 { // on itself as often as on any other
		m.act()
	}
}

// A repeater is due again at every tick.
type repeater struct {
	Timer
	wheel *Wheel
}

func (r *repeater) OnTimer() { r.wheel.Schedule(&r.Timer, 0) }

// benchTimers is how many timers the benchmarks hold: one for each connection
// of a very full machine.
const benchTimers = 1_000_000

// BenchmarkWheelTick is the cost of one tick: with due timers, where all others
// wait in slots that do not come up, and with all of them more than a turn away.
func BenchmarkWheelTick(b *testing.B) {
	for _, due := range []int{0, 10, 1000} {
		b.Run(fmt.Sprintf("due=%d", due), func(b *testing.B) { benchmarkDue(b, due) })
	}
	b.Run("far", func(b *testing.B) {
		w := newWheel(0)
		for i := range benchTimers { // as if set one after the other, over a turn
			w.tick = int64(i % wheelSlots)
			w.Schedule(&newAlarm(nil).Timer, math.MaxInt64/2)
		}
		w.tick = wheelSlots - 1
		b.ReportAllocs()
		for b.Loop() {
			advanceTick(w)
		}
		if w.Len() != benchTimers {
			b.Fatal("a timer is lost")
		}
	})
}

func advanceTick(w *Wheel) {
	for now := time.Duration(w.tick+1) * Tick; !w.Advance(now); {
	}
}

func benchmarkDue(b *testing.B, due int) {
	const used = 3000 // slots that ticks go over; the other timers wait behind them
	w := newWheel(0)
	for i := range benchTimers - due {
		w.Schedule(&newAlarm(nil).Timer, time.Duration(used+i%1000)*Tick)
	}
	repeaters := make([]repeater, due)
	windBack := func() {
		w.tick = 0
		for i := range repeaters {
			r := &repeaters[i]
			r.wheel, r.Owner = w, r
			w.Schedule(&r.Timer, 0)
		}
	}
	windBack()
	b.ReportAllocs()
	for b.Loop() {
		if w.tick == used-1 {
			windBack()
		}
		advanceTick(w)
	}
	if w.Len() != benchTimers {
		b.Fatal("a timer is lost")
	}
}

// BenchmarkWheelSchedule moves timers about, in no order.
func BenchmarkWheelSchedule(b *testing.B) {
	w := newWheel(0)
	alarms := make([]alarm, benchTimers)
	for i := range alarms {
		w.Schedule(&alarms[i].Timer, time.Duration(i%wheelSlots)*Tick)
	}
	b.ReportAllocs()
	n := uint64(1)
	for b.Loop() {
		n = n*6364136223846793005 + 1442695040888963407 // Knuth's generator
		w.Schedule(&alarms[n>>33%benchTimers].Timer, time.Duration(n>>40%wheelSlots)*Tick)
	}
}
