package main

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"turnstile/server/redistest"
)

// startBenchRedis runs a redis-server as an operator would for sessions, and
// returns the flags of a server that uses it.
func startBenchRedis(b *testing.B) (*redistest.Server, []string) {
	redis := redistest.Start(b, "--appendonly", "yes", "--appendfsync", "everysec")
	return redis, []string{"-redis", redis.URL()}
}

// BenchmarkStores is BenchmarkMessages with the sessions in the process, and in
// a Redis beside it.
func BenchmarkStores(b *testing.B) {
	for _, load := range []struct{ conns, inFlight int }{{100, 16}, {10_000, 1}} {
		for _, store := range []string{"memory", "redis"} {
			b.Run(fmt.Sprintf("conns=%d/inflight=%d/store=%s", load.conns, load.inFlight, store), func(b *testing.B) {
				var flags []string
				if store == "redis" {
					_, flags = startBenchRedis(b)
				}
				benchmarkMessages(b, load.conns, load.inFlight, flags...)
			})
		}
	}
}

// BenchmarkRedisRate sends 2,000 messages a second over 10,000 connections, for
// b.N messages, and reports how long replies take from when their message was
// due.
func BenchmarkRedisRate(b *testing.B) {
	const conns, every = 10_000, 500 * time.Microsecond
	_, flags := startBenchRedis(b)
	p := startServer(b, flags...)
	p.waitReady()
	s := newSwarm(b, 2)
	sent := make(map[*swarmClient]*atomic.Int64)
	latencies := make(chan time.Duration, b.N)
	var began time.Time
	s.connectAll(p, conns, onCount(func(c *swarmClient) { latencies <- time.Since(began) - time.Duration(sent[c].Load()) }))
	for _, c := range s.clients {
		sent[c] = new(atomic.Int64)
	}
	b.ResetTimer()
	began = time.Now()
	for i := range b.N {
		due := time.Duration(i) * every
		time.Sleep(due - time.Since(began)) // the rate is what is measured
		c := s.clients[i%conns]
		sent[c].Store(int64(due))
		c.loop.Post(func() { c.write(text("a message of thirty-two bytes....")) })
	}
	all := make([]time.Duration, b.N)
	for i := range all {
		all[i] = <-latencies
	}
	b.StopTimer()
	s.check()
	slices.Sort(all)
	for _, percent := range []float64{50, 99, 99.9} {
		b.ReportMetric(float64(all[int(float64(len(all)-1)*percent/100)].Microseconds())/1000, fmt.Sprintf("p%v-ms", percent))
	}
}

// BenchmarkRedisResume cuts 10,000 clients, and has them all come back with their
// sessions at once, each with a message; to the embedded store beside. It reports the CPU of
// the server and of the Redis for one of them.
func BenchmarkRedisResume(b *testing.B) {
	for _, store := range []string{"memory", "redis"} {
		b.Run("store="+store, func(b *testing.B) {
			var flags []string
			var redis *redistest.Server
			if store == "redis" {
				redis, flags = startBenchRedis(b)
			}
			benchmarkResume(b, redis, flags...)
		})
	}
}

func benchmarkResume(b *testing.B, redis *redistest.Server, flags ...string) {
	const conns = 10_000
	p := startServer(b, flags...)
	p.waitReady()
	var ofServer, ofRedis time.Duration
	for b.Loop() {
		b.StopTimer()
		s := newSwarm(b, 2)
		var replies atomic.Int64
		s.connectAll(p, conns, onCount(func(*swarmClient) { replies.Add(1) }))
		for _, c := range s.clients {
			c.loop.Post(func() { c.write(text("one")) })
		}
		s.until("a reply each", func() bool { return replies.Load() == conns })
		sessions := s.leaveAll()
		replies.Store(0)
		ofServer -= totalCPU(b, p.cmd.Process.Pid)
		if redis != nil {
			ofRedis -= totalCPU(b, redis.PID())
		}
		b.StartTimer()
		for _, session := range sessions {
			s.dial(p.addr, "/ws/chat/?session_id="+session, func(c *swarmClient) {
				c.count, c.session = 1, session
				c.onOpen = func(c *swarmClient) { c.write(text("two")) }
				c.onMessage = onCount(func(*swarmClient) { replies.Add(1) })
			})
		}
		s.until("a reply each", func() bool { return replies.Load() == conns })
		b.StopTimer()
		ofServer += totalCPU(b, p.cmd.Process.Pid)
		if redis != nil {
			ofRedis += totalCPU(b, redis.PID())
		}
		s.close()
		b.StartTimer()
	}
	b.ReportMetric(float64(ofServer.Microseconds())/float64(conns*b.N), "server-µs/resume")
	b.ReportMetric(float64(ofRedis.Microseconds())/float64(conns*b.N), "redis-µs/resume")
}

func totalCPU(t testing.TB, pid int) time.Duration {
	user, system := cpuTime(t, pid)
	return user + system
}
