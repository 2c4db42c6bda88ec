package deploy

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	schema "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/logs"
	"github.com/grafana/grafana-foundation-sdk/go/loki"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// TestDashboardsSchema holds the dashboards to Grafana's own schema, the
// options of each kind of panel and query included: no field may be unknown,
// and none missing.
func TestDashboardsSchema(t *testing.T) {
	registerKinds()
	for _, d := range dashboards(t) {
		data, err := os.ReadFile(d.file)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkSchema(data); err != nil {
			t.Errorf("%s: %v", d.file, err)
		}
		if checkSchema([]byte(strings.Replace(string(data), `"showLegend"`, `"showLegends"`, 1))) == nil {
			t.Errorf("%s: a field that Grafana does not know is not seen", d.file)
		}
	}
}

// registerKinds makes the schema's reader know the kinds of panels and queries
// that we use.
func registerKinds() {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(logs.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(loki.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
}

func checkSchema(data []byte) error {
	//lint:ignore SA1019 what is provisioned from files is of this version, which every Grafana reads
	var read schema.Dashboard
	err := read.UnmarshalJSONStrict(data)
	var faults cog.BuildErrors
	if err != nil && !(errors.As(err, &faults) && len(faults) == 0) { // none is told as an empty list
		return err
	}
	return read.Validate()
}
