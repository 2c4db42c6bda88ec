// Package doctest gives tests the samples of the project's documents, so that
// each sample is run as it stands there. A comment in the line before a fenced
// block, <!-- run: TestName -->, names the one test that runs it; that test
// calls Blocks(t, "README.md") and runs what it gets. (What needs Node names the
// file of its tests, which calls samples("README.md").) A block without such a
// comment, and a comment that names no such test, fail this package's own tests.
package doctest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A Block is a fenced block of a document.
type Block struct {
	// Document is the path of its document, from the project's root.
	Document string
	// Line is the number of its first line.
	Line int
	// Language stands behind the opening fence: sh, js, go, console; text is a drawing.
	Language string
	// Test is the name in the comment before the block, "" without one.
	Test string
	// Text is what stands between the fences, with the last line's end.
	Text string
}

// String says where the block stands.
func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Document, b.Line) }

// Commands returns the commands of a block of shell, one for each line: without
// comments, with the lines joined that end with a backslash.
func (b Block) Commands() (commands []string) {
	text := strings.ReplaceAll(b.Text, "\\\n", "")
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(comment.ReplaceAllString(line, "")); line != "" {
			commands = append(commands, line)
		}
	}
	return commands
}

var comment = regexp.MustCompile(`(^|\s)#\s.*`)

// Blocks returns the blocks of a document that name the running test, in their
// order. A document without one fails the test.
func Blocks(t testing.TB, document string) (blocks []Block) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	for _, b := range parse(document, read(t, document)) {
		if b.Test == name {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block after <!-- run: %s -->", document, name)
	}
	return blocks
}

// Spans returns what stands between backquotes in a document's text and tables,
// with one space where a line ends.
func Spans(t testing.TB, document string) (spans []string) {
	t.Helper()
	var lines strings.Builder
	prose(read(t, document), func(_ int, line string) { lines.WriteString(line + "\n") })
	for _, s := range span.FindAllString(lines.String(), -1) {
		spans = append(spans, strings.Join(strings.Fields(strings.Trim(s, "`")), " "))
	}
	return spans
}

var span = regexp.MustCompile("`[^`]*`")

// Text returns a document.
func Text(t testing.TB, document string) string {
	t.Helper()
	return read(t, document)
}

// read returns a file of the project.
func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Root is the project's folder, seen from a test in any folder of it.
func Root(t testing.TB) string {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; folder != "/"; folder = filepath.Dir(folder) {
		if text, err := os.ReadFile(filepath.Join(folder, "go.mod")); err == nil && bytes.HasPrefix(text, []byte("module turnstile\n")) {
			return folder
		}
	}
	t.Fatal("the test does not run within the project")
	return ""
}

var (
	fence = regexp.MustCompile("^```([a-z]*)$")
	claim = regexp.MustCompile(`^<!-- run: ([\w.]+) -->$`)
)

// parse returns the fenced blocks of a document.
func parse(document, text string) (blocks []Block) {
	var open *Block
	before := ""
	for i, line := range strings.Split(text, "\n") {
		switch m := fence.FindStringSubmatch(line); {
		case open != nil && line == "```":
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line + "\n"
		case m != nil:
			open = &Block{Document: document, Line: i + 2, Language: m[1]}
			if name := claim.FindStringSubmatch(before); name != nil {
				open.Test = name[1]
			}
		}
		before = line
	}
	return blocks
}

// prose calls f for each line outside fenced blocks, with its number.
func prose(text string, f func(number int, line string)) {
	inBlock := false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "```") {
			inBlock = !inBlock
		} else if !inBlock {
			f(i+1, line)
		}
	}
}
