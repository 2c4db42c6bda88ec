package metrics

import (
	"bytes"
	"fmt"
	"io"

	"github.com/VictoriaMetrics/metrics"
)

// help is the HELP text of each metric of ours. A test keeps it complete.
var help = map[string]string{
	"websocket_active_connections":           "Connections that are upgraded and not yet closed.",
	"websocket_messages_total":               "Messages counted and echoed.",
	"websocket_errors_total":                 "Connections that were refused, or ended, because of an error.",
	"websocket_connection_duration_seconds":  "How long connections lived, from their upgrade to their close.",
	"websocket_shutdown_time_seconds":        "How long the graceful shutdown has taken so far, 0 before it.",
	"websocket_handshakes_total":             "Requests to upgrade, by result.",
	"websocket_closes_total":                 "Upgraded connections that were closed, by reason.",
	"websocket_heartbeats_total":             "Heartbeats sent.",
	"websocket_handed_over_total":            "Connections that another process has taken over.",
	"websocket_adopted_total":                "Connections taken over from another process.",
	"websocket_handover_pause_seconds":       "How long no process served a connection, while this process took it over.",
	"websocket_handover_seconds":             "How long the last handover took, on either side; 0 before the first.",
	"websocket_handover_refusals_total":      "Handovers that this process refused, or was refused, by reason.",
	"websocket_bytes_in_total":               "Bytes read from clients, framing included.",
	"websocket_bytes_out_total":              "Bytes written to clients, framing included.",
	"websocket_compress_saved_bytes_total":   "Bytes by which compression has made answers shorter.",
	"websocket_read_calls_total":             "read(2) calls on client sockets.",
	"websocket_write_calls_total":            "write(2) calls on client sockets.",
	"websocket_message_latency_seconds":      "Time from reading a message to writing its reply, by worker.",
	"websocket_loop_latency_seconds":         "How late the ticks of the event loop came, by worker. A ready socket may wait that long.",
	"websocket_backlog_bytes":                "Bytes of answers that wait for a client's socket or for the store.",
	"websocket_sessions":                     "Sessions that this process knows: with Redis, the connected ones.",
	"websocket_sessions_evicted_total":       "Disconnected sessions that the store forgot early, because it was full.",
	"websocket_sessions_expired_total":       "Disconnected sessions that the store forgot after -session-ttl.",
	"websocket_accepted_total":               "Sockets accepted, plain HTTP included.",
	"websocket_accept_dropped_total":         "Sockets beyond a limit that were closed without an answer, since newer ones needed the place.",
	"websocket_accept_paused_total":          "Times that accepting paused, because no file descriptors were left.",
	"websocket_log_dropped_total":            "Lines of the log that were dropped: its reader was too slow, stood still or was gone.",
	"websocket_max_connections":              "How many sockets are served at once at the most.",
	"websocket_build_info":                   "Always 1. The label is the source revision that the process was built from.",
	"websocket_ready":                        "1 while the instance accepts new connections, else 0.",
	"websocket_worker_connections":           "Upgraded connections of each worker.",
	"websocket_store_batch_sessions":         "Sessions in one pipeline of commands to Redis.",
	"websocket_store_commit_latency_seconds": "Time from asking Redis to store a count until the result is known.",
	"websocket_store_commits_total":          "Counts that were to be stored, by result.",
	"websocket_store_claims_total":           "Sessions that clients asked for by ID, by result.",
	"websocket_store_errors_total":           "Errors in the exchange with Redis, by kind.",
	"websocket_store_takeovers_total":        "Connections that lost their session to another instance: told, or fenced at their next count.",
	"websocket_store_queue_sessions":         "Sessions with something to store: queued, or on its way to Redis.",
	"websocket_store_available":              "1 while every node of Redis has answered within -store-timeout, else 0.",
	"websocket_store_node_available":         "1 while the node has answered within -store-timeout, else 0; kind is its error.",
	"websocket_store_last_success_seconds":   "How long ago Redis last answered.",
}

// Write writes everything in the Prometheus text format.
func (m *Metrics) Write(out io.Writer) {
	var page bytes.Buffer
	page.Grow(int(m.pageBytes.Load()))
	m.writeSums(&page)
	m.writeLabelled(&page)
	m.writeSources(&page)
	if m.store != nil {
		m.store.write(&page)
	}
	m.set.WritePrometheus(&page)
	metrics.WriteProcessMetrics(&page)
	m.files.write(&page)
	m.pageBytes.Store(int64(page.Len()))
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
	counter("websocket_compress_saved_bytes_total", func(w *Worker) *Counter { return &w.CompressSaved })

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
	metrics.WriteCounterUint64(out, "websocket_log_dropped_total", s.LogDropped())
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
	out := make([]byte, 0, 2*len(page))
	for line := range bytes.Lines(page) {
		name, ok := bytes.CutPrefix(line, []byte("# HELP "))
		if !ok {
			out = append(out, line...)
			continue
		}
		text, ours := help[string(bytes.TrimSpace(name))]
		if !ours {
			text = "See the Go runtime's or the kernel's documentation (proc(5))."
		}
		out = append(append(out, bytes.TrimRight(line, " \n")...), ' ')
		out = append(append(out, text...), '\n')
	}
	return out
}
