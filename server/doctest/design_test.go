package doctest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// DESIGN.md answers a newcomer's questions with a file and what to look for in it.
func TestWhereDoI(t *testing.T) {
	const fewest = 20
	_, table, _ := strings.Cut(read(t, "DESIGN.md"), "\n## Where do I…\n")
	table, _, _ = strings.Cut(table, "\n## ")
	questions := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, " | ")
		if len(cells) < 2 || !strings.Contains(cells[1], "`") {
			continue
		}
		questions++
		if err := wantPlaces(t, cells[1]); err != nil {
			t.Errorf("%s: %v", strings.TrimPrefix(cells[0], "| "), err)
		}
	}
	if questions < fewest {
		t.Errorf("DESIGN.md answers %d questions; at least %d", questions, fewest)
	}
}

// wantPlaces sees that a cell names files that are there, and things that are
// declared in the file before them. Commands are held to the Makefile elsewhere.
func wantPlaces(t *testing.T, cell string) error {
	file, things := "", 0
	for _, s := range span.FindAllString(cell, -1) {
		name := strings.Trim(s, "`")
		switch {
		case strings.HasPrefix(name, "make "):
		case strings.Contains(name, "/") || name == "Makefile":
			file = name
			if _, err := os.Stat(filepath.Join(Root(t), file)); err != nil {
				return fmt.Errorf("there is no %s", file)
			}
		default:
			things++
			if !declares(t, file, name) {
				return fmt.Errorf("%q declares no %s", file, name)
			}
		}
	}
	if things == 0 {
		return fmt.Errorf("%q names nothing to look for", cell)
	}
	return nil
}

// declarations are how a file of each kind declares a name.
var declarations = map[string]string{
	".js":  `(?m)^\s*(?:export )?(?:async )?(?:(?:function|class|const|let) %[1]s\b|%[1]s\()`,
	".sh":  `(?m)^%s\(\)`,
	".yml": `(?m)^\s*(?:- )?%s:`,
	"":     `(?m)^%s:`, // a Makefile
}

func declares(t *testing.T, file, name string) bool {
	t.Helper()
	if path.Ext(file) == ".go" {
		return slices.Contains(namesOf(t, file), name)
	}
	pattern, known := declarations[path.Ext(file)]
	return known && regexp.MustCompile(fmt.Sprintf(pattern, regexp.QuoteMeta(name))).MatchString(read(t, file))
}

// namesOf returns what a Go file declares: f, T, and for methods and fields T.m.
func namesOf(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, read(t, file), parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			names = append(names, receiverOf(d)+d.Name.Name)
		case *ast.GenDecl:
			for _, s := range d.Specs {
				names = append(names, namesOfSpec(s)...)
			}
		}
	}
	return names
}

// receiverOf is "T." for a method of T or *T.
func receiverOf(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	receiver := d.Recv.List[0].Type
	if star, ok := receiver.(*ast.StarExpr); ok {
		receiver = star.X
	}
	return receiver.(*ast.Ident).Name + "."
}

func namesOfSpec(s ast.Spec) (names []string) {
	switch s := s.(type) {
	case *ast.ValueSpec:
		for _, n := range s.Names {
			names = append(names, n.Name)
		}
	case *ast.TypeSpec:
		names = append(names, s.Name.Name)
		for _, f := range fieldsOf(s.Type) {
			for _, n := range f.Names {
				names = append(names, s.Name.Name+"."+n.Name)
			}
		}
	}
	return names
}

// fieldsOf are a struct's fields or an interface's methods.
func fieldsOf(t ast.Expr) []*ast.Field {
	switch t := t.(type) {
	case *ast.StructType:
		return t.Fields.List
	case *ast.InterfaceType:
		return t.Methods.List
	}
	return nil
}
