package metrics

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/VictoriaMetrics/metrics"
)

// help is the HELP text of each metric of ours. A test keeps it complete.
var help = map[string]string{
	"websocket_active_connections":           "Connections that are upgraded and not yet closed.",
	"websocket_messages_total":               "Messages counted and echoed.",
	"websocket_errors_total":                 "Connections that ended, or were refused, by an error.",
	"websocket_connection_duration_seconds":  "How long connections lived, from their upgrade to their close.",
	"websocket_shutdown_time_seconds":        "How long the graceful shutdown has taken so far, 0 before it.",
	"websocket_handshakes_total":             "Requests to upgrade, by what became of them.",
	"websocket_closes_total":                 "Upgraded connections that were closed, by why.",
	"websocket_heartbeats_total":             "Heartbeats sent.",
	"websocket_handed_over_total":            "Connections that another process has taken over.",
	"websocket_adopted_total":                "Connections taken over from another process.",
	"websocket_handover_pause_seconds":       "For how long nobody served a connection while it was taken over; of those taken over by this process.",
	"websocket_handover_seconds":             "How long the last handover took, given or taken, 0 before it.",
	"websocket_handover_refusals_total":      "Handovers that this process has refused, or was refused, by why.",
	"websocket_bytes_in_total":               "Bytes read from clients, framing included.",
	"websocket_bytes_out_total":              "Bytes written to clients, framing included.",
	"websocket_read_calls_total":             "read(2) calls on client sockets.",
	"websocket_write_calls_total":            "write(2) calls on client sockets.",
	"websocket_message_latency_seconds":      "From a message's read to its reply's write, by worker.",
	"websocket_loop_latency_seconds":         "By how much the event loop's ticks came late: how long a ready socket may wait, by worker.",
	"websocket_backlog_bytes":                "Bytes held for clients whose sockets are full.",
	"websocket_sessions":                     "Sessions that this process knows: with Redis, the connected ones.",
	"websocket_sessions_evicted_total":       "Disconnected sessions dropped before their time because the store was full.",
	"websocket_sessions_expired_total":       "Disconnected sessions forgotten at the end of their time.",
	"websocket_accepted_total":               "Sockets accepted, plain HTTP included.",
	"websocket_accept_dropped_total":         "Sockets closed without a word, because too many others waited to be refused.",
	"websocket_accept_paused_total":          "Times that accepting paused because file descriptors had run out.",
	"websocket_max_connections":              "The limit on sockets that are served at once.",
	"websocket_build_info":                   "Always 1; its label says which revision of the source the process was built from.",
	"websocket_ready":                        "1 while the instance takes new connections, else 0.",
	"websocket_worker_connections":           "Upgraded connections of each worker.",
	"websocket_store_batch_sessions":         "Sessions whose commands went to Redis in one pipeline.",
	"websocket_store_commit_latency_seconds": "From when a count was to be stored to when it was.",
	"websocket_store_commits_total":          "Counts that were to be stored, by what became of it.",
	"websocket_store_claims_total":           "Sessions that clients asked for by their ID, by what became of it.",
	"websocket_store_errors_total":           "What kept Redis from doing what it was asked.",
	"websocket_store_takeovers_total":        "Connections of this instance that lost their session to another one: told while they were silent, or fenced when they counted.",
	"websocket_store_queue_sessions":         "Sessions that have something to be stored, or on its way.",
	"websocket_store_available":              "1 while every node of Redis has answered within -store-timeout, else 0.",
	"websocket_store_last_success_seconds":   "How long ago Redis last answered.",
}

// Write writes everything in the Prometheus text format.
func (m *Metrics) Write(out io.Writer) {
	var page bytes.Buffer
	m.writeSums(&page)
	m.writeLabelled(&page)
	m.writeSources(&page)
	if m.store != nil {
		m.store.write(&page)
	}
	m.set.WritePrometheus(&page)
	metrics.WriteProcessMetrics(&page)
	metrics.WriteFDMetrics(&page)
	out.Write(withHelp(page.Bytes()))
}

func (m *Metrics) writeSums(out io.Writer) {
	counter := func(name string, of func(*Worker) *Counter) {
		var sum uint64
		for _, w := range m.Workers {
			sum += of(w).Load()
		}
		metrics.WriteCounterUint64(out, name, sum)
	}
	counter("websocket_messages_total", func(w *Worker) *Counter { return &w.Messages })
	counter("websocket_heartbeats_total", func(w *Worker) *Counter { return &w.Heartbeats })
	counter("websocket_handed_over_total", func(w *Worker) *Counter { return &w.HandedOver })
	counter("websocket_adopted_total", func(w *Worker) *Counter { return &w.Adopted })
	counter("websocket_read_calls_total", func(w *Worker) *Counter { return &w.ReadCalls })
	counter("websocket_write_calls_total", func(w *Worker) *Counter { return &w.WriteCalls })
	counter("websocket_bytes_in_total", func(w *Worker) *Counter { return &w.BytesIn })
	counter("websocket_bytes_out_total", func(w *Worker) *Counter { return &w.BytesOut })

	var active, backlog int64
	for _, w := range m.Workers {
		active += w.Active.Load()
		backlog += w.Backlog.Load()
	}
	metrics.WriteGaugeUint64(out, "websocket_active_connections", uint64(max(active, 0)))
	metrics.WriteGaugeUint64(out, "websocket_backlog_bytes", uint64(max(backlog, 0)))
}

// writeLabelled writes the counters that have a label. Every value is there
// from the start, at 0, so that the first one already makes a rate.
func (m *Metrics) writeLabelled(out io.Writer) {
	handshakes := m.sum(len(m.labels.Handshakes), func(w *Worker) []Counter { return w.Handshakes })
	closes := m.sum(len(m.labels.Closes), func(w *Worker) []Counter { return w.Closes })
	all := func(Label) bool { return true }
	begin := func(name string) { metrics.WriteMetadataIfNeeded(out, name, "counter") }
	begin("websocket_handshakes_total")
	writeFamily(out, `websocket_handshakes_total{result=%q} %d`, m.labels.Handshakes, handshakes, all)
	begin("websocket_closes_total")
	writeFamily(out, `websocket_closes_total{reason=%q} %d`, m.labels.Closes, closes, all)

	errors := func(l Label) bool { return l.IsError }
	begin("websocket_errors_total")
	writeFamily(out, `websocket_errors_total{error_type=%q} %d`, m.labels.Handshakes, handshakes, errors)
	writeFamily(out, `websocket_errors_total{error_type=%q} %d`, m.labels.Closes, closes, errors)

	writeStrings(out, "websocket_handover_refusals_total", "reason", m.labels.Refusals, m.HandoverRefusals)

	metrics.WriteMetadataIfNeeded(out, "websocket_worker_connections", "gauge")
	for i, w := range m.Workers {
		fmt.Fprintf(out, "websocket_worker_connections{worker=\"%d\"} %d\n", i, w.Active.Load())
	}
}

func (m *Metrics) sum(n int, of func(*Worker) []Counter) []uint64 {
	sums := make([]uint64, n)
	for _, w := range m.Workers {
		for i := range sums {
			sums[i] += of(w)[i].Load()
		}
	}
	return sums
}

func writeFamily(out io.Writer, format string, labels []Label, counts []uint64, of func(Label) bool) {
	for i, label := range labels {
		if of(label) {
			fmt.Fprintf(out, format+"\n", label.Value, counts[i])
		}
	}
}

// writeStrings writes a family whose label's values are plain words.
func writeStrings(out io.Writer, name, label string, values []string, counts []Counter) {
	metrics.WriteMetadataIfNeeded(out, name, "counter")
	for i, value := range values {
		fmt.Fprintf(out, "%s{%s=%q} %d\n", name, label, value, counts[i].Load())
	}
}

func (m *Metrics) writeSources(out io.Writer) {
	s := m.sources
	metrics.WriteCounterUint64(out, "websocket_accepted_total", m.Accepted.Load())
	metrics.WriteCounterUint64(out, "websocket_accept_dropped_total", m.Dropped.Load())
	metrics.WriteCounterUint64(out, "websocket_accept_paused_total", m.Paused.Load())
	metrics.WriteGaugeUint64(out, "websocket_max_connections", uint64(s.MaxConnections))
	metrics.WriteGaugeUint64(out, "websocket_ready", oneIf(s.Ready()))
	metrics.WriteGaugeUint64(out, "websocket_sessions", uint64(s.Sessions()))
	if s.SessionsEvicted != nil {
		metrics.WriteCounterUint64(out, "websocket_sessions_evicted_total", s.SessionsEvicted())
		metrics.WriteCounterUint64(out, "websocket_sessions_expired_total", s.SessionsExpired())
	}
	metrics.WriteGaugeFloat64(out, "websocket_handover_seconds", m.HandoverTime.Load())
	metrics.WriteGaugeFloat64(out, "websocket_shutdown_time_seconds", s.ShutdownTime().Seconds())
	metrics.WriteMetadataIfNeeded(out, "websocket_build_info", "gauge")
	fmt.Fprintf(out, "websocket_build_info{revision=%q} 1\n", s.Revision)
}

func oneIf(condition bool) uint64 {
	if condition {
		return 1
	}
	return 0
}

// withHelp fills in the HELP texts, which the library leaves empty.
func withHelp(page []byte) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "# HELP "); ok {
			name = strings.TrimSpace(name)
			text, ours := help[name]
			if !ours {
				text = "See the Go runtime's or the kernel's documentation (proc(5))."
			}
			line = "# HELP " + name + " " + text + "\n"
		}
		out.WriteString(line)
	}
	return out.Bytes()
}
