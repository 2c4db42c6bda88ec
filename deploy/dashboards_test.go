package deploy

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What is read of a Grafana dashboard. An unknown field of a panel is none of
// our business; a missing one shows in the checks.
type (
	dashboard struct {
		UID           string  `json:"uid"`
		Title         string  `json:"title"`
		SchemaVersion int     `json:"schemaVersion"`
		Panels        []panel `json:"panels"`
		Annotations   struct {
			List []struct {
				Datasource  datasource `json:"datasource"`
				Expr        string     `json:"expr"`
				TitleFormat string     `json:"titleFormat"`
			} `json:"list"`
		} `json:"annotations"`
		Templating struct {
			List []struct {
				Name       string     `json:"name"`
				Type       string     `json:"type"`
				Datasource datasource `json:"datasource"`
				Definition string     `json:"definition"`
			} `json:"list"`
		} `json:"templating"`

		file string
	}
	panel struct {
		ID          int        `json:"id"`
		Type        string     `json:"type"`
		Title       string     `json:"title"`
		Description string     `json:"description"`
		Datasource  datasource `json:"datasource"`
		GridPos     gridPos    `json:"gridPos"`
		Targets     []target   `json:"targets"`
		FieldConfig struct {
			Defaults struct {
				Unit string `json:"unit"`
			} `json:"defaults"`
		} `json:"fieldConfig"`
		Options map[string]any `json:"options"`
	}
	target struct {
		RefID        string     `json:"refId"`
		Datasource   datasource `json:"datasource"`
		Expr         string     `json:"expr"`
		LegendFormat string     `json:"legendFormat"`
		Format       string     `json:"format"`
	}
	gridPos    struct{ X, Y, W, H int }
	datasource struct{ Type, UID string }
)

func (g gridPos) overlaps(o gridPos) bool {
	return g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H
}

func dashboards(t testing.TB) (all []*dashboard) {
	t.Helper()
	files, err := filepath.Glob("grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		d := &dashboard{file: file}
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, d)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	return all
}

// readYAML reads a file that has only the fields of value.
func readYAML(t testing.TB, file string, value any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(value); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestDashboardsExpressions holds every query to what a running server has.
func TestDashboardsExpressions(t *testing.T) {
	c := liveCatalogue(t)
	for _, d := range dashboards(t) {
		f := func(where, expr, legend string) {
			t.Helper()
			for _, fault := range c.check(expr, legend) {
				t.Errorf("%s, %s: %v\n  in %s", d.file, where, fault, expr)
			}
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				if target.Datasource.UID == "victoriametrics" {
					f(p.Title, target.Expr, target.LegendFormat)
				}
			}
		}
		for _, a := range d.Annotations.List {
			f("annotation", a.Expr, a.TitleFormat)
		}
		for _, v := range d.Templating.List {
			if v.Datasource.UID == "victoriametrics" {
				args := labelValues.FindStringSubmatch(v.Definition)
				f("variable "+v.Name, args[1], "{{"+args[2]+"}}")
			}
		}
	}
}

var labelValues = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)

// TestDashboardsUseEveryMetric: a metric of ours that no panel shows is one
// that nobody looks at.
func TestDashboardsUseEveryMetric(t *testing.T) {
	var text strings.Builder
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				text.WriteString(target.Expr + "\n")
			}
		}
	}
	unseen := []string{
		"websocket_sessions_evicted_total", "websocket_sessions_expired_total", // of the embedded store, which production does not use
		"websocket_shutdown_time_seconds", // of the last ten seconds of a process
	}
	for _, name := range liveCatalogue(t).families {
		used := regexp.MustCompile(`\b` + name + `(_bucket|_count|_sum)?\b`).MatchString(text.String())
		if strings.HasPrefix(name, "websocket_") && used == slices.Contains(unseen, name) {
			t.Errorf("%s: in a panel: %v", name, used)
		}
	}
}

// TestDashboardsLayout: what Grafana would mend in silence, or not show.
func TestDashboardsLayout(t *testing.T) {
	uids := make(map[string]string)
	for _, d := range dashboards(t) {
		if other := uids[d.UID]; d.UID == "" || other != "" || d.Title == "" || d.SchemaVersion < 39 {
			t.Errorf("%s: uid %q (also of %q), title %q, schema version %d", d.file, d.UID, other, d.Title, d.SchemaVersion)
		}
		uids[d.UID] = d.file
		for i, p := range d.Panels {
			if p.Title == "" || p.GridPos.W < 1 || p.GridPos.H < 1 || p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: panel %d %q is at %+v", d.file, p.ID, p.Title, p.GridPos)
			}
			for _, other := range d.Panels[:i] {
				if p.ID == other.ID || p.GridPos.overlaps(other.GridPos) {
					t.Errorf("%s: %q (%d, %+v) and %q (%d, %+v) are in each other's way",
						d.file, p.Title, p.ID, p.GridPos, other.Title, other.ID, other.GridPos)
				}
			}
			checkTargets(t, d, p)
		}
	}
}

func checkTargets(t *testing.T, d *dashboard, p panel) {
	t.Helper()
	var ids []string
	for _, target := range p.Targets {
		if slices.Contains(ids, target.RefID) || target.RefID == "" || target.Datasource != p.Datasource {
			t.Errorf("%s, %s: query %q, data source %v", d.file, p.Title, target.RefID, target.Datasource)
		}
		ids = append(ids, target.RefID)
	}
	if (p.Type == "row") != (len(ids) == 0) {
		t.Errorf("%s, %s: a %s of %d queries", d.file, p.Title, p.Type, len(ids))
	}
	known := []string{"row", "timeseries", "stat", "heatmap", "table", "logs"}
	if !slices.Contains(known, p.Type) {
		t.Errorf("%s, %s: type %q is none of %q", d.file, p.Title, p.Type, known)
	}
	if p.Type == "heatmap" && (p.Targets[0].Format != "heatmap" || p.Options["calculate"] != false) {
		t.Errorf("%s, %s: the buckets come from the server: format heatmap, calculate false", d.file, p.Title)
	}
}

// TestDashboardsDatasources: every data source that is used is provisioned,
// with its type, and the other way round.
func TestDashboardsDatasources(t *testing.T) {
	var provisioned struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool `yaml:"isDefault"`
			Editable                     bool
			JSONData                     map[string]any `yaml:"jsonData"`
		}
	}
	readYAML(t, "grafana/provisioning/datasources/datasources.yml", &provisioned)
	types := make(map[string]string)
	for _, d := range provisioned.Datasources {
		types[d.UID] = d.Type
	}
	used := make(map[string]string)
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				used[target.Datasource.UID] = target.Datasource.Type
			}
		}
		for _, a := range d.Annotations.List {
			used[a.Datasource.UID] = a.Datasource.Type
		}
		for _, v := range d.Templating.List {
			if v.Type == "query" {
				used[v.Datasource.UID] = v.Datasource.Type
			}
		}
	}
	if !maps.Equal(types, used) {
		t.Errorf("provisioned are %v, used are %v", types, used)
	}
}
