package deploy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

type (
	ruleFile struct {
		Groups []struct {
			Name     string
			Interval time.Duration
			Rules    []alertRule
		}
	}
	alertRule struct {
		Alert, Expr         string
		For                 time.Duration
		Labels, Annotations map[string]string
	}
	ruleTestFile struct {
		RuleFiles          []string      `yaml:"rule_files"`
		EvaluationInterval time.Duration `yaml:"evaluation_interval"`
		Tests              []struct {
			Name        string
			Interval    time.Duration
			InputSeries []struct{ Series, Values string } `yaml:"input_series"`
			Cases       []struct {
				Expr     string
				EvalTime time.Duration `yaml:"eval_time"`
				Samples  []struct {
					Labels string
					Value  float64
				} `yaml:"exp_samples"`
			} `yaml:"metricsql_expr_test"`
		}
	}
)

const (
	rulesPath     = "victoriametrics/rules.yml"
	ruleTestsPath = "victoriametrics/rules_test.yml"
)

func alertRules(t testing.TB) []alertRule {
	t.Helper()
	var file ruleFile
	readYAML(t, rulesPath, &file)
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%s: %d groups", rulesPath, len(file.Groups))
	}
	return file.Groups[0].Rules
}

// TestRulesExpressions holds every rule, and the labels its texts name, to what
// a running server has.
func TestRulesExpressions(t *testing.T) {
	c := liveCatalogue(t)
	for _, r := range alertRules(t) {
		for _, fault := range c.check(r.Expr, r.Annotations["summary"]+r.Annotations["action"]) {
			t.Errorf("%s: %v\n  in %s", r.Alert, fault, r.Expr)
		}
	}
}

// TestRulesSayWhatToDo: an alert is for somebody who was asleep.
func TestRulesSayWhatToDo(t *testing.T) {
	for _, r := range alertRules(t) {
		if severity := r.Labels["severity"]; severity != "page" && severity != "ticket" {
			t.Errorf("%s: severity %q is neither page nor ticket", r.Alert, severity)
		}
		for _, key := range []string{"summary", "action"} {
			if r.Annotations[key] == "" {
				t.Errorf("%s has no %s", r.Alert, key)
			}
		}
		if got, want := r.Annotations["runbook_url"], "deploy/OBSERVABILITY.md#"+strings.ToLower(r.Alert); got != want {
			t.Errorf("%s: runbook_url is %q, want %q", r.Alert, got, want)
		}
	}
}

// TestRulesUnitTests runs rules_test.yml, which has to have a case that fires
// and one that does not for every alert.
func TestRulesUnitTests(t *testing.T) {
	var file ruleTestFile
	readYAML(t, ruleTestsPath, &file)
	var fires, quiet []string
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			_, rest, _ := strings.Cut(c.Expr, `alertname="`)
			alert, _, _ := strings.Cut(rest, `"`)
			if len(c.Samples) > 0 {
				fires = append(fires, alert)
			} else {
				quiet = append(quiet, alert)
			}
		}
	}
	for _, r := range alertRules(t) {
		if !slices.Contains(fires, r.Alert) || !slices.Contains(quiet, r.Alert) {
			t.Errorf("%s: a case fires: %v, one does not: %v", r.Alert, slices.Contains(fires, r.Alert), slices.Contains(quiet, r.Alert))
		}
	}
	out, err := exec.Command(tool(t, "vmalert-tool"), "unittest", "-files="+ruleTestsPath).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "SUCCESS") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestRulesAreTaken: vmalert checks templates, too.
func TestRulesAreTaken(t *testing.T) {
	if out, err := exec.Command(tool(t, "vmalert"), "-dryRun", "-rule="+rulesPath).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
