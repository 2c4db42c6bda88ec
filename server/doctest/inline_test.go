package doctest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What stands in the text between backquotes is not run; it names what there is.
func TestNamesInTheText(t *testing.T) {
	tests := allTests(t)
	for _, document := range tracked(t, "*.md") {
		server := document == "README.md" || document == "deploy/README.md"
		for _, span := range Spans(t, document) {
			faults := []error{wantTargets(t, span), wantScripts(t, span), wantFiles(t, span), wantTests(t, span), wantTest(tests, span)}
			if server {
				faults = append(faults, wantFlags(t, span), wantMetrics(t, span), wantVariables(t, span))
			}
			if err := errors.Join(faults...); err != nil {
				t.Errorf("%s: `%s`: %v", document, span, err)
			}
		}
	}
}

// firstMissing looks in a text for each name that a pattern finds in a span. The
// form is a pattern too, of how the text has it.
func firstMissing(span, pattern, form, text string) error {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(span, -1) {
		if !regexp.MustCompile(fmt.Sprintf(form, m[1])).MatchString(text) {
			return fmt.Errorf("there is no %s", m[1])
		}
	}
	return nil
}

func wantTargets(t *testing.T, span string) error {
	return firstMissing(span, `(?:^|&& |[A-Z_]+=\S+ )make ([a-z0-9][a-z0-9-]*)`, `(?m)^%s:`, read(t, "Makefile"))
}

// The table of flags is held to the server by a test of the server's.
func wantFlags(t *testing.T, span string) error {
	_, flags, _ := strings.Cut(read(t, "README.md"), "<!-- flags -->")
	flags, _, _ = strings.Cut(flags, "<!-- /flags -->")
	return firstMissing(span, `(?:^|^bin/server |^server |^-.* )-([a-z][a-z-]+)`, "`-%s[^a-z-]", flags)
}

// The table of metrics is held to running servers by a test of deploy's.
func wantMetrics(t *testing.T, span string) error {
	return firstMissing(span, `^(websocket_\w+)`, "[|] `%s` [|]", read(t, "deploy/OBSERVABILITY.md"))
}

// A variable is a flag's, or one of the scripts'.
func wantVariables(t *testing.T, span string) error {
	for _, m := range regexp.MustCompile(`TURNSTILE_([A-Z_]+)`).FindAllStringSubmatch(span, -1) {
		flag := "-" + strings.ToLower(strings.ReplaceAll(m[1], "_", "-"))
		if wantFlags(t, flag) == nil {
			continue
		}
		if err := firstMissing(m[1], `(.+)`, `(?m)^setting %s `, read(t, "scripts/settings.sh")); err != nil {
			return err
		}
	}
	return nil
}

func wantScripts(t *testing.T, span string) error {
	script := regexp.MustCompile(`^(scripts/[\w.-]+\.sh)`).FindString(span)
	if script == "" {
		return nil
	}
	info, err := os.Stat(filepath.Join(Root(t), script))
	if err == nil && info.Mode()&0o100 == 0 && strings.HasPrefix(read(t, script), "#!") {
		err = fmt.Errorf("%s cannot be run", script)
	}
	return err
}

// wantFiles sees that the project has the file or folder that a span names from
// its root.
func wantFiles(t *testing.T, span string) error {
	file := regexp.MustCompile(`^(?:netpoll|proto|metrics|server|bench|deploy|scripts)/[\w./-]*$`).FindString(span)
	if file == "" || strings.HasPrefix(file, "bench/report/") { // which is written
		return nil
	}
	_, err := os.Stat(filepath.Join(Root(t), file))
	return err
}

// allTests are the project's tests, fuzz tests and benchmarks.
func allTests(t *testing.T) (names []string) {
	for _, file := range tracked(t, "*_test.go") {
		for _, m := range regexp.MustCompile(`(?m)^func (\w+)\(`).FindAllStringSubmatch(read(t, file), -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// wantTest sees that what is called like a test is one of them.
func wantTest(tests []string, span string) error {
	if regexp.MustCompile(`^(?:Test|Fuzz|Benchmark)[A-Z]\w*$`).MatchString(span) && !slices.Contains(tests, span) {
		return errors.New("no test is called so")
	}
	return nil
}

// wantTests sees that "go test" with a pattern has something to run: a function
// of its folder whose name matches.
func wantTests(t *testing.T, span string) error {
	m := regexp.MustCompile(`^(?:cd (\w+) && )?go test (.*)$`).FindStringSubmatch(span)
	if m == nil {
		return nil
	}
	folder := regexp.MustCompile(`(?:^| )\.(/\w+)?(?: |$)`).FindStringSubmatch(m[2])
	if folder == nil {
		return errors.New("it names no folder")
	}
	files, err := filepath.Glob(filepath.Join(Root(t), m[1], folder[1], "*_test.go"))
	if err != nil {
		return err
	}
	var source strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		source.Write(text)
	}
	return wantFunctions(m[2], source.String())
}

func wantFunctions(args, source string) error {
	for _, option := range regexp.MustCompile(`-(run|bench) '?([^' ]+)'?`).FindAllStringSubmatch(args, -1) {
		kind, pattern := map[string]string{"run": "Test", "bench": "Benchmark"}[option[1]], option[2]
		if pattern == "^$" || pattern == "." {
			continue
		}
		found := false
		for _, f := range regexp.MustCompile(`(?m)^func (`+kind+`\w+)\(`).FindAllStringSubmatch(source, -1) {
			found = found || regexp.MustCompile(pattern).MatchString(f[1])
		}
		if !found {
			return fmt.Errorf("no %s matches %s", kind, pattern)
		}
	}
	return nil
}
