package netpoll

import "time"

// An Expirer is told that its timer is due. It runs on the loop.
type Expirer interface {
	OnTimer()
}

// A Timer is an entry of a Wheel, to be embedded in what it belongs to, so
// that setting one allocates nothing. The zero Timer with Owner set is ready.
type Timer struct {
	Owner Expirer

	at   time.Duration
	next *Timer
	link **Timer // what points to this timer: a slot, or the next of another
}

// wheelSlots is a power of two; with a Tick of 50 ms a turn of the wheel takes
// 205 s, more than any deadline of a connection at its default.
const wheelSlots = 4096

// A Wheel is a hashed timer wheel (Varghese and Lauck, 1987, scheme 5): a slot
// for each tick of one turn. What is due later than a turn from now waits in
// the last slot and is put back when that comes, so a tick costs in proportion
// to what is due, plus 1/4096 of what is more than a turn away.
//
// A Wheel knows no clock: it moves only by Advance. It is not safe for
// concurrent use.
type Wheel struct {
	slots [wheelSlots]*Timer
	tick  int64 // the last tick that Advance has begun; its slot is empty once that is done
	count int   // how many timers are on the wheel
}

func (w *Wheel) init(now time.Duration) { w.tick = int64(now / Tick) }

// Len is the number of timers on the wheel.
func (w *Wheel) Len() int { return w.count }

// Schedule lets t expire at the first tick that is not before at, and never in
// the tick being handled. A timer on the wheel is moved. It returns the tick at
// which the wheel has to be advanced for t.
func (w *Wheel) Schedule(t *Timer, at time.Duration) (tick int64) {
	w.Cancel(t)
	t.at = at
	tick = int64((at + Tick - 1) / Tick)
	tick = min(max(tick, w.tick+1), w.tick+wheelSlots-1)
	slot := &w.slots[tick%wheelSlots]
	t.next, t.link = *slot, slot
	if t.next != nil {
		t.next.link = &t.next
	}
	*slot = t
	w.count++
	return tick
}

// Cancel takes t off the wheel. A timer that is not on it is left alone.
func (w *Wheel) Cancel(t *Timer) {
	if t.link == nil {
		return
	}
	*t.link = t.next
	if t.next != nil {
		t.next.link = t.link
	}
	t.next, t.link = nil, nil
	w.count--
}

// next is the tick at which the wheel has to be advanced next, never if it is empty.
func (w *Wheel) next() (tick int64) {
	if w.count == 0 {
		return never
	}
	for tick = w.tick + 1; w.slots[tick%wheelSlots] == nil; tick++ {
	}
	return tick
}

// expireMost is how many timers one Advance looks at: a heartbeat costs some 10 µs.
const expireMost = 128

// Advance moves the wheel to now and expires what is due. It stops after expireMost
// timers; then it returns false, and has to be called again for the others. A timer may
// schedule and cancel any timer, itself included, while it expires.
func (w *Wheel) Advance(now time.Duration) (done bool) {
	target := int64(now / Tick)
	if target-w.tick > wheelSlots {
		w.tick = target - wheelSlots // each slot once is enough after a long sleep
	}
	for left := expireMost; ; w.tick++ {
		if left = w.expire(&w.slots[w.tick%wheelSlots], now, left); left == 0 {
			return false
		}
		if w.tick >= target {
			return true
		}
	}
}

// expire looks at most at so many timers of a slot, and returns how many are left of
// that. No timer can join the slot meanwhile: Schedule uses only the slots of other
// ticks.
func (w *Wheel) expire(slot **Timer, now time.Duration, most int) (left int) {
	for ; *slot != nil && most > 0; most-- {
		t := *slot
		w.Cancel(t)
		if t.at > now {
			w.Schedule(t, t.at)
			continue
		}
		t.Owner.OnTimer()
	}
	return most
}
