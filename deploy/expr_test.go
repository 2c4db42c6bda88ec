package deploy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
)

// scrapeLabels come with every sample, by scrape.yml.
var scrapeLabels = []string{"job", "instance", "colour"}

// made are the series that VictoriaMetrics and vmalert make themselves.
var made = map[string][]string{
	"up":     nil,
	"ALERTS": {"alertname", "alertgroup", "alertstate", "severity"},
}

// grafanaVariables stand for what Grafana puts in.
var grafanaVariables = strings.NewReplacer("$__rate_interval", "5m", "$__interval", "15s", "$colour", ".*")

// labelsOf are the names of the labels that samples of this name have.
func (c *catalogue) labelsOf(name string) ([]string, bool) {
	if own, ok := made[name]; ok {
		return slices.Concat(scrapeLabels, own), true
	}
	m, ok := c.bySample[name]
	if !ok {
		return nil, false
	}
	labels := slices.Clone(scrapeLabels)
	for label := range m.labels {
		labels = append(labels, label)
	}
	return labels, true
}

// check parses an expression and returns what is wrong with it: metrics,
// labels and values that no server has. legend is a template in which more
// labels may stand.
func (c *catalogue) check(expr, legend string) []error {
	e, err := metricsql.Parse(grafanaVariables.Replace(expr))
	if err != nil {
		return []error{err}
	}
	var faults []error
	if metricsql.IsLikelyInvalid(e) {
		faults = append(faults, fmt.Errorf("most likely not what is meant: %s", e.AppendString(nil)))
	}
	var there []string // labels of all metrics of the expression
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		if m, ok := e.(*metricsql.MetricExpr); ok {
			labels, errs := c.checkMetric(m)
			there, faults = append(there, labels...), append(faults, errs...)
		}
	})
	for _, label := range append(groupedBy(e), templateLabels(legend)...) {
		if !slices.Contains(there, label) {
			faults = append(faults, fmt.Errorf("no metric of it has the label %q", label))
		}
	}
	return faults
}

// checkMetric holds a selector to what servers have, and returns the labels
// that its series have.
func (c *catalogue) checkMetric(m *metricsql.MetricExpr) (labels []string, faults []error) {
	for _, filters := range m.LabelFilterss {
		if len(filters) == 0 || filters[0].Label != "__name__" || filters[0].IsRegexp {
			return nil, append(faults, fmt.Errorf("%s names no metric", m.AppendString(nil)))
		}
		name := filters[0].Value
		own, ok := c.labelsOf(name)
		if !ok {
			return nil, append(faults, fmt.Errorf("no server has the metric %s", name))
		}
		labels = append(labels, own...)
		for _, f := range filters[1:] {
			if !slices.Contains(own, f.Label) {
				faults = append(faults, fmt.Errorf("%s has no label %q", name, f.Label))
			} else if err := c.checkValue(name, f); err != nil {
				faults = append(faults, err)
			}
		}
		if made[name] == nil && !slices.ContainsFunc(filters, isJob) {
			faults = append(faults, fmt.Errorf("%s without job=\"turnstile\" takes what others scrape as well", name))
		}
	}
	return labels, faults
}

func isJob(f metricsql.LabelFilter) bool {
	return f.Label == "job" && f.Value == "turnstile" && !f.IsNegative && !f.IsRegexp
}

// checkValue holds a filter on one of the server's own labels to their values.
func (c *catalogue) checkValue(name string, f metricsql.LabelFilter) error {
	m, ok := c.bySample[name]
	if !ok || slices.Contains(scrapeLabels, f.Label) {
		return nil
	}
	for _, value := range strings.Split(f.Value, "|") {
		if !slices.Contains(m.labels[f.Label], value) {
			return fmt.Errorf("%s has no %s %q: %q", name, f.Label, value, m.labels[f.Label])
		}
	}
	return nil
}

// groupedBy are the labels by which an expression groups or joins.
func groupedBy(e metricsql.Expr) (labels []string) {
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.AggrFuncExpr:
			labels = append(labels, e.Modifier.Args...)
		case *metricsql.BinaryOpExpr:
			labels = append(labels, e.GroupModifier.Args...)
		}
	})
	return labels
}

// templateLabels are those in "{{colour}}" (Grafana) and "{{ $labels.colour }}"
// (vmalert).
func templateLabels(template string) (labels []string) {
	for _, m := range templateLabel.FindAllStringSubmatch(template, -1) {
		labels = append(labels, m[1])
	}
	return labels
}

var templateLabel = regexp.MustCompile(`{{\s*(?:\$labels\.)?([a-z_]+)\b[^}]*}}`)

// TestCheckFindsFaults: the checker is only worth what it refuses.
func TestCheckFindsFaults(t *testing.T) {
	c := liveCatalogue(t)
	f := func(want, expr, legend string) {
		t.Helper()
		faults := c.check(expr, legend)
		if want == "" && len(faults) > 0 || want != "" && (len(faults) == 0 || !strings.Contains(faults[0].Error(), want)) {
			t.Errorf("%s, %q: %v, want %q", expr, legend, faults, want)
		}
	}
	f("",
		`sum by (reason) (rate(websocket_closes_total{job="turnstile", reason=~"goodbye|slow_consumer"}[$__rate_interval]))`,
		"{{reason}} {{ $labels.colour }}")
	f("", `ALERTS{alertstate="firing"}`, "{{alertname}}")
	f("unparsed data", `sum(up{job="turnstile"}))`, "")
	f("no server has the metric websocket_conections", `sum(websocket_conections{job="turnstile"})`, "")
	f("no server has the metric websocket_message_latency_seconds", `websocket_message_latency_seconds{job="turnstile"}`, "")
	f(`has no label "cause"`, `websocket_closes_total{job="turnstile", cause="goodbye"}`, "")
	f(`has no reason "slow"`, `websocket_closes_total{job="turnstile", reason=~"goodbye|slow"}`, "")
	f(`has the label "color"`, `sum by (color) (up{job="turnstile"})`, "")
	f(`has the label "color"`, `up{job="turnstile"}`, "{{color}}")
	f("names no metric", `sum({job="turnstile"})`, "")
	f(`without job`, `sum(websocket_ready)`, "")
}
