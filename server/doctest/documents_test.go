package doctest

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tracked returns the project's files that a pattern of git's names.
func tracked(t *testing.T, pattern string) []string {
	t.Helper()
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", pattern)
	list.Dir = Root(t)
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) == 0 {
		t.Fatalf("the project has no %s", pattern)
	}
	return files
}

func TestCommands(t *testing.T) {
	b := Block{Text: "# a title\nmake run # runs it\n\nbin/server -listen :8000 \\\n  -echo\ncurl '#x'\n"}
	want := []string{"make run", "bin/server -listen :8000   -echo", "curl '#x'"}
	if got := b.Commands(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// README.md is for a reader in a hurry, DESIGN.md for one with fifteen minutes.
// What counts are the words outside fenced blocks and comments, those of tables
// among them.
func TestDocumentsAreShort(t *testing.T) {
	for document, most := range map[string]int{"README.md": 2000, "DESIGN.md": 4500} {
		words := 0
		prose(read(t, document), func(_ int, line string) {
			if !strings.HasPrefix(line, "<!--") {
				words += len(strings.Fields(strings.ReplaceAll(line, "|", " ")))
			}
		})
		if words > most {
			t.Errorf("%s has %d words; at most %d", document, words, most)
		}
		t.Logf("%s has %d words", document, words)
	}
}

const columns = 100

// Prose is wrapped; rows of tables and addresses are as long as they are.
func TestProseIsWrapped(t *testing.T) {
	for _, document := range tracked(t, "*.md") {
		prose(read(t, document), func(number int, line string) {
			if strings.HasPrefix(line, "|") || !strings.Contains(line, " ") {
				return
			}
			if n := len([]rune(line)); n > columns {
				t.Errorf("%s:%d: %d columns; at most %d", document, number, n, columns)
			}
		})
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#+ (.+)$`)
)

// Links within the project lead to a file or a folder that is there, and to a
// heading that it has.
func TestLinks(t *testing.T) {
	for _, document := range tracked(t, "*.md") {
		prose(read(t, document), func(number int, line string) {
			for _, m := range link.FindAllStringSubmatch(span.ReplaceAllString(line, ""), -1) {
				if err := follow(t, document, m[1]); err != nil {
					t.Errorf("%s:%d: %v", document, number, err)
				}
			}
		})
	}
}

// follow returns why a link leads nowhere. Other sites are not asked.
func follow(t *testing.T, document, target string) error {
	t.Helper()
	if strings.Contains(target, "://") {
		return nil
	}
	name, anchor, hasAnchor := strings.Cut(target, "#")
	if name == "" {
		name = document
	} else {
		name = path.Join(path.Dir(document), name)
	}
	if _, err := os.Stat(filepath.Join(Root(t), name)); err != nil {
		return fmt.Errorf("%s leads to nothing", target)
	}
	if hasAnchor && !slices.Contains(anchors(read(t, name)), anchor) {
		return fmt.Errorf("%s has no heading %s", name, anchor)
	}
	return nil
}

// anchors returns the names that GitHub gives a document's headings: lower case,
// a hyphen for a space, no other punctuation.
func anchors(text string) (names []string) {
	punctuation := regexp.MustCompile(`[^\p{L}\p{N}\-_ ]`)
	prose(text, func(_ int, line string) {
		if m := heading.FindStringSubmatch(line); m != nil {
			name := punctuation.ReplaceAllString(strings.ToLower(m[1]), "")
			names = append(names, strings.ReplaceAll(name, " ", "-"))
		}
	})
	return names
}
