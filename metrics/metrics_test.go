package metrics

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A family is a metric as the text format groups it.
type family struct {
	help, kind string
	samples    []sample
}

type sample struct {
	name, labels string // labels as written, with their braces
	value        float64
}

// A page is what Write wrote, taken apart.
type page map[string]*family

var (
	// https://prometheus.io/docs/instrumenting/exposition_formats/
	helpLine   = regexp.MustCompile(`^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (\S.*)$`)
	typeLine   = regexp.MustCompile(`^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)` +
		`(\{[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*"(?:, ?[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*")*\})? (\S+)$`)
)

// parse holds text to the format: each family once and in one piece, first its
// help, then its type, then its samples, no two of them the same series.
func parse(t testing.TB, text string) page {
	t.Helper()
	p := make(page)
	current, series := "", make(map[string]bool)
	if !strings.HasSuffix(text, "\n") {
		t.Error("the last line has no end")
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := helpLine.FindStringSubmatch(line); m != nil {
			if current = m[1]; p[current] != nil {
				t.Errorf("twice: %s", line)
			}
			p[current] = &family{help: m[2]}
		} else if m := typeLine.FindStringSubmatch(line); m != nil {
			if m[1] != current || p[current].kind != "" || len(p[current].samples) > 0 {
				t.Errorf("not right behind its help: %s", line)
				continue
			}
			p[current].kind = m[2]
		} else if m := sampleLine.FindStringSubmatch(line); m != nil {
			value, err := strconv.ParseFloat(m[3], 64)
			if err != nil || p[current] == nil || !belongs(m[1], current, p[current].kind) || series[m[1]+m[2]] {
				t.Errorf("not a number, not in its family, or twice: %s", line)
				continue
			}
			series[m[1]+m[2]] = true
			p[current].samples = append(p[current].samples, sample{m[1], m[2], value})
		} else {
			t.Errorf("not of the format: %q", line)
		}
	}
	return p
}

// belongs reports whether a sample of this name is part of a family.
func belongs(name, family, kind string) bool {
	suffix, ok := strings.CutPrefix(name, family)
	switch kind {
	case "counter", "gauge", "untyped":
		return ok && suffix == ""
	case "histogram":
		return ok && (suffix == "_bucket" || suffix == "_sum" || suffix == "_count")
	case "summary":
		return ok && (suffix == "" || suffix == "_sum" || suffix == "_count")
	}
	return false // no type before the sample
}

// value is the one sample of a series such as name{label="value"}.
func (p page) value(t testing.TB, series string) float64 {
	t.Helper()
	name, _, _ := strings.Cut(series, "{")
	for _, f := range p {
		for _, s := range f.samples {
			if s.name == name && s.name+s.labels == series {
				return s.value
			}
		}
	}
	t.Errorf("no sample of %s", series)
	return math.NaN()
}

func (p page) want(t testing.TB, series string, want float64) {
	t.Helper()
	if got := p.value(t, series); got != want {
		t.Errorf("%s is %v, want %v", series, got, want)
	}
}

var testLabels = Labels{
	Handshakes: []Label{{"upgraded", false}, {"bad_request", true}, {"abandoned", false}},
	Closes:     []Label{{"goodbye", false}, {"idle_timeout", true}, {"slow_consumer", true}},
	Refusals:   []string{"busy"},
}

func testSources() Sources {
	return Sources{
		Sessions:        func() int { return 11 },
		SessionsEvicted: func() uint64 { return 12 },
		SessionsExpired: func() uint64 { return 13 },
		MaxConnections:  14,
		Revision:        "abc-dirty",
		Ready:           func() bool { return true },
		ShutdownTime:    func() time.Duration { return 1500 * time.Millisecond },
		LogDropped:      func() uint64 { return 17 },
	}
}

func write(t testing.TB, m *Metrics) page {
	t.Helper()
	var out bytes.Buffer
	m.Write(&out)
	return parse(t, out.String())
}

func TestPageIsOfTheFormat(t *testing.T) {
	for _, workers := range []int{1, 3} {
		p := write(t, New(workers, testLabels, testSources()))
		for name, f := range p {
			if f.kind == "" || len(f.samples) == 0 {
				t.Errorf("%s is a %q of %d samples", name, f.kind, len(f.samples))
			}
			if strings.HasPrefix(name, "websocket_") && (f.kind == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("%s is a %s", name, f.kind)
			}
		}
		for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "process_open_fds"} {
			if p[name] == nil {
				t.Errorf("no %s", name)
			}
		}
	}
}

// TestParseFindsFaults: the checker above is only worth what it refuses.
func TestParseFindsFaults(t *testing.T) {
	f := func(what, text string) {
		t.Helper()
		recorder := &recorder{TB: t}
		parse(recorder, text)
		if recorder.faults == 0 {
			t.Errorf("not seen: %s", what)
		}
	}
	const a = "# HELP a Text.\n# TYPE a counter\n"
	f("no end of line", a+"a 1")
	f("no type", "# HELP a Text.\na 1\n")
	f("no help", "# TYPE a counter\na 1\n")
	f("empty help", "# HELP a\n# TYPE a counter\na 1\n")
	f("a type that is none", "# HELP a Text.\n# TYPE a number\na 1\n")
	f("a sample of no family", a+"a 1\nb 1\n")
	f("a family twice", a+"a 1\n"+a+"a{b=\"c\"} 1\n")
	f("a series twice", a+"a{b=\"c\"} 1\na{b=\"c\"} 2\n")
	f("a value that is none", a+"a one\n")
	f("a label without quotes", a+"a{b=c} 1\n")
	f("an empty line", a+"\na 1\n")
	parse(t, a+"a 1\na{b=\"c\"} NaN\na{b=\"d\",e=\"f\"} +Inf\n")
}

// A recorder counts errors instead of failing.
type recorder struct {
	testing.TB
	faults int
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.faults++ }
func (r *recorder) Error(...any)          { r.faults++ }

// TestEachMetricHasItsHelp holds the help texts to the metrics, both ways.
func TestEachMetricHasItsHelp(t *testing.T) {
	m := New(2, testLabels, testSources())
	available := false
	store := m.NewStore(StoreLabels{
		Commits: []string{"committed"}, Claims: []string{"resumed"}, Takeovers: []string{"told"}, Errors: []string{"timeout"}},
		func() time.Duration { return time.Hour })
	store.QueueLength, store.Available = func() int { return 0 }, func() bool { return available }
	store.Parts = func() []StorePart { return []StorePart{{"redis://host:6379", available, "timeout"}} }
	write(t, m).want(t, "websocket_store_available", 0)
	available = true
	p := write(t, m)
	p.want(t, "websocket_store_available", 1)
	for name, f := range p {
		if strings.HasPrefix(name, "websocket_") && help[name] == "" {
			t.Errorf("%s has no help text: %s", name, f.help)
		}
	}
	for name, text := range help {
		if p[name] == nil {
			t.Errorf("%s is explained but not written", name)
		} else if p[name].help != text || len(p[name].samples) == 0 {
			t.Errorf("%s: %q, %d samples", name, p[name].help, len(p[name].samples))
		}
	}
}

func TestWorkersAreAddedUp(t *testing.T) {
	m := New(3, testLabels, testSources())
	for i, w := range m.Workers {
		n := uint64(math.Pow10(i)) // 1, 10, 100: each is seen in the sum
		for k, c := range []*Counter{&w.Messages, &w.Heartbeats, &w.ReadCalls, &w.WriteCalls, &w.BytesIn, &w.BytesOut} {
			c.Add(n * uint64(k+1))
		}
		w.Messages.Inc()
		w.Active.Add(int64(8 * n))
		w.Active.Add(-int64(n))
		w.Backlog.Add(int64(8 * n))
		for k := range w.Handshakes {
			w.Handshakes[k].Add(n * uint64(k+1))
			w.Closes[k].Add(n * uint64(k+4))
		}
	}
	p := write(t, m)
	p.want(t, `websocket_messages_total`, 111+3)
	p.want(t, `websocket_heartbeats_total`, 222)
	p.want(t, `websocket_read_calls_total`, 333)
	p.want(t, `websocket_write_calls_total`, 444)
	p.want(t, `websocket_bytes_in_total`, 555)
	p.want(t, `websocket_bytes_out_total`, 666)
	p.want(t, `websocket_active_connections`, 777)
	p.want(t, `websocket_backlog_bytes`, 888)
	p.want(t, `websocket_worker_connections{worker="0"}`, 7)
	p.want(t, `websocket_worker_connections{worker="2"}`, 700)
	p.want(t, `websocket_handshakes_total{result="upgraded"}`, 111)
	p.want(t, `websocket_handshakes_total{result="bad_request"}`, 222)
	p.want(t, `websocket_closes_total{reason="goodbye"}`, 444)
	p.want(t, `websocket_closes_total{reason="slow_consumer"}`, 666)
	p.want(t, `websocket_errors_total{error_type="bad_request"}`, 222)
	p.want(t, `websocket_errors_total{error_type="slow_consumer"}`, 666)
}

// TestEveryLabelIsThereFromTheStart: a series that begins with its first event
// has no rate for it. The errors are those labels that are errors, no others.
func TestEveryLabelIsThereFromTheStart(t *testing.T) {
	p := write(t, New(2, testLabels, testSources()))
	f := func(name, label string, values ...string) {
		t.Helper()
		var got, want []string
		for _, s := range p[name].samples {
			got = append(got, s.labels)
			if s.value != 0 {
				t.Errorf("%s%s is %v at the start", name, s.labels, s.value)
			}
		}
		for _, value := range values {
			want = append(want, fmt.Sprintf("{%s=%q}", label, value))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", name, got, want)
		}
	}
	f("websocket_handshakes_total", "result", "upgraded", "bad_request", "abandoned")
	f("websocket_closes_total", "reason", "goodbye", "idle_timeout", "slow_consumer")
	f("websocket_errors_total", "error_type", "bad_request", "idle_timeout", "slow_consumer")
	f("websocket_worker_connections", "worker", "0", "1")
}

func TestSourcesAreAsked(t *testing.T) {
	sources := testSources()
	ready := false
	sources.Ready = func() bool { return ready }
	m := New(1, testLabels, sources)
	m.Accepted.Add(15)
	m.Paused.Inc()
	p := write(t, m)
	p.want(t, "websocket_sessions", 11)
	p.want(t, "websocket_sessions_evicted_total", 12)
	p.want(t, "websocket_log_dropped_total", 17)
	p.want(t, "websocket_sessions_expired_total", 13)
	p.want(t, "websocket_max_connections", 14)
	p.want(t, "websocket_accepted_total", 15)
	p.want(t, "websocket_accept_paused_total", 1)
	p.want(t, "websocket_shutdown_time_seconds", 1.5)
	p.want(t, `websocket_build_info{revision="abc-dirty"}`, 1)
	p.want(t, "websocket_ready", 0)
	ready = true // asked at each scrape
	write(t, m).want(t, "websocket_ready", 1)
}

// TestGaugesBelowZero: a scrape may see a worker's minus before another's plus.
func TestGaugesBelowZero(t *testing.T) {
	m := New(1, testLabels, testSources())
	m.Workers[0].Active.Add(-1)
	m.Workers[0].Backlog.Add(-1)
	p := write(t, m)
	p.want(t, "websocket_active_connections", 0)
	p.want(t, "websocket_backlog_bytes", 0)
}

func TestHistograms(t *testing.T) {
	m := New(2, testLabels, testSources())
	observe := func(h interface{ Update(float64) }, values ...float64) []float64 {
		for _, v := range values {
			h.Update(v)
		}
		return values
	}
	latency := observe(m.Workers[1].MessageLatency, 0, latencyBuckets[0], 0.0625, 1, 64)
	late := observe(m.Workers[0].LoopLatency, 0.25, 0.5)
	lived := observe(m.Duration, 0.5, 4096, 1<<20)
	p := write(t, m)
	f := func(name, label string, bounds []float64, values ...float64) {
		t.Helper()
		if p[name] == nil || p[name].kind != "histogram" {
			t.Fatalf("%s is no histogram", name)
		}
		wantHistogram(t, p, name, label, bounds, values)
	}
	f("websocket_message_latency_seconds", `worker="0"`, latencyBuckets)
	f("websocket_message_latency_seconds", `worker="1"`, latencyBuckets, latency...)
	f("websocket_loop_latency_seconds", `worker="0"`, latencyBuckets, late...)
	f("websocket_connection_duration_seconds", "", durationBuckets, lived...)
}

// wantHistogram holds the histogram with a label to what it was given.
func wantHistogram(t testing.TB, p page, name, label string, bounds, values []float64) {
	t.Helper()
	les, counts := p[name].buckets(t, name+"_bucket", label)
	if !slices.Equal(les, append(slices.Clone(bounds), math.Inf(1))) {
		t.Errorf("%s has the buckets %v, want %v and +Inf", name, les, bounds)
	}
	sum, below := 0.0, make([]float64, len(les)) // buckets are cumulative
	for _, v := range values {
		sum += v
		for i, le := range les {
			if v <= le {
				below[i]++
			}
		}
	}
	if !slices.Equal(counts, below) {
		t.Errorf("%s{%s} counts %v, want %v", name, label, counts, below)
	}
	if label != "" {
		label = "{" + label + "}"
	}
	p.want(t, name+"_sum"+label, sum)
	p.want(t, name+"_count"+label, float64(len(values)))
}

// buckets are the bounds and counts of one histogram, in the order written.
func (f *family) buckets(t testing.TB, name, labels string) (les, counts []float64) {
	t.Helper()
	for _, s := range f.samples {
		rest, bound, ok := strings.Cut(strings.Trim(s.labels, "{}"), `le="`)
		if !ok || s.name != name || strings.TrimSuffix(rest, ",") != labels {
			continue
		}
		le, err := strconv.ParseFloat(strings.TrimSuffix(bound, `"`), 64)
		if err != nil {
			t.Errorf("bound %q: %v", bound, err)
		}
		les, counts = append(les, le), append(counts, s.value)
	}
	return les, counts
}

// TestScrapeWhileTheWorkersCount: what a scrape sees never goes back, and at
// the end all is there.
func TestScrapeWhileTheWorkersCount(t *testing.T) {
	const workers, messages = 4, 5000
	m := New(workers, testLabels, testSources())
	var wg sync.WaitGroup
	for _, w := range m.Workers {
		wg.Go(func() {
			for range messages {
				w.Messages.Inc()
				w.Closes[1].Inc()
				w.Active.Add(1)
				w.MessageLatency.Update(1)
			}
		})
	}
	seen := 0.0
	for range 5 {
		now := write(t, m).value(t, "websocket_messages_total")
		if now < seen {
			t.Errorf("%v messages after %v", now, seen)
		}
		seen = now
	}
	wg.Wait()
	p := write(t, m)
	for _, series := range []string{
		"websocket_messages_total", `websocket_errors_total{error_type="idle_timeout"}`, "websocket_active_connections"} {
		p.want(t, series, workers*messages)
	}
	p.want(t, `websocket_message_latency_seconds_count{worker="3"}`, messages)
}

// TestEachProcessHasItsOwn: two servers in one test process do not mix.
func TestEachProcessHasItsOwn(t *testing.T) {
	a, b := New(1, testLabels, testSources()), New(1, testLabels, testSources())
	a.Workers[0].Messages.Inc()
	a.Workers[0].LoopLatency.Update(1)
	p := write(t, b)
	p.want(t, "websocket_messages_total", 0)
	p.want(t, `websocket_loop_latency_seconds_count{worker="0"}`, 0)
	if !slices.Equal(slices.Sorted(maps.Keys(p)), slices.Sorted(maps.Keys(write(t, a)))) {
		t.Error("the pages have other families")
	}
}
