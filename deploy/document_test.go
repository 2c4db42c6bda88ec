package deploy

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const documentPath = "OBSERVABILITY.md"

func document(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(documentPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// part returns what stands between <!-- name --> and <!-- /name -->, and what is
// around it.
func part(t testing.TB, text, name string) (before, inside, after string) {
	t.Helper()
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(text, begin)
	inside, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s", documentPath, begin)
	}
	return before + begin, inside, end + after
}

// TestDocumentTables: make observability writes the metrics' table and the
// queries' links anew.
func TestDocumentTables(t *testing.T) {
	text := document(t)
	before, _, after := part(t, text, "metrics")
	text = before + metricsTable(liveCatalogue(t)) + after
	before, queries, after := part(t, text, "queries")
	text = before + withLinks(t, queries) + after
	keepTrue(t, documentPath, text)
}

// metricsTable is the table of our own metrics, as servers explain them.
func metricsTable(c *catalogue) string {
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(slices.Values(c.families)) {
		if !strings.HasPrefix(name, "websocket_") {
			continue
		}
		m := c.byFamily[name]
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", name, m.kind, labelCell(m), m.help)
	}
	return table.String()
}

// labelCell tells a metric's labels, and those values that are the same in
// every deployment. Those of a metric of each node of Redis never are.
func labelCell(m *metric) string {
	var cells []string
	_, ofNode := m.labels["node"]
	for name, values := range m.labels {
		switch {
		case name == "le":
		case name == "worker", name == "revision", ofNode:
			cells = append(cells, "`"+name+"`")
		default:
			cells = append(cells, fmt.Sprintf("`%s`: %s", name, strings.Join(values, ", ")))
		}
	}
	slices.Sort(cells)
	return strings.Join(cells, "; ")
}

// vmuiQuery is a page of vmui that shows an expression.
func vmuiQuery(expr string) string {
	return "http://127.0.0.1:8428/vmui/#/?g0.range_input=30m&g0.relative_time=last_30_minutes&g0.expr=" +
		strings.ReplaceAll(url.QueryEscape(expr), "+", "%20")
}

// withLinks makes of each question in the table a link to its expression.
func withLinks(t testing.TB, table string) string {
	t.Helper()
	var out strings.Builder
	for i, line := range strings.SplitAfter(table, "\n") {
		if m := queryRow.FindStringSubmatch(line); m != nil {
			line = fmt.Sprintf("| [%s](%s) | `%s` |\n", m[1], vmuiQuery(m[2]), m[2])
		} else if i > 1 && line != "" {
			t.Errorf("no row of the table of queries: %q", line)
		}
		out.WriteString(line)
	}
	return out.String()
}

var queryRow = regexp.MustCompile("^\\| \\[?([^\\]|]+\\?)(?:\\]\\([^)]*\\))? \\| `([^|]+)` \\|\n$")

// TestDocumentQueries holds the ready-made queries to what servers have.
func TestDocumentQueries(t *testing.T) {
	c := liveCatalogue(t)
	_, queries, _ := part(t, document(t), "queries")
	n := 0
	for line := range strings.Lines(queries) {
		if m := queryRow.FindStringSubmatch(line); m != nil {
			n++
			for _, fault := range c.check(m[2], "") {
				t.Errorf("%s: %v", m[1], fault)
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d queries", n)
	}
}

// TestDocumentAlerts: each alert has its section, which begins with its
// severity, and each section of that form its alert.
func TestDocumentAlerts(t *testing.T) {
	severities := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)\n\*(\w+)\*: `).FindAllStringSubmatch(document(t), -1) {
		severities[m[1]] = m[2]
	}
	for _, r := range alertRules(t) {
		if got := severities[r.Alert]; got != r.Labels["severity"] {
			t.Errorf("%s is a %s, and in %s: %q", r.Alert, r.Labels["severity"], documentPath, got)
		}
		delete(severities, r.Alert)
	}
	for alert := range severities {
		t.Errorf("%s explains %s, which is no alert", documentPath, alert)
	}
}

// TestDocumentErrorTypes: for each kind of error there is a word on what to do.
func TestDocumentErrorTypes(t *testing.T) {
	_, section, _ := strings.Cut(document(t), "### ErrorRateHigh\n")
	section, _, _ = strings.Cut(section, "\n### ")
	for _, kind := range liveCatalogue(t).bySample["websocket_errors_total"].labels["error_type"] {
		if !strings.Contains(section, "`"+kind+"`") {
			t.Errorf("%s does not say what to do about %s", documentPath, kind)
		}
	}
}

// TestDocumentEvents: each event that the server logs is explained.
func TestDocumentEvents(t *testing.T) {
	files, err := filepath.Glob("../server/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	_, logs, _ := strings.Cut(document(t), "\n## Logs\n")
	event := regexp.MustCompile(`\.Msg\("([^"]+)"\)`)
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range event.FindAllStringSubmatch(string(source), -1) {
			if !strings.HasSuffix(file, "_test.go") && !strings.Contains(logs, "`"+m[1]+"`") {
				t.Errorf("%s logs %q, which %s does not explain", file, m[1], documentPath)
			}
		}
	}
}
