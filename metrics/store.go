package metrics

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A Store is the counts of a session store in Redis. Any goroutine may write to them.
type Store struct {
	// Counts and times.
	BatchSize     *metrics.PrometheusHistogram // sessions in one pipeline
	CommitLatency *metrics.PrometheusHistogram // from asking to the outcome, in seconds
	Commits       []Counter                    // by the index of StoreLabels.Commits
	Claims        []Counter                    // by the index of StoreLabels.Claims
	Errors        []Counter                    // by the index of StoreLabels.Errors
	Takeovers     []Counter                    // by the index of StoreLabels.Takeovers
	LastSuccess   atomic.Int64                 // time.Duration on the clock of Now

	// Fixed before the first scrape.
	QueueLength func() int
	Available   func() bool
	Parts       func() []StorePart
	Now         func() time.Duration
	labels      StoreLabels
}

// A StorePart is a node of Redis, or another part that the store needs.
type StorePart struct {
	Name      string // its address, from the configuration or from the cluster
	Available bool
	Error     string // the kind of error, one of StoreLabels.Errors; "" while it answers
}

// StoreLabels are the values of the labels of a Store's metrics.
type StoreLabels struct {
	Commits, Claims, Takeovers, Errors []string
}

var batchBuckets = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}

// NewStore adds the metrics of a session store.
func (m *Metrics) NewStore(labels StoreLabels, now func() time.Duration) *Store {
	m.store = &Store{
		BatchSize:     m.set.NewPrometheusHistogramExt("websocket_store_batch_sessions", batchBuckets),
		CommitLatency: m.set.NewPrometheusHistogramExt("websocket_store_commit_latency_seconds", latencyBuckets),
		Commits:       make([]Counter, len(labels.Commits)),
		Claims:        make([]Counter, len(labels.Claims)),
		Takeovers:     make([]Counter, len(labels.Takeovers)),
		Errors:        make([]Counter, len(labels.Errors)),
		Now:           now,
		labels:        labels,
	}
	return m.store
}

func (s *Store) write(out io.Writer) {
	writeStrings(out, "websocket_store_commits_total", "result", s.labels.Commits, s.Commits)
	writeStrings(out, "websocket_store_claims_total", "result", s.labels.Claims, s.Claims)
	writeStrings(out, "websocket_store_errors_total", "kind", s.labels.Errors, s.Errors)
	writeStrings(out, "websocket_store_takeovers_total", "result", s.labels.Takeovers, s.Takeovers)
	metrics.WriteGaugeUint64(out, "websocket_store_queue_sessions", uint64(s.QueueLength()))
	metrics.WriteGaugeUint64(out, "websocket_store_available", oneIf(s.Available()))
	metrics.WriteMetadataIfNeeded(out, "websocket_store_node_available", "gauge")
	for _, p := range s.Parts() {
		fmt.Fprintf(out, "websocket_store_node_available{node=%q,kind=%q} %d\n", p.Name, p.Error, oneIf(p.Available))
	}
	since := s.Now() - time.Duration(s.LastSuccess.Load())
	metrics.WriteGaugeFloat64(out, "websocket_store_last_success_seconds", max(since, 0).Seconds())
}
