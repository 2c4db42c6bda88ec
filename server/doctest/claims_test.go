package doctest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Each block names one test, and that test reads the document's blocks. A block
// whose language is text is a drawing.
func TestEachSampleIsRun(t *testing.T) {
	readers := readers(t)
	for _, document := range tracked(t, "*.md") {
		for _, b := range parse(document, read(t, document)) {
			switch tests := readers[b.Test]; {
			case b.Language == "text":
			case b.Test == "":
				t.Errorf("%s: nothing runs this block: a line <!-- run: TestName --> before it names the test that does", b)
			case len(tests) != 1:
				t.Errorf("%s: %d tests have the name %s, and not one", b, len(tests), b.Test)
			case !slices.Contains(tests[0], document):
				t.Errorf("%s: %s does not ask doctest.Blocks, or samples, for %q", b, b.Test, document)
			}
		}
	}
}

// readers tells for each name of a test, or file of Node's tests, what documents
// those of that name read, in any module.
func readers(t *testing.T) map[string][][]string {
	t.Helper()
	readers := make(map[string][][]string)
	for _, name := range tracked(t, "*_test.go") {
		file, err := parser.ParseFile(token.NewFileSet(), name, read(t, name), parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				readers[f.Name.Name] = append(readers[f.Name.Name], documentsOf(f))
			}
		}
	}
	for _, name := range tracked(t, "*.test.mjs") {
		var documents []string
		for _, m := range nodeReads.FindAllStringSubmatch(read(t, name), -1) {
			documents = append(documents, m[1])
		}
		readers[path.Base(name)] = append(readers[path.Base(name)], documents)
	}
	return readers
}

var nodeReads = regexp.MustCompile(`samples\("([^"]+)"\)`)

// documentsOf returns the documents that a function names to Blocks.
func documentsOf(f *ast.FuncDecl) (documents []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 2 {
			return true
		}
		function, ok := call.Fun.(*ast.SelectorExpr)
		document, ok2 := call.Args[1].(*ast.BasicLit)
		if ok && ok2 && fmt.Sprint(function.X, ".", function.Sel) == "doctest.Blocks" {
			if name, err := strconv.Unquote(document.Value); err == nil {
				documents = append(documents, name)
			}
		}
		return true
	})
	return documents
}
