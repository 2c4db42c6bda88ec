package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A cell is one figure of one server over all rounds.
type cell struct {
	Median, Low, High float64
	Ratio             float64 // of the median to our own
	Known             bool
}

func (r *peerResult) cell(c column, to *peerResult) cell {
	values := slices.Sorted(slices.Values(r.Values[c.Title]))
	if len(values) == 0 {
		return cell{}
	}
	out := cell{Median: median(values), Low: values[0], High: values[len(values)-1], Known: true}
	if base := slices.Sorted(slices.Values(to.Values[c.Title])); len(base) > 0 && median(base) != 0 {
		out.Ratio = out.Median / median(base)
	}
	return out
}

// median of sorted values.
func median(values []float64) float64 {
	middle := len(values) / 2
	if len(values)%2 == 1 {
		return values[middle]
	}
	return (values[middle-1] + values[middle]) / 2
}

// markdown is the table for a document: medians, and ratios to our own.
func (b *bout) markdown() string {
	var out strings.Builder
	out.WriteString("| |")
	for _, c := range columns {
		fmt.Fprintf(&out, " %s, %s |", c.Title, c.Unit)
	}
	out.WriteString("\n| --- |" + strings.Repeat(" --- |", len(columns)) + "\n")
	for _, r := range b.Results {
		fmt.Fprintf(&out, "| %s |", r.Name)
		for _, c := range columns {
			v := r.cell(c, b.Results[0])
			switch {
			case !v.Known:
				out.WriteString(" – |")
			case r.Name == ours:
				fmt.Fprintf(&out, " %s |", number(v.Median))
			default:
				fmt.Fprintf(&out, " %s (%.2f) |", number(v.Median), v.Ratio)
			}
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(&out, "\nMedians of %d rounds, in brackets the ratio to %s. %s\n", b.Rounds, ours, b.loads())
	for _, r := range b.Results {
		for what, n := range r.Errors {
			fmt.Fprintf(&out, "\n%s: %d × %s\n", r.Name, n, what)
		}
	}
	for _, name := range b.Skipped {
		fmt.Fprintf(&out, "\nskipped: %s\n", name)
	}
	return out.String()
}

// loads says what the loads' names mean.
func (b *bout) loads() string {
	return fmt.Sprintf("Many is %s connections; × is the messages in flight on each. "+
		"Sparse is many, each of which sends once in %.0f seconds: %s messages a second.",
		grouped(int64(b.Conns)), sparsePeriod.Seconds(), number(float64(b.Conns)/sparsePeriod.Seconds()))
}

// write writes peers.json, peers.md and peers.html into a folder.
func (b *bout) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	data, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	page, err := b.page()
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	for name, content := range map[string][]byte{"peers.json": append(data, '\n'), "peers.md": []byte(b.markdown()), "peers.html": page} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			return fmt.Errorf("cannot write the report: %w", err)
		}
	}
	return nil
}

var peersTemplate = template.Must(template.ParseFS(pageFiles, "page/peers.html"))

// A line is one server's line in a column's chart.
type line struct {
	Name, What string
	Ours       bool
	cell
	Width float64 // percent of the longest
}

// bars are a column's lines, the best first.
func (b *bout) bars(c column) (bars []line) {
	var longest float64
	for _, r := range b.Results {
		v := r.cell(c, b.Results[0])
		if v.Known {
			bars = append(bars, line{Name: r.Name, What: r.What, Ours: r.Name == ours, cell: v})
			longest = max(longest, v.Median)
		}
	}
	slices.SortStableFunc(bars, func(x, y line) int {
		if (x.Median < y.Median) == (c.Better == "less") {
			return -1
		}
		return 1
	})
	for i := range bars {
		if longest > 0 {
			bars[i].Width = 100 * bars[i].Median / longest
		}
	}
	return bars
}

func (b *bout) page() ([]byte, error) {
	style, err := pageFiles.ReadFile("page/report.css")
	if err != nil {
		return nil, err
	}
	known := slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return len(b.bars(c)) == 0 })
	var out bytes.Buffer
	err = peersTemplate.Execute(&out, map[string]any{
		"Bout": b, "Loads": b.loads(), "Columns": known, "Bars": b.bars, "Number": number, "Style": template.CSS(style),
	})
	return out.Bytes(), err
}
