package deploy

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A metricStack is VictoriaMetrics and vmalert, with the files that dev-up.sh
// starts them with.
type metricStack struct {
	dir, addr string
	colours   map[string]string // their addresses
}

// hurried makes the stack's periods fit a test: what is told in ten seconds or
// minutes is told in one or two seconds. The rules' expressions stay.
var hurried = strings.NewReplacer(
	"scrape_interval: 5s", "scrape_interval: 1s", "scrape_timeout: 4s", "scrape_timeout: 1s",
	"interval: 10s", "interval: 1s", "for: 15s", "for: 2s",
	"for: 30s", "for: 2s", "for: 1m", "for: 2s", "for: 2m", "for: 2s", "for: 5m", "for: 2s",
)

func startMetricStack(t testing.TB) *metricStack {
	t.Helper()
	s := &metricStack{dir: t.TempDir(), addr: freeAddr(t), colours: map[string]string{"blue": freeAddr(t), "green": freeAddr(t)}}
	deploy := filepath.Join(s.dir, "deploy")
	if err := os.CopyFS(filepath.Join(deploy, "victoriametrics"), os.DirFS("victoriametrics")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scrape.yml", "rules.yml"} {
		path := filepath.Join(deploy, "victoriametrics", name)
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(hurried.Replace(string(data))), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	vmalert := freeAddr(t)
	env := []string{
		"TURNSTILE_RUN_DIR=" + s.dir, "TURNSTILE_DEPLOY=" + deploy, "TURNSTILE_VICTORIAMETRICS=" + s.addr, "TURNSTILE_VMALERT=" + vmalert,
		"TURNSTILE_BLUE=" + s.colours["blue"], "TURNSTILE_GREEN=" + s.colours["green"],
	}
	startChild(t, s.dir, env, tool(t, "victoria-metrics"),
		append(arguments(t, "victoriametrics/victoria-metrics.args"), "-search.latencyOffset=0s")...)
	eventually(t, "VictoriaMetrics answers", answers("http://"+s.addr+"/health"))
	startChild(t, s.dir, env, tool(t, "vmalert"),
		append(arguments(t, "victoriametrics/vmalert.args"), "-rule.evalDelay=0s", "-remoteWrite.flushInterval=100ms")...)
	eventually(t, "vmalert answers", answers("http://"+vmalert+"/health"))
	return s
}

func (s *metricStack) start(t testing.TB, colour string, flags ...string) *child {
	t.Helper()
	return startServer(t, filepath.Join(s.dir, colour+".log"), s.colours[colour], flags...)
}

// A sample is one of those that a query answers.
type sample struct {
	labels map[string]string
	value  float64
}

func (s *metricStack) query(expr string) ([]sample, error) {
	body, err := fetch("http://" + s.addr + "/api/v1/query?nocache=1&query=" + url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	var samples []sample
	for _, r := range answer.Data.Result {
		value, err := strconv.ParseFloat(r.Value[1].(string), 64)
		if err != nil {
			return nil, err
		}
		samples = append(samples, sample{r.Metric, value})
	}
	return samples, nil
}

// await waits until an expression has exactly one sample, of this value.
func (s *metricStack) await(t testing.TB, expr string, want float64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %v", expr, want), func() bool {
		samples, err := s.query(expr)
		return err == nil && len(samples) == 1 && samples[0].value == want
	})
}

// An alert is one that vmalert says is pending or fires.
type alert struct {
	Name, State         string
	Labels, Annotations map[string]string
}

// alerts asks vmalert, by way of VictoriaMetrics, as Grafana does.
func (s *metricStack) alerts(t testing.TB) (firing map[string]alert) {
	t.Helper()
	body, err := fetch("http://" + s.addr + "/api/v1/alerts")
	var answer struct{ Data struct{ Alerts []alert } }
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil {
		t.Fatal(err)
	}
	firing = make(map[string]alert)
	for _, a := range answer.Data.Alerts {
		if a.State == "firing" && a.Name != "LoopLatencyHigh" { // which is of the machine that the tests run on
			firing[a.Name] = a
		}
	}
	return firing
}

// awaitAlerts waits until exactly these alerts fire.
func (s *metricStack) awaitAlerts(t testing.TB, names ...string) map[string]alert {
	t.Helper()
	var firing map[string]alert
	defer func() {
		if t.Failed() {
			t.Logf("there fire %v", firing)
		}
	}()
	eventually(t, fmt.Sprintf("there fire just %q", names), func() bool {
		firing = s.alerts(t)
		for _, name := range names {
			if _, ok := firing[name]; !ok {
				return false
			}
		}
		return len(firing) == len(names)
	})
	return firing
}

// TestSamplesOfRealServers: what servers count is in VictoriaMetrics, by colour,
// and it carries out every query of ours.
func TestSamplesOfRealServers(t *testing.T) {
	t.Parallel()
	s := startMetricStack(t)
	s.start(t, "blue")
	s.start(t, "green")
	for range 2 {
		dialWebSocket(t, s.colours["blue"]).count(t, 3)
	}
	green := dialWebSocket(t, s.colours["green"])
	green.count(t, 1)
	green.conn.Close()
	s.await(t, `websocket_messages_total{job="turnstile", colour="blue"}`, 6)
	s.await(t, `websocket_messages_total{job="turnstile", colour="green"}`, 1)
	s.await(t, `websocket_active_connections{colour="blue"}`, 2)
	s.await(t, `websocket_closes_total{colour="green", reason="peer_gone"}`, 1)
	s.await(t, `count(websocket_message_latency_seconds_bucket{colour="blue", le="+Inf", worker="0"})`, 1)
	s.await(t, `count(websocket_build_info{revision="tested"})`, 2)

	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				if target.Datasource.UID != "victoriametrics" {
					continue
				}
				if _, err := s.query(grafanaVariables.Replace(target.Expr)); err != nil {
					t.Errorf("%s, %s: %v", d.file, p.Title, err)
				}
			}
		}
	}
	s.awaitAlerts(t) // none

	served, err := fetch("http://" + s.addr + "/vmui/custom-dashboards")
	if err != nil || strings.Count(string(served), `"expr"`) < 30 {
		t.Errorf("vmui's dashboards: %v: %.200s", err, served)
	}
}

// TestAlertsOfRealServers kills and starts servers, and sees what fires.
func TestAlertsOfRealServers(t *testing.T) {
	t.Parallel()
	s := startMetricStack(t)
	blue, green := s.start(t, "blue"), s.start(t, "green")
	s.await(t, `sum(up{job="turnstile"})`, 2)

	green.kill()
	s.await(t, `count(up{job="turnstile"} == 0)`, 1)
	s.await(t, `count_over_time((up{job="turnstile", colour="green"} == 0)[1m:1s]) >= bool 5`, 1) // longer than any "for"
	s.awaitAlerts(t)                                                                              // one colour is enough

	blue.kill()
	down := s.awaitAlerts(t, "ApplicationDown")["ApplicationDown"]
	if down.Labels["severity"] != "page" ||
		down.Annotations["runbook_url"] != "deploy/OBSERVABILITY.md#applicationdown" || down.Annotations["action"] == "" {
		t.Errorf("the alert is %v", down)
	}
	s.await(t, `ALERTS{alertname="ApplicationDown", alertstate="firing"}`, 1) // for dashboards

	s.start(t, "blue")
	s.awaitAlerts(t)

	s.start(t, "green", "-redis", "redis://"+stackHost+":1", "-store-timeout", "200ms")
	firing := s.awaitAlerts(t, "StoreUnavailable", "InstanceNotReady")
	for _, a := range firing {
		if a.Labels["colour"] != "green" || !strings.HasPrefix(a.Annotations["summary"], "green ("+s.colours["green"]+")") {
			t.Errorf("the alert is %v", a)
		}
	}
}
