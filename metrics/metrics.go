// Package metrics holds every metric of the process and writes them in the
// Prometheus text format.
//
// Counts that change with every message are in a Worker. Only its event loop writes to
// them and only a scrape reads them, so the atomics are never contended. The scrape adds
// up the workers.
package metrics

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A Counter only goes up; a Gauge also comes down.
type (
	Counter struct{ n atomic.Uint64 }
	Gauge   struct{ n atomic.Int64 }
)

// Seconds is a gauge of a duration.
type Seconds struct{ d atomic.Int64 }

// Set sets the gauge.
func (s *Seconds) Set(d time.Duration) { s.d.Store(int64(d)) }

// Load returns the value in seconds.
func (s *Seconds) Load() float64 { return time.Duration(s.d.Load()).Seconds() }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Load is the value now.
func (c *Counter) Load() uint64 { return c.n.Load() }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Load is the value now.
func (g *Gauge) Load() int64 { return g.n.Load() }

// A Worker is the counts of one event loop.
type Worker struct {
	// Messages, and connections.
	Messages   Counter
	Heartbeats Counter
	HandedOver Counter // connections that another process has taken over
	Adopted    Counter // connections taken over from another process
	Active     Gauge   // connections upgraded and not yet closed

	Handshakes []Counter // by the index of Labels.Handshakes
	Closes     []Counter // by the index of Labels.Closes

	// Calls, and bytes.
	ReadCalls  Counter
	WriteCalls Counter
	BytesIn    Counter
	BytesOut   Counter
	Backlog    Gauge // bytes of answers that wait for a socket or for the store

	CompressSaved Counter // bytes by which compression has made answers shorter

	// Times.
	MessageLatency *metrics.PrometheusHistogram
	LoopLatency    *metrics.PrometheusHistogram

	_ [64]byte // keeps another worker's counters off the last cache line
}

// Labels are the values of the metrics' labels. They come from enums in the code,
// never from input.
type Labels struct {
	Handshakes []Label  // how a handshake can end
	Closes     []Label  // why a connection can close
	Refusals   []string // why a handover can be refused
}

// A Label is one value of an enum. A value that is an error also counts in
// websocket_errors_total.
type Label struct {
	Value   string
	IsError bool
}

// Sources are values that other parts of the process know. A scrape calls the funcs,
// from any goroutine.
type Sources struct {
	Sessions        func() int    // how many this process knows
	SessionsEvicted func() uint64 // nil unless the store is embedded
	SessionsExpired func() uint64 // nil unless the store is embedded
	MaxConnections  int
	Revision        string // the source revision that the process was built from
	Ready           func() bool
	ShutdownTime    func() time.Duration
	LogDropped      func() uint64
}

// Metrics is all metrics of the process.
type Metrics struct {
	Workers  []*Worker
	Duration *metrics.PrometheusHistogram // of closed connections, in seconds
	Accepted Counter                      // sockets that were accepted
	Dropped  Counter                      // sockets beyond a limit, closed without an answer
	Paused   Counter                      // times that accepting paused, because no file descriptors were left

	HandoverPause    *metrics.PrometheusHistogram // of each connection taken over, in seconds
	HandoverTime     Seconds                      // of the last handover, on either side
	HandoverRefusals []Counter                    // by the index of Labels.Refusals

	labels  Labels
	sources Sources
	store   *Store // nil if the store is embedded
	set     *metrics.Set
	files   *openFiles

	pageBytes atomic.Int64 // how long the last page was, before its HELP texts
}

// The upper bounds of the histograms' buckets, in seconds.
var (
	latencyBuckets  = []float64{10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1}
	durationBuckets = []float64{0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600}
)

// New returns the metrics of a process with n workers.
func New(n int, labels Labels, sources Sources) *Metrics {
	metrics.ExposeMetadata(true)
	m := &Metrics{labels: labels, sources: sources, set: metrics.NewSet(), files: newOpenFiles()}
	m.HandoverPause = m.set.NewPrometheusHistogramExt("websocket_handover_pause_seconds", latencyBuckets)
	m.HandoverRefusals = make([]Counter, len(labels.Refusals))
	m.Duration = m.set.NewPrometheusHistogramExt("websocket_connection_duration_seconds", durationBuckets)
	for i := range n {
		m.Workers = append(m.Workers, &Worker{
			Handshakes:     make([]Counter, len(labels.Handshakes)),
			Closes:         make([]Counter, len(labels.Closes)),
			MessageLatency: m.set.NewPrometheusHistogramExt(fmt.Sprintf(`websocket_message_latency_seconds{worker="%d"}`, i), latencyBuckets),
			LoopLatency:    m.set.NewPrometheusHistogramExt(fmt.Sprintf(`websocket_loop_latency_seconds{worker="%d"}`, i), latencyBuckets),
		})
	}
	return m
}
