package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The tables below have every state that a lease can be in, and every event
// that may come then. An event without a row must change nothing.

const (
	testNow     = 100 * time.Hour
	testEarlier = testNow - lateAfter + 1  // later than one renewal ago; a claim of then is not late
	testLongAgo = testNow - 20*time.Minute // earlier than that
	testTTL     = time.Hour                // so that a renewal is 10 minutes
	testTimeout = 2 * time.Second
)

var testTimes = newLifetimes(testTTL, testTimeout)

var (
	mine  = token{epoch: 100, lease: leaseID{1, 1}}
	older = token{epoch: 50, lease: leaseID{2, 1}}
	newer = token{epoch: 200, lease: leaseID{2, 2}}
	twin  = token{epoch: 100, lease: leaseID{2, 3}} // claimed in the same microsecond
)

// A situation is a state with the command that it sends, if one is due, and what
// happens while that is on its way.
type situation struct {
	name      string
	from      ownership
	sends     string
	meanwhile func(o *ownership)
}

// inPhase is an ownership with what all have; change sets the rest.
func inPhase(first phase, change func(o *ownership)) ownership {
	o := newOwnership(mine, first, testEarlier)
	if change != nil {
		change(&o)
	}
	return o
}

// owning is that of a lease with a count of 4.
func owning(change func(o *ownership)) ownership {
	return inPhase(phaseOwned, func(o *ownership) {
		o.confirmed, o.stored, o.wanted = true, 4, 4
		if change != nil {
			change(o)
		}
	})
}

func commits5(o *ownership)   { o.commit(5, testEarlier) }
func releases(o *ownership)   { o.release() }
func givesUp(o *ownership)    { o.giveUp(testNow) }
func lends(o *ownership)      { o.lend() }
func verifies(o *ownership)   { o.mustVerify = true }
func fences(o *ownership)     { o.phase = phaseRestore; o.expect(mine.String(), token{}) }
func replaces(o *ownership)   { o.expect(older.String(), older); o.hadOwner = true }
func isLate(o *ownership)     { o.late = true }
func waitsLong(o *ownership)  { o.askedAt = testNow - lateAfter }
func renewsLong(o *ownership) { o.renewedAt = testLongAgo }

func all(changes ...func(o *ownership)) func(o *ownership) {
	return func(o *ownership) {
		for _, f := range changes {
			f(o)
		}
	}
}

var situations = []situation{
	{name: "claim", from: inPhase(phaseFind, nil), sends: "find"},
	{name: "claim, left in flight", from: inPhase(phaseFind, nil), sends: "find", meanwhile: releases},
	{name: "claim, given up", from: inPhase(phaseFind, givesUp), sends: "find"},
	{name: "claim, in doubt", from: inPhase(phaseFind, isLate), sends: "find"},
	{name: "claim, waiting for long", from: inPhase(phaseFind, waitsLong), sends: "find"},
	{name: "take, in doubt", from: inPhase(phaseTake, all(isLate, replaces)), sends: "take from older for 80m"},
	{name: "take", from: inPhase(phaseTake, nil), sends: "take from nobody for 80m"},
	{name: "take from older", from: inPhase(phaseTake, replaces), sends: "take from older for 80m"},
	{name: "take, left in flight", from: inPhase(phaseTake, nil), sends: "take from nobody for 80m", meanwhile: releases},
	{name: "mint", from: inPhase(phaseRestore, nil), sends: "restore 0 from nobody for 80m"},
	{name: "mint, counts in flight", from: inPhase(phaseRestore, nil), sends: "restore 0 from nobody for 80m", meanwhile: commits5},
	{name: "restore", from: owning(all(commits5, fences)), sends: "restore 5 from mine for 80m"},
	{name: "restore from older", from: owning(all(commits5, fences, replaces)), sends: "restore 5 from older for 80m"},
	{name: "restore, silent", from: owning(fences), sends: "restore 4 from mine for 80m"},
	{name: "restore, left", from: owning(all(fences, releases)), sends: "restore 4 from mine for 60m, the last"},
	{name: "owned", from: owning(nil), sends: "nothing"},
	{name: "commit", from: owning(commits5), sends: "store 5 for 80m"},
	{name: "commit, counts in flight", from: owning(func(o *ownership) { o.wanted = 5 }), sends: "store 5 for 80m",
		meanwhile: func(o *ownership) { o.commit(6, testEarlier) }},
	{name: "commit, verified in flight", from: owning(commits5), sends: "store 5 for 80m", meanwhile: verifies},
	{name: "commit, left in flight", from: owning(commits5), sends: "store 5 for 80m", meanwhile: releases},
	{name: "renewal", from: owning(renewsLong), sends: "store 4 for 80m and renew"},
	{name: "renewal, due this moment", from: owning(func(o *ownership) { o.renewedAt = testNow - testTimes.renewal }),
		sends: "store 4 for 80m and renew"},
	{name: "renewal, verified in flight", from: owning(renewsLong), sends: "store 4 for 80m and renew", meanwhile: verifies},
	{name: "verify", from: owning(verifies), sends: "store 4 for 80m and renew"},
	{name: "release", from: owning(releases), sends: "store 4 for 60m, the last"},
	{name: "lent", from: owning(lends), sends: "nothing"},
	{name: "lent with a count to store", from: owning(all(commits5, givesUp, lends)), sends: "nothing"},
	{name: "lent after a mint", from: inPhase(phaseRestore, lends), sends: "nothing"},
	{name: "lent before a restore", from: owning(all(fences, replaces, lends)), sends: "nothing"},
	{name: "ended", from: owning(func(o *ownership) { o.giveAway() }), sends: "nothing"},
}

// answers are those that Redis may give to a command of each phase.
var answers = map[phase][]string{
	phaseFind:    {"nobody", "older", "newer", "attempt", "refused", "unknown"},
	phaseTake:    {"done with 7", "done without", "nobody", "older", "newer", "attempt", "refused", "unknown"},
	phaseRestore: {"done", "nobody", "older", "newer", "twin", "attempt", "refused", "unknown"},
	phaseOwned:   {"done", "missing", "refused", "unknown"},
}

var answersByName = map[string]answer{
	"done":         {kind: answerDone},
	"done with 7":  {kind: answerDone, count: 7, hadCount: true},
	"done without": {kind: answerDone},
	"missing":      {kind: answerMissing},
	"nobody":       {kind: answerOwner},
	"older":        {kind: answerOwner, owner: older.String()},
	"newer":        {kind: answerOwner, owner: newer.String()},
	"twin":         {kind: answerOwner, owner: twin.String()},
	"attempt":      {kind: answerOwner, owner: token{mine.epoch, mine.lease, 9}.String()},
	"refused":      {kind: answerRefused},
	"unknown":      {kind: answerUnknown},
}

// calls are what else may happen, where may says so; each returns what it tells.
var calls = []struct {
	name string
	may  func(o *ownership) bool
	call func(o *ownership) string
}{
	{"commit 6", mayCommit, func(o *ownership) string { return said("refused", !o.commit(6, testNow)) }},
	{"release", always, func(o *ownership) string { return said("abandoned", o.release()) }},
	{"timeout", always, func(o *ownership) string { return told(effect{news: o.giveUp(testEarlier + 1)}) }},
	{"no timeout", always, func(o *ownership) string { return told(effect{news: o.giveUp(testEarlier)}) }},
	{"expiry", always, func(o *ownership) string { o.expire(o.renewedAt+testTimes.owner+1, &testTimes); return "" }},
	{"no expiry", always, func(o *ownership) string { o.expire(o.renewedAt+testTimes.owner, &testTimes); return "" }},
	{"lend", isHeld, func(o *ownership) string { return said("lent", o.lend()) }},
	{"take back", isLent, func(o *ownership) string { o.takeBack(); return "" }},
	{"give away", isLent, func(o *ownership) string { o.giveAway(); return "" }},
	{"adopt", isLent, func(o *ownership) string { *o = adoptedOwnership(o.state(ID{}), testNow); return "" }},
}

func always(*ownership) bool      { return true }
func isHeld(o *ownership) bool    { return !o.released && !o.lent }
func isLent(o *ownership) bool    { return o.lent }
func mayCommit(o *ownership) bool { return isHeld(o) && !o.isClaiming() && o.askedAt == 0 }

func said(word string, yes bool) string {
	if yes {
		return word
	}
	return ""
}

// before is the ownership when an event comes, and the command on its way.
func (s *situation) before() (o ownership, c command) {
	o = s.from
	if s.sends != "nothing" && s.meanwhile != nil {
		c = o.next(testNow, &testTimes)
		s.meanwhile(&o)
	}
	return o, c
}

// events are those that may come.
func (s *situation) events() (names []string) {
	if s.sends != "nothing" {
		names = slices.Clone(answers[s.from.phase])
	}
	o, _ := s.before()
	for _, c := range calls {
		if c.may(&o) {
			names = append(names, c.name)
		}
	}
	return names
}

// after is what an event makes of the ownership, and what is told.
func (s *situation) after(event string) (o ownership, tells string) {
	o, c := s.before()
	if a, ok := answersByName[event]; ok {
		if !o.inFlight {
			c = o.next(testNow, &testTimes)
		}
		return o, told(o.onAnswer(&c, a))
	}
	for _, c := range calls {
		if c.name == event {
			tells = c.call(&o)
		}
	}
	return o, tells
}

// transitions are what the events change, and what is told. The ownership is in
// the words of describe.
var transitions = []struct{ situation, event, after, tells string }{
	{"claim", "nobody", "take, 0/0, waits", ""},
	{"claim", "older", "take, 0/0, expects older, replaces older, had owner, waits", ""},
	{"claim", "newer", "take, 0/0, expects newer, replaces newer, epoch 201, had owner, waits", ""},
	{"claim", "attempt", "take, 0/0, expects attempt, waits", ""},
	{"claim", "unknown", "find, 0/0, late, waits", ""},
	{"claim", "release", "ended, 0/0, released", "abandoned"},
	{"claim", "timeout", "find, 0/0", "claim unavailable"},

	{"claim, left in flight", "nobody", "ended, 0/0, released", ""},
	{"claim, left in flight", "older", "ended, 0/0, expects older, replaces older, had owner, released", ""},
	{"claim, left in flight", "newer", "ended, 0/0, expects newer, replaces newer, epoch 201, had owner, released", ""},
	{"claim, left in flight", "attempt", "ended, 0/0, expects attempt, released", ""},
	{"claim, left in flight", "refused", "ended, 0/0, released", ""},
	{"claim, left in flight", "unknown", "ended, 0/0, late, released", ""},

	{"take", "done with 7", "owned, 7/7, confirmed, renewed", "claimed with 7"},
	{"take", "done without", "owned, 0/0, confirmed, renewed", "claimed with 0"},
	{"take", "older", "take, 0/0, expects older, replaces older, had owner, waits", ""},
	{"take", "newer", "take, 0/0, expects newer, replaces newer, epoch 201, had owner, waits", ""},
	{"take", "attempt", "take, 0/0, expects attempt, waits", ""},
	{"take", "unknown", "find, 0/0, attempt 1, late, waits", ""},
	{"take", "release", "ended, 0/0, released", "abandoned"},
	{"take", "timeout", "take, 0/0", "claim unavailable"},

	{"take from older", "done with 7", "owned, 7/7, had owner, confirmed, renewed",
		"claimed with 7, resumed; older has to look"},
	{"take from older", "done without", "owned, 0/0, had owner, confirmed, renewed", "claimed with 0; older has to look"},
	{"take from older", "nobody", "take, 0/0, replaces older, had owner, waits", ""},
	{"take from older", "newer", "take, 0/0, expects newer, replaces newer, epoch 201, had owner, waits", ""},
	{"take from older", "attempt", "take, 0/0, expects attempt, replaces older, had owner, waits", ""},
	{"take from older", "unknown", "find, 0/0, expects older, replaces older, attempt 1, had owner, late, waits", ""},
	{"take from older", "release", "ended, 0/0, expects older, replaces older, had owner, released", "abandoned"},
	{"take from older", "timeout", "take, 0/0, expects older, replaces older, had owner", "claim unavailable"},

	{"claim, in doubt", "nobody", "take, 0/0, late, waits", ""},
	{"claim, in doubt", "older", "take, 0/0, expects older, replaces older, had owner, late, waits", ""},
	{"claim, in doubt", "newer", "ended, 0/0, expects newer, late", "claim unavailable"},
	{"claim, in doubt", "attempt", "take, 0/0, expects attempt, late, waits", ""},
	{"claim, in doubt", "release", "ended, 0/0, late, released", "abandoned"},
	{"claim, in doubt", "timeout", "find, 0/0, late", "claim unavailable"},

	{"claim, waiting for long", "nobody", "take, 0/0, late, waits", ""},
	{"claim, waiting for long", "older", "take, 0/0, expects older, replaces older, had owner, late, waits", ""},
	{"claim, waiting for long", "newer", "ended, 0/0, expects newer, late", "claim unavailable; asked at 99h59m59s"},
	{"claim, waiting for long", "attempt", "take, 0/0, expects attempt, late, waits", ""},
	{"claim, waiting for long", "refused", "find, 0/0, late, waits", ""},
	{"claim, waiting for long", "unknown", "find, 0/0, late, waits", ""},
	{"claim, waiting for long", "release", "ended, 0/0, released", "abandoned"},
	{"claim, waiting for long", "timeout", "find, 0/0", "claim unavailable; asked at 99h59m59s"},
	{"claim, waiting for long", "no timeout", "find, 0/0", "claim unavailable; asked at 99h59m59s"},

	{"take, in doubt", "done with 7", "owned, 7/7, had owner, confirmed, renewed",
		"claimed with 7, resumed; older has to look"},
	{"take, in doubt", "done without", "owned, 0/0, had owner, confirmed, renewed",
		"claimed with 0; older has to look"},
	{"take, in doubt", "nobody", "take, 0/0, replaces older, had owner, late, waits", ""},
	{"take, in doubt", "newer", "ended, 0/0, expects newer, replaces older, had owner, late", "claim unavailable"},
	{"take, in doubt", "attempt", "take, 0/0, expects attempt, replaces older, had owner, late, waits", ""},
	{"take, in doubt", "unknown", "find, 0/0, expects older, replaces older, attempt 1, had owner, late, waits", ""},
	{"take, in doubt", "release", "ended, 0/0, expects older, replaces older, had owner, late, released", "abandoned"},
	{"take, in doubt", "timeout", "take, 0/0, expects older, replaces older, had owner, late", "claim unavailable"},

	{"take, left in flight", "done with 7", "owned, 7/7, confirmed, renewed, released", ""},
	{"take, left in flight", "done without", "owned, 0/0, confirmed, renewed, released", ""},
	{"take, left in flight", "nobody", "ended, 0/0, released", ""},
	{"take, left in flight", "older", "ended, 0/0, expects older, replaces older, had owner, released", ""},
	{"take, left in flight", "newer", "ended, 0/0, expects newer, replaces newer, epoch 201, had owner, released", ""},
	{"take, left in flight", "attempt", "ended, 0/0, expects attempt, released", ""},
	{"take, left in flight", "refused", "ended, 0/0, released", ""},
	{"take, left in flight", "unknown", "ended, 0/0, attempt 1, late, released", ""},

	{"mint", "done", "owned, 0/0, confirmed, renewed", ""},
	{"mint", "older", "ended, 0/0, expects older", "taken over"},
	{"mint", "newer", "ended, 0/0, expects newer", "taken over"},
	{"mint", "twin", "ended, 0/0, expects twin", "taken over"},
	{"mint", "attempt", "restore, 0/0, expects attempt", ""},
	{"mint", "unknown", "restore, 0/0, attempt 1", ""},
	{"mint", "commit 6", "restore, 0/6, waits", ""},
	{"mint", "release", "restore, 0/0, released", ""},
	{"mint", "lend", "restore, 0/0, lent", "lent"},

	{"mint, counts in flight", "done", "owned, 0/5, confirmed, waits, renewed", ""},
	{"mint, counts in flight", "nobody", "restore, 0/5, waits", ""},
	{"mint, counts in flight", "older", "ended, 0/5, expects older, waits", "revoked"},
	{"mint, counts in flight", "newer", "ended, 0/5, expects newer, waits", "revoked"},
	{"mint, counts in flight", "twin", "ended, 0/5, expects twin, waits", "revoked"},
	{"mint, counts in flight", "attempt", "restore, 0/5, expects attempt, waits", ""},
	{"mint, counts in flight", "refused", "restore, 0/5, waits", ""},
	{"mint, counts in flight", "unknown", "restore, 0/5, attempt 1, waits", ""},
	{"mint, counts in flight", "release", "restore, 0/5, in flight, released", ""},
	{"mint, counts in flight", "timeout", "restore, 0/5, in flight", "commit unavailable"},

	{"restore", "done", "owned, 5/5, confirmed, renewed", "committed 5"},
	{"restore", "nobody", "restore, 4/5, confirmed, waits", ""},
	{"restore", "older", "restore, 4/5, expects older, replaces older, confirmed, waits", ""},
	{"restore", "newer", "ended, 4/5, expects newer, confirmed, waits", "revoked"},
	{"restore", "twin", "ended, 4/5, expects twin, confirmed, waits", "revoked"},
	{"restore", "attempt", "restore, 4/5, expects attempt, confirmed, waits", ""},
	{"restore", "unknown", "restore, 4/5, expects mine, attempt 1, confirmed, waits", ""},
	{"restore", "release", "restore, 4/5, expects mine, confirmed, released", ""},
	{"restore", "timeout", "restore, 4/5, expects mine, confirmed", "commit unavailable"},

	{"restore from older", "done", "owned, 5/5, had owner, confirmed, renewed", "committed 5; older has to look"},
	{"restore from older", "nobody", "restore, 4/5, replaces older, had owner, confirmed, waits", ""},
	{"restore from older", "newer", "ended, 4/5, expects newer, replaces older, had owner, confirmed, waits", "revoked"},
	{"restore from older", "twin", "ended, 4/5, expects twin, replaces older, had owner, confirmed, waits", "revoked"},
	{"restore from older", "attempt", "restore, 4/5, expects attempt, replaces older, had owner, confirmed, waits", ""},
	{"restore from older", "unknown", "restore, 4/5, expects older, replaces older, attempt 1, had owner, confirmed, waits", ""},
	{"restore from older", "release", "restore, 4/5, expects older, replaces older, had owner, confirmed, released", ""},
	{"restore from older", "timeout", "restore, 4/5, expects older, replaces older, had owner, confirmed", "commit unavailable"},

	{"restore, silent", "done", "owned, 4/4, confirmed, renewed", ""},
	{"restore, silent", "nobody", "restore, 4/4, confirmed", ""},
	{"restore, silent", "older", "restore, 4/4, expects older, replaces older, confirmed", ""},
	{"restore, silent", "newer", "ended, 4/4, expects newer, confirmed", "taken over"},
	{"restore, silent", "twin", "ended, 4/4, expects twin, confirmed", "taken over"},
	{"restore, silent", "attempt", "restore, 4/4, expects attempt, confirmed", ""},
	{"restore, silent", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed", ""},
	{"restore, silent", "commit 6", "restore, 4/6, expects mine, confirmed, waits", ""},
	{"restore, silent", "release", "restore, 4/4, expects mine, confirmed, released", ""},
	{"restore, silent", "lend", "restore, 4/4, expects mine, confirmed, lent", "lent"},

	{"restore, left", "done", "ended, 4/4, confirmed, renewed, released", ""},
	{"restore, left", "nobody", "restore, 4/4, confirmed, released", ""},
	{"restore, left", "older", "restore, 4/4, expects older, replaces older, confirmed, released", ""},
	{"restore, left", "newer", "ended, 4/4, expects newer, confirmed, released", ""},
	{"restore, left", "twin", "ended, 4/4, expects twin, confirmed, released", ""},
	{"restore, left", "attempt", "restore, 4/4, expects attempt, confirmed, released", ""},
	{"restore, left", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, released", ""},
	{"restore, left", "expiry", "ended, 4/4, expects mine, confirmed, released", ""},

	{"owned", "commit 6", "owned, 4/6, confirmed, waits", ""},
	{"owned", "release", "owned, 4/4, confirmed, released", ""},
	{"owned", "lend", "owned, 4/4, confirmed, lent", "lent"},

	{"commit", "done", "owned, 5/5, confirmed", "committed 5"},
	{"commit", "missing", "restore, 4/5, expects mine, confirmed, waits", ""},
	{"commit", "unknown", "restore, 4/5, expects mine, attempt 1, confirmed, waits", ""},
	{"commit", "release", "owned, 4/5, confirmed, released", ""},
	{"commit", "timeout", "owned, 4/5, confirmed", "commit unavailable"},

	{"commit, counts in flight", "done", "owned, 5/6, confirmed, waits", ""},
	{"commit, counts in flight", "missing", "restore, 4/6, expects mine, confirmed, waits", ""},
	{"commit, counts in flight", "refused", "owned, 4/6, confirmed, waits", ""},
	{"commit, counts in flight", "unknown", "restore, 4/6, expects mine, attempt 1, confirmed, waits", ""},
	{"commit, counts in flight", "release", "owned, 4/6, confirmed, in flight, released", ""},
	{"commit, counts in flight", "timeout", "owned, 4/6, confirmed, in flight", "commit unavailable"},

	{"commit, verified in flight", "done", "owned, 5/5, confirmed, must verify", "committed 5"},
	{"commit, verified in flight", "missing", "restore, 4/5, expects mine, confirmed, waits, must verify", ""},
	{"commit, verified in flight", "refused", "owned, 4/5, confirmed, waits, must verify", ""},
	{"commit, verified in flight", "unknown", "restore, 4/5, expects mine, attempt 1, confirmed, waits, must verify", ""},
	{"commit, verified in flight", "release", "owned, 4/5, confirmed, must verify, in flight, released", ""},
	{"commit, verified in flight", "timeout", "owned, 4/5, confirmed, must verify, in flight", "commit unavailable"},

	{"commit, left in flight", "done", "owned, 5/5, confirmed, released", ""},
	{"commit, left in flight", "missing", "restore, 4/5, expects mine, confirmed, released", ""},
	{"commit, left in flight", "refused", "owned, 4/5, confirmed, released", ""},
	{"commit, left in flight", "unknown", "restore, 4/5, expects mine, attempt 1, confirmed, released", ""},

	{"renewal", "done", "owned, 4/4, confirmed, renewed", ""},
	{"renewal", "missing", "restore, 4/4, expects mine, confirmed", ""},
	{"renewal", "refused", "owned, 4/4, confirmed, must verify", ""},
	{"renewal", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, must verify", ""},
	{"renewal", "commit 6", "owned, 4/6, confirmed, waits", ""},
	{"renewal", "release", "owned, 4/4, confirmed, released", ""},
	{"renewal", "lend", "owned, 4/4, confirmed, lent", "lent"},

	{"verify", "done", "owned, 4/4, confirmed, renewed", ""},
	{"verify", "missing", "restore, 4/4, expects mine, confirmed", ""},
	{"verify", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, must verify", ""},
	{"verify", "commit 6", "owned, 4/6, confirmed, waits, must verify", ""},
	{"verify", "release", "owned, 4/4, confirmed, must verify, released", ""},
	{"verify", "lend", "owned, 4/4, confirmed, must verify, lent", "lent"},

	{"release", "done", "ended, 4/4, confirmed, released", ""},
	{"release", "missing", "restore, 4/4, expects mine, confirmed, released", ""},
	{"release", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, released", ""},
	{"release", "expiry", "ended, 4/4, confirmed, released", ""},

	{"lent", "release", "owned, 4/4, confirmed, lent, released", ""},
	{"lent", "take back", "owned, 4/4, confirmed, must verify", ""},
	{"lent", "give away", "ended, 4/4, confirmed, lent", ""},
	{"lent", "adopt", "owned, 4/4, confirmed, renewed, must verify", ""},

	{"lent after a mint", "release", "restore, 0/0, lent, released", ""},
	{"lent after a mint", "take back", "restore, 0/0, must verify", ""},
	{"lent after a mint", "give away", "ended, 0/0, lent", ""},
	{"lent after a mint", "adopt", "restore, 0/0, renewed, must verify", ""},

	{"lent before a restore", "release", "restore, 4/4, expects older, replaces older, had owner, confirmed, lent, released", ""},
	{"lent before a restore", "take back", "restore, 4/4, expects older, replaces older, had owner, confirmed, must verify", ""},
	{"lent before a restore", "give away", "ended, 4/4, expects older, replaces older, had owner, confirmed, lent", ""},
	{"lent before a restore", "adopt", "restore, 0/4, expects older, had owner, confirmed, renewed, must verify", ""},

	{"ended", "commit 6", "ended, 4/4, confirmed", "refused"},
	{"ended", "release", "ended, 4/4, confirmed, released", ""},

	{"claim, given up", "nobody", "take, 0/0, late", ""},
	{"claim, given up", "older", "take, 0/0, expects older, replaces older, had owner, late", ""},
	{"claim, given up", "newer", "ended, 0/0, expects newer, late", ""},
	{"claim, given up", "attempt", "take, 0/0, expects attempt, late", ""},
	{"claim, given up", "refused", "find, 0/0, late", ""},
	{"claim, given up", "unknown", "find, 0/0, late", ""},
	{"claim, given up", "release", "ended, 0/0, released", ""},

	{"renewal, due this moment", "done", "owned, 4/4, confirmed, renewed", ""},
	{"renewal, due this moment", "missing", "restore, 4/4, expects mine, confirmed", ""},
	{"renewal, due this moment", "refused", "owned, 4/4, confirmed, must verify", ""},
	{"renewal, due this moment", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, must verify", ""},
	{"renewal, due this moment", "commit 6", "owned, 4/6, confirmed, waits", ""},
	{"renewal, due this moment", "release", "owned, 4/4, confirmed, released", ""},
	{"renewal, due this moment", "lend", "owned, 4/4, confirmed, lent", "lent"},

	{"renewal, verified in flight", "done", "owned, 4/4, confirmed, renewed, must verify", ""},
	{"renewal, verified in flight", "missing", "restore, 4/4, expects mine, confirmed, must verify", ""},
	{"renewal, verified in flight", "refused", "owned, 4/4, confirmed, must verify", ""},
	{"renewal, verified in flight", "unknown", "restore, 4/4, expects mine, attempt 1, confirmed, must verify", ""},
	{"renewal, verified in flight", "commit 6", "owned, 4/6, confirmed, waits, must verify, in flight", ""},
	{"renewal, verified in flight", "release", "owned, 4/4, confirmed, must verify, in flight, released", ""},

	{"lent with a count to store", "release", "owned, 4/5, confirmed, lent, released", ""},
	{"lent with a count to store", "take back", "owned, 4/5, confirmed, must verify", ""},
	{"lent with a count to store", "give away", "ended, 4/5, confirmed, lent", ""},
	{"lent with a count to store", "adopt", "restore, 0/5, confirmed, renewed, must verify", ""},
}

func TestTransitions(t *testing.T) {
	type key struct{ situation, event string }
	rows := make(map[key][2]string)
	for _, row := range transitions {
		rows[key{row.situation, row.event}] = [2]string{row.after, row.tells}
	}
	if len(rows) != len(transitions) {
		t.Errorf("%d of the rows are there twice", len(transitions)-len(rows))
	}
	for _, s := range situations {
		for _, event := range s.events() {
			before, _ := s.before()
			want := [2]string{describe(before), ""}
			if row, ok := rows[key{s.name, event}]; ok {
				want = row
				delete(rows, key{s.name, event})
			}
			after, tells := s.after(event)
			if got := [2]string{describe(after), tells}; got != want {
				t.Errorf("%s, then %s: %q, tells %q; want %q, %q", s.name, event, got[0], got[1], want[0], want[1])
			}
		}
	}
	for row := range rows {
		t.Errorf("%s: %s cannot come there", row.situation, row.event)
	}
}

// Each phase stands in the table, and each answer.
func TestTransitionsAreComplete(t *testing.T) {
	phases, kinds := make(map[phase]bool), make(map[answerKind]bool)
	for _, s := range situations {
		phases[s.from.phase] = true
		for _, name := range answers[s.from.phase] {
			kinds[answersByName[name].kind] = true
		}
	}
	if len(phases) != int(phaseEnded)+1 || len(kinds) != int(answerUnknown)+1 {
		t.Errorf("%d of %d phases and %d of %d answers are in the table", len(phases), phaseEnded+1, len(kinds), answerUnknown+1)
	}
}

func TestNextCommand(t *testing.T) {
	for _, s := range situations {
		o, sends := s.from, "nothing"
		if o.isDue(testNow, &testTimes) {
			c := o.next(testNow, &testTimes)
			sends = c.words()
			if o.isDue(testNow, &testTimes) {
				t.Errorf("%s: another command is due while one is on its way", s.name)
			}
		}
		if sends != s.sends {
			t.Errorf("%s: sends %q, want %q", s.name, sends, s.sends)
		}
	}
}

// words is a command in words.
func (c *command) words() (text string) {
	switch c.phase {
	case phaseFind:
		return "find"
	case phaseTake:
		text = fmt.Sprintf("take from %s", nameOf(c.expected))
	case phaseRestore:
		text = fmt.Sprintf("restore %d from %s", c.count, nameOf(c.expected))
	case phaseOwned:
		text = fmt.Sprintf("store %d", c.count)
	}
	text += fmt.Sprintf(" for %.0fm", c.ttl.Minutes())
	if c.token != mine || c.at != testNow {
		text += " under a strange token or time"
	}
	return text + said(" and renew", c.renew) + said(", the last", c.last)
}

func nameOf(text string) string {
	switch text {
	case "":
		return "nobody"
	case mine.String():
		return "mine"
	case older.String():
		return "older"
	case newer.String():
		return "newer"
	case twin.String():
		return "twin"
	}
	return "attempt"
}

var phaseNames = [...]string{"find", "take", "restore", "owned", "ended"}

// describe is an ownership in words, without what is as usual.
func describe(o ownership) string {
	words := []string{phaseNames[o.phase], fmt.Sprintf("%d/%d", o.stored, o.wanted)}
	add := func(yes bool, format string, values ...any) {
		if yes {
			words = append(words, fmt.Sprintf(format, values...))
		}
	}
	add(o.expected() != "", "expects %s", nameOf(o.expected()))
	add(o.replaced() != token{}, "replaces %s", nameOf(o.replaced().String()))
	add(o.token.epoch != mine.epoch, "epoch %d", o.token.epoch)
	add(o.token.attempt != 0, "attempt %d", o.token.attempt)
	add(o.hadOwner, "had owner")
	add(o.confirmed, "confirmed")
	add(o.late, "late")
	add(o.askedAt != 0, "waits")
	add(o.renewedAt == testNow, "renewed")
	add(o.mustVerify, "must verify")
	add(o.inFlight, "in flight")
	add(o.lent, "lent")
	add(o.released, "released")
	return strings.Join(words, ", ")
}

// told is an effect in words.
func told(e effect) string {
	var words []string
	n := e.news
	switch n.kind {
	case newsClaimed:
		words = append(words, fmt.Sprintf("claimed with %d", n.count)+said(", resumed", n.resumed))
	case newsCommitted:
		words = append(words, fmt.Sprintf("committed %d", n.count))
	case newsRevoked:
		words = append(words, "revoked")
	case newsTakenOver:
		words = append(words, "taken over")
	case newsClaimUnavailable:
		words = append(words, "claim unavailable")
	case newsCommitUnavailable:
		words = append(words, "commit unavailable")
	}
	if n.kind != newsNone && n.kind != newsTakenOver && n.askedAt != testEarlier {
		words = append(words, fmt.Sprintf("asked at %v", n.askedAt))
	}
	if e.replaced != (token{}) {
		words = append(words, nameOf(e.replaced.String())+" has to look")
	}
	return strings.Join(words, "; ")
}
