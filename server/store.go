package main

import (
	"fmt"
	"time"

	"turnstile/netpoll"
	"turnstile/server/session"
)

// openMemory opens the embedded store.
func (s *server) openMemory() {
	s.memory = session.NewMemory(session.MemoryConfig{
		TTL: s.config.SessionTTL, Max: s.config.MaxSessions, Timeout: s.config.StoreTimeout, Now: netpoll.Monotonic})
	s.store = s.memory
}

// openRedis opens the store in Redis. It connects in the background: until that
// is done, the server is not ready.
func (s *server) openRedis() {
	s.store = session.NewRedis(session.RedisConfig{
		Address: s.config.Redis, TTL: s.config.SessionTTL, Timeout: s.config.StoreTimeout, Max: s.config.MaxSessions, Now: netpoll.Monotonic,
		Metrics: s.metrics.NewStore(session.MetricLabels(), netpoll.Monotonic),
		OnTrouble: func(node string, kind fmt.Stringer, err error) {
			s.log.Error().Err(err).Str("redis", node).Stringer("kind", kind).Msg("store_unavailable")
		},
		OnRecovered: func(node string, after time.Duration) {
			s.log.Info().Str("redis", node).Int64("duration_ms", after.Milliseconds()).Msg("store_available")
		},
		OnLaneTrouble: func(node string, kind fmt.Stringer, err error) {
			s.log.Warn().Err(err).Str("redis", node).Stringer("kind", kind).Msg("store_lane_failed")
		},
		OnDamaged: func(id session.ID, err error) {
			s.log.Error().Err(err).Stringer("session_id", id).Msg("session_damaged")
		},
	})
}
