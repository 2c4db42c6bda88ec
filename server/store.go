package main

import (
	"time"

	"turnstile/netpoll"
	"turnstile/server/session"
)

// openMemory opens the embedded store.
func (s *server) openMemory() {
	s.memory = session.NewMemory(session.MemoryConfig{TTL: s.config.SessionTTL, Max: s.config.MaxSessions, Timeout: s.config.StoreTimeout, Now: netpoll.Monotonic})
	s.store = s.memory
}

// openRedis opens the store in Redis. It connects in the background: until that
// is done, the server is not ready.
func (s *server) openRedis() {
	s.store = session.NewRedis(session.RedisConfig{
		Address: s.config.Redis, TTL: s.config.SessionTTL, Timeout: s.config.StoreTimeout, Max: s.config.MaxSessions, Now: netpoll.Monotonic,
		Metrics: s.metrics.NewStore(session.MetricLabels(), netpoll.Monotonic),
		OnTrouble: func(node string, err error) {
			s.log.Error().Err(err).Str("redis", node).Msg("store_unavailable")
		},
		OnRecovered: func(node string, after time.Duration) {
			s.log.Info().Str("redis", node).Int64("duration_ms", after.Milliseconds()).Msg("store_available")
		},
	})
}

// A sweeper forgets sessions whose time is over, once a second, on the
// acceptor's loop.
type sweeper struct {
	server *server
	timer  netpoll.Timer
}

func (w *sweeper) start() {
	w.timer.Owner = w
	w.OnTimer()
}

// OnTimer implements netpoll.Expirer.
func (w *sweeper) OnTimer() {
	w.server.memory.Expire()
	loop := w.server.acceptor.loop
	loop.Schedule(&w.timer, loop.Now()+time.Second)
}
