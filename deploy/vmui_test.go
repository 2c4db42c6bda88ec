package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What VictoriaMetrics reads from -vmui.customDashboardsPath.
type (
	vmuiDashboard struct {
		Title string    `json:"title"`
		Rows  []vmuiRow `json:"rows"`
	}
	vmuiRow struct {
		Title  string      `json:"title"`
		Panels []vmuiPanel `json:"panels"`
	}
	vmuiPanel struct {
		Title       string   `json:"title"`
		Description string   `json:"description,omitempty"`
		Unit        string   `json:"unit,omitempty"`
		Width       int      `json:"width"`
		Expr        []string `json:"expr"`
		Alias       []string `json:"alias,omitempty"`
		ShowLegend  bool     `json:"showLegend"`
	}
)

// vmuiUnits are what vmui writes behind a number.
var vmuiUnits = map[string]string{"s": "s", "bytes": "B", "Bps": "B/s", "cps": "/s"}

// forVMUI takes Grafana's variables out: vmui chooses the window itself.
func forVMUI(expr string) string {
	expr = strings.NewReplacer(`, colour=~"$colour"`, "", "[$__rate_interval]", "").Replace(expr)
	return expr
}

// toVMUI is what vmui can show of a Grafana dashboard: no heat maps, which it
// draws for single queries alone. Its grid has 12 columns.
func toVMUI(d *dashboard) vmuiDashboard {
	out := vmuiDashboard{Title: d.Title}
	for _, p := range d.Panels {
		if p.Type == "row" {
			out.Rows = append(out.Rows, vmuiRow{Title: p.Title, Panels: []vmuiPanel{}})
			continue
		}
		if p.Type == "heatmap" {
			continue
		}
		v := vmuiPanel{
			Title: p.Title, Description: p.Description, Width: max(p.GridPos.W/2, 4), ShowLegend: true,
			Unit: vmuiUnits[p.FieldConfig.Defaults.Unit],
		}
		for _, target := range p.Targets {
			v.Expr = append(v.Expr, forVMUI(target.Expr))
			if target.LegendFormat != "" {
				v.Alias = append(v.Alias, target.LegendFormat)
			}
		}
		row := &out.Rows[len(out.Rows)-1]
		row.Panels = append(row.Panels, v)
	}
	return out
}

// TestVMUIDashboards: where Grafana does not run, vmui shows the same. make
// observability writes its dashboards anew from Grafana's.
func TestVMUIDashboards(t *testing.T) {
	for _, d := range dashboards(t) {
		if filepath.Base(d.file) == "logs.json" {
			continue // vmui has metrics alone
		}
		var want bytes.Buffer
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(toVMUI(d)); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(want.String(), "$") {
			t.Errorf("%s: vmui knows no variables: %s", d.file, regexp.MustCompile(`.*\$.*`).FindString(want.String()))
		}
		keepTrue(t, filepath.Join("victoriametrics/vmui", filepath.Base(d.file)), want.String())
	}
}

// keepTrue holds a file to what it is generated from, and writes it anew where
// that was asked for.
func keepTrue(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err == nil && string(got) == want {
		return
	}
	if os.Getenv("UPDATE_OBSERVABILITY") == "" {
		t.Errorf("%s is not what it is made from: run make observability (%v)", path, err)
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
