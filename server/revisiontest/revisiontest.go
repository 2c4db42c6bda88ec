// Package revisiontest builds servers of earlier commits, for tests between versions.
package revisiontest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// HandoverVersion1 is the last commit of the handover's first version.
const HandoverVersion1 = "2ac8bf3e411950742bd7f7412c66208aee8fe766"

// Build builds the server of a commit of the repository that the test runs in, and returns its
// path. The test is skipped where the repository's history has no such commit.
func Build(t testing.TB, commit string) (path string) {
	t.Helper()
	if exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run() != nil {
		t.Skipf("the repository's history has no commit %s: clone all of it", commit)
	}
	dir := t.TempDir()
	path = filepath.Join(dir, "server-"+commit)
	// An archive that is taken below the top has only what lies there.
	const script = `cd "$(git rev-parse --show-toplevel)"
		git archive --format=tar "$3" go.mod go.sum server netpoll proto metrics | tar -x -C "$1"
		cd "$1" && go build -trimpath -o "$2" ./server`
	cmd := exec.Command("sh", "-ec", script, "sh", dir, path, commit)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}
