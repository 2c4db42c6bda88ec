package engine

import (
	"fmt"
	"testing"
	"time"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// Of a message whose count is stored in Redis, nothing is left as garbage, as soon as commits
// go by the worker's own connection to Redis.
func TestMessageAllocatesNothingWithRedis(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const conns = 100
	h := startEngine(t, useRedis(t))
	var fds [conns]int
	for i := range fds {
		fds[i] = h.connect("/count")
	}
	message, end, buf := text("a message"), []byte(`"a message"}`), make([]byte, 4096)
	round := func() {
		for _, fd := range fds {
			writeAll(t, fd, message)
		}
		for _, fd := range fds {
			exchange(t, fd, nil, end, buf)
		}
	}
	eventually(t, "fifty rounds of messages allocate nothing", func() bool {
		allocations := testing.AllocsPerRun(50, round)
		t.Logf("%v allocations for %d messages", allocations, conns)
		return allocations == 0
	})
}

// useRedis has sessions in a Redis that the test starts. The store's clock stands still, so
// nothing is due but what is asked for.
func useRedis(t testing.TB) func(*Config) {
	address, err := session.ParseAddress(redistest.Start(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) {
		now := netpoll.Monotonic()
		standing := func() time.Duration { return now }
		var labels metrics.Labels
		labels.Handshakes, labels.Closes = Labels()
		none := func() uint64 { return 0 }
		c.Metrics = metrics.New(1, labels, metrics.Sources{
			Sessions: func() int { return c.Store.Len() }, Ready: func() bool { return true }, ShutdownTime: standing, LogDropped: none,
		})
		store := session.NewRedis(session.RedisConfig{
			Address: address, TTL: time.Hour, Timeout: patience, Max: 1000, Now: standing,
			Metrics:     c.Metrics.NewStore(session.MetricLabels(), standing),
			OnTrouble:   func(node string, kind fmt.Stringer, err error) { t.Errorf("%s: %v", kind, err) },
			OnRecovered: func(string, time.Duration) {},
			OnDamaged:   func(id session.ID, err error) { t.Errorf("%s: %v", id, err) },
		})
		c.Store = store
		eventually(t, "the store is available", store.Available)
	}
}
