package deploy

import (
	"bufio"
	"bytes"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A metric is what a running server says about one of its families.
type metric struct {
	help, kind string
	labels     map[string][]string // the values of each label, in the order written
}

// A catalogue is the pages of /metrics/ of running servers.
type catalogue struct {
	families []string           // names, in the order written
	byFamily map[string]*metric // a histogram is in it by its name
	bySample map[string]*metric // and here as name_bucket, name_sum, name_count
}

// liveCatalogue asks a server with the embedded store and one with Redis. Redis
// itself need not be there: all metrics are, from the start.
var liveCatalogue = func() func(t *testing.T) *catalogue {
	var once sync.Once
	var live *catalogue
	return func(t *testing.T) *catalogue {
		t.Helper()
		once.Do(func() { live = askServers(t) })
		if live == nil {
			t.Fatal("the servers' metrics are not known")
		}
		return live
	}
}()

func askServers(t *testing.T) *catalogue {
	all := &catalogue{byFamily: make(map[string]*metric), bySample: make(map[string]*metric)}
	for _, flags := range [][]string{nil, {"-redis", "redis://" + stackHost + ":1"}} {
		addr := freeAddr(t)
		s := startServer(t, filepath.Join(t.TempDir(), "server.log"), addr, flags...)
		page, err := fetch("http://" + addr + "/metrics/")
		if err != nil {
			t.Fatal(err)
		}
		all.add(page)
		s.kill()
	}
	return all
}

var (
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+$`)
	labelPair  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="([^"]*)"`)
)

// add takes a page in. The page's form is checked by the tests of metrics/.
func (c *catalogue) add(page []byte) {
	var family *metric
	for scanner := bufio.NewScanner(bytes.NewReader(page)); scanner.Scan(); {
		line := scanner.Text()
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			family = c.byFamily[name]
			if family == nil {
				family = &metric{help: help, labels: make(map[string][]string)}
				c.families = append(c.families, name)
				c.byFamily[name] = family
			}
		} else if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			_, family.kind, _ = strings.Cut(rest, " ")
		} else if m := sampleLine.FindStringSubmatch(line); m != nil {
			c.bySample[m[1]] = family
			family.addLabels(m[2])
		}
	}
}

func (m *metric) addLabels(text string) {
	for _, pair := range labelPair.FindAllStringSubmatch(text, -1) {
		name, value := pair[1], pair[2]
		if !slices.Contains(m.labels[name], value) {
			m.labels[name] = append(m.labels[name], value)
		}
	}
}
