package deploy

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Clients that this project did not write play the scenario of the server's TestClients
// directly and through nginx. What they see is the same, and what they get is compressed.
func TestCompressionThroughNginx(t *testing.T) {
	t.Parallel()
	b, site := startSite(t)
	clients := map[string][]string{
		"node":   {wantProgram(t, "node"), "client.mjs"},
		"python": {wantProgram(t, "/usr/bin/python3"), "-I", "client.py"},
	}
	const long = 50_000 // bytes; one answer is longer
	for name, command := range clients {
		t.Run(name, func(t *testing.T) {
			directly, saved := b.play(t, command, b.socket)
			through, alsoSaved := b.play(t, command, site)
			if through != directly {
				t.Errorf("through nginx it sees %s\n\ndirectly %s", through, directly)
			}
			if saved < long || alsoSaved < long {
				t.Errorf("compression has saved %v bytes directly and %v through nginx", saved, alsoSaved)
			}
		})
	}
}

var uuidPattern = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// play has a client play its scenario at an address, and returns what it saw, with the
// sessions numbered, and how many bytes compression has saved.
func (b blue) play(t *testing.T, command []string, address string) (saw string, saved float64) {
	t.Helper()
	before := b.compressSaved(t)
	cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], address)...)
	var err error
	if cmd.Dir, err = filepath.Abs("../server/testdata/clients"); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, stderr.String())
	}
	numbers := map[string]string{}
	saw = uuidPattern.ReplaceAllStringFunc(string(out), func(id string) string {
		if numbers[id] == "" {
			numbers[id] = fmt.Sprintf("session %d", len(numbers)+1)
		}
		return numbers[id]
	})
	return saw, b.compressSaved(t) - before
}

func (b blue) compressSaved(t *testing.T) (bytes float64) {
	t.Helper()
	return metricOf(t, b.direct, "websocket_compress_saved_bytes_total")
}
