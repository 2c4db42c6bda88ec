package main

import (
	"bytes"
	"embed"
	"html/template"

	"turnstile/server/admin/uplot"
)

// The page is one file: style, charts and data are within it.
//
//go:embed page
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "page/report.html"))

// page is report.html for the report whose JSON is given.
func (r *report) page(data []byte) ([]byte, error) {
	read := func(name string) []byte {
		content, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		return content
	}
	var out bytes.Buffer
	err := pageTemplate.Execute(&out, map[string]any{
		"Report":    r,
		"Data":      template.JS(data), // encoding/json escapes what would end a script
		"ChartsJS":  template.JS(uplot.Script),
		"ChartsCSS": template.CSS(uplot.Style),
		"Script":    template.JS(read("report.js")),
		"Style":     template.CSS(read("report.css")),
		"Grouped":   func(n int) string { return grouped(int64(n)) },
	})
	return out.Bytes(), err
}
