package engine

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

// Of a message whose count is stored in Redis, nothing is left as garbage: in the loop, in
// the store's goroutine, and on the way between them. go-redis makes some for each
// pipeline, which has the commits of many connections.
func TestMessageAllocatesNothingWithRedis(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const conns, ofGoRedis = 100, 2
	h := startEngine(t, useRedis(t))
	var fds [conns]int
	for i := range fds {
		fds[i] = h.connect("/count")
	}
	message, end, buf := text("a message"), []byte(`"a message"}`), make([]byte, 4096)
	runs := 0
	round := func() {
		runs++
		for _, fd := range fds {
			writeAll(t, fd, message)
		}
		for _, fd := range fds {
			exchange(t, fd, nil, end, buf)
		}
	}
	for range 20 { // queues and free lists get their sizes
		round()
	}
	runs = 0
	before := h.pipelines()
	allocations := testing.AllocsPerRun(50, round)
	pipelines := float64(h.pipelines()-before) / float64(runs)
	t.Logf("%v allocations for %d messages in %v pipelines", allocations, conns, pipelines)
	// One for every other message is more than what comes with time, and less than one for each.
	if allocations > ofGoRedis*pipelines+conns/2 {
		t.Errorf("%v allocations for %d messages in %v pipelines, want %d for each pipeline", allocations, conns, pipelines, ofGoRedis)
	}
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
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := store.Close(ctx); err != nil {
				t.Error(err)
			}
		})
		c.Store = store
		eventually(t, "the store is available", store.Available)
	}
}

// pipelines is how many the store has sent.
func (h *harness) pipelines() int {
	var page bytes.Buffer
	h.engine.config.Metrics.Write(&page)
	count := regexp.MustCompile(`(?m)^websocket_store_batch_sessions_count (\d+)$`).FindSubmatch(page.Bytes())
	n, err := strconv.Atoi(string(count[1]))
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}
