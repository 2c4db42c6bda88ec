package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A report is all that was measured in one run: report.json.
type report struct {
	Name      string    `json:"name"`
	URL       string    `json:"url"`
	Command   string    `json:"command,omitempty"`
	When      time.Time `json:"when"`
	Machine   machine   `json:"machine"`
	Options   *options  `json:"options"`
	Note      string    `json:"note,omitempty"` // what is odd about the server
	Parts     []*part   `json:"parts"`
	Cut       bool      `json:"cut,omitempty"`    // the run was ended before its time
	Failed    string    `json:"failed,omitempty"` // why it could not go on
	FellShort []string  `json:"fell_short,omitempty"`
}

// A part is one scenario's.
type part struct {
	Name    string           `json:"name"`
	Seconds float64          `json:"seconds"`
	Figures []figure         `json:"figures"`
	Latency *curve           `json:"latency,omitempty"`
	Series  []sample         `json:"series,omitempty"`
	Errors  map[string]int64 `json:"errors,omitempty"`
	Limits  []string         `json:"limits,omitempty"` // what was measured beside the server
}

// A figure is one number, and what it is held to.
type figure struct {
	Name   string   `json:"name"`
	Unit   string   `json:"unit"`
	Value  float64  `json:"value"`
	Least  *float64 `json:"least,omitempty"`
	Most   *float64 `json:"most,omitempty"`
	Better string   `json:"better,omitempty"` // "less" or "more", for comparisons
	Note   string   `json:"note,omitempty"`   // why there is no value
}

// OK reports whether the figure is what it is held to.
func (f figure) OK() bool {
	held := f.Least != nil || f.Most != nil
	return (f.Note == "" || !held) && (f.Least == nil || f.Value >= *f.Least) && (f.Most == nil || f.Value <= *f.Most)
}

// Shown is the value as a reader sees it.
func (f figure) Shown() string {
	if f.Note != "" {
		return f.Note
	}
	return number(f.Value)
}

// Verdict says what the figure is held to.
func (f figure) Verdict() string {
	switch {
	case f.Least != nil:
		return "at least " + number(*f.Least)
	case f.Most != nil:
		return "at most " + number(*f.Most)
	}
	return ""
}

// A curve is latency by percentile, in milliseconds.
type curve struct {
	What   string       `json:"what"`
	Count  int64        `json:"count"`
	Points [][2]float64 `json:"points"` // percentile, milliseconds
}

// A sample is one moment of a scenario.
type sample struct {
	At          float64 `json:"at"` // seconds since its begin
	Connections int64   `json:"connections"`
	Rate        float64 `json:"rate"`      // answers a second
	Resident    int64   `json:"resident"`  // bytes, of the server
	ServerCPU   float64 `json:"server"`    // processors
	BenchCPU    float64 `json:"generator"` // processors
}

func newPart(name string) *part { return &part{Name: name, Errors: make(map[string]int64)} }

// mostFrequentError is the error that came most often.
func (p *part) mostFrequentError() (what string) {
	for _, error := range slices.Sorted(maps.Keys(p.Errors)) {
		if p.Errors[error] > p.Errors[what] {
			what = error
		}
	}
	return what
}

func (p *part) add(name, unit, better string, value float64) *figure {
	p.Figures = append(p.Figures, figure{Name: name, Unit: unit, Better: better, Value: value})
	return &p.Figures[len(p.Figures)-1]
}

// addLatency adds the percentiles of a histogram in microseconds.
func (p *part) addLatency(what string, h *Histogram) {
	if h.TotalCount() == 0 {
		return
	}
	milliseconds := func(us int64) float64 { return float64(us) / 1000 }
	p.Latency = &curve{What: what, Count: h.TotalCount()}
	for _, percentile := range []float64{50, 90, 99, 99.9} {
		p.add(fmt.Sprintf("%s p%v", what, percentile), "ms", "less", milliseconds(h.ValueAtPercentile(percentile)))
	}
	p.add(what+" max", "ms", "less", milliseconds(h.Max()))
	for _, b := range h.CumulativeDistribution() {
		p.Latency.Points = append(p.Latency.Points, [2]float64{b.Quantile, milliseconds(b.ValueAt)})
	}
}

// find returns a figure of a scenario.
func (r *report) find(part, name string) *figure {
	for _, p := range r.Parts {
		if i := slices.IndexFunc(p.Figures, func(f figure) bool { return f.Name == name }); p.Name == part && i >= 0 {
			return &p.Figures[i]
		}
	}
	return nil
}

// write writes report.json and report.html into a folder.
func (r *report) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	page, err := r.page(data)
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	for name, content := range map[string][]byte{"report.json": append(data, '\n'), "report.html": page} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			return fmt.Errorf("cannot write the report: %w", err)
		}
	}
	return nil
}

func readReport(path string) (*report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s is no report of bench's: %w", path, err)
	}
	if r.Options == nil || len(r.Parts) == 0 {
		return nil, fmt.Errorf("%s is no report of bench's: it has no scenarios", path)
	}
	return r, nil
}
