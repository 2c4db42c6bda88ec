package deploy

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turnstile/server/interoptest"
)

// Clients that this project did not write play the scenario of the server's TestClients
// through nginx. They see the same as directly, and what they get is compressed.
func TestCompressionThroughNginx(t *testing.T) {
	t.Parallel()
	b, site := startSite(t, map[string]string{})
	f := func(name string, play func(t *testing.T, address string) []byte) {
		t.Run(name, func(t *testing.T) {
			before := b.compressSaved(t)
			interoptest.Check(t, play(t, site))
			if saved := b.compressSaved(t) - before; !interoptest.WasCompressed(saved) {
				t.Errorf("compression has saved %v bytes", saved)
			}
		})
	}
	f("node", clientProgram("node", "client.mjs"))
	f("python", clientProgram("/usr/bin/python3", "-I", "client.py"))
	f("coder", interoptest.PlayCoder)
}

// clientProgram has a program play the scenario, and returns what it prints.
func clientProgram(program string, args ...string) func(t *testing.T, address string) []byte {
	return func(t *testing.T, address string) []byte {
		t.Helper()
		dir, err := filepath.Abs("../server/testdata/clients")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), wantProgram(t, program), append(args, address)...)
		var stderr strings.Builder
		cmd.Dir, cmd.Stderr = dir, &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, stderr.String())
		}
		return out
	}
}

func (b blue) compressSaved(t *testing.T) (bytes float64) {
	t.Helper()
	return metricOf(t, b.direct, "websocket_compress_saved_bytes_total")
}
