package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the layout of DESIGN.md: who may import whom, within the project
// and of the libraries that have one importer.
var mayImport = map[string][]string{
	"turnstile/netpoll": {"github.com/mailru/easygo/netpoll"},
	"turnstile/proto":   {"github.com/gobwas/ws", "github.com/klauspost/compress/flate"},
	"turnstile/metrics": {"github.com/VictoriaMetrics/metrics"},
	"turnstile/server/session": {"turnstile/netpoll", "turnstile/metrics",
		"github.com/redis/go-redis/v9", "github.com/redis/go-redis/v9/maintnotifications"},
	"turnstile/server/admin":       {"turnstile/server/admin/uplot"},
	"turnstile/server/admin/uplot": {},
	"turnstile/server/handover":    {},
	// For tests.
	"turnstile/server/redistest":    {"turnstile/netpoll", "turnstile/server/certtest", "github.com/redis/go-redis/v9"},
	"turnstile/server/certtest":     {},
	"turnstile/server/doctest":      {},
	"turnstile/server/revisiontest": {},
	"turnstile/server/oracle":       {"turnstile/proto"},
	"turnstile/server/interoptest":  {"turnstile/proto", "turnstile/server/session", "github.com/coder/websocket"},
	"turnstile/bench": {"turnstile/netpoll", "turnstile/proto",
		"turnstile/server/admin/uplot", "github.com/HdrHistogram/hdrhistogram-go"},
	"turnstile/server/engine": {
		"turnstile/netpoll", "turnstile/proto", "turnstile/metrics",
		"turnstile/server/session", "turnstile/server/handover", "github.com/rs/zerolog",
	},
	"turnstile/server": {
		"turnstile/netpoll", "turnstile/proto", "turnstile/metrics",
		"turnstile/server/session", "turnstile/server/admin", "turnstile/server/handover",
		"turnstile/server/engine", "github.com/rs/zerolog",
	},
}

func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "turnstile/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		allowed, known := mayImport[pkg.ImportPath]
		if !known {
			t.Errorf("%s is not in the table of packages", pkg.ImportPath)
		}
		for _, path := range pkg.Imports {
			ours := strings.HasPrefix(path, "turnstile/")
			library := strings.Contains(path, ".") && path != "golang.org/x/sys/unix"
			if (ours || library) && !slices.Contains(allowed, path) {
				t.Errorf("%s must not import %s", pkg.ImportPath, path)
			}
		}
	}
}
