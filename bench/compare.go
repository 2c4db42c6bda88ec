package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// compare prints what has changed between two reports.
func compare(args []string) int {
	if len(args) != 2 {
		return complain(errors.New("usage: bench compare OLD.json NEW.json"), exitUsage)
	}
	before, err := readReport(args[0])
	if err != nil {
		return complain(err, exitUsage)
	}
	after, err := readReport(args[1])
	if err != nil {
		return complain(err, exitUsage)
	}
	newScreen(os.Stdout, os.Stdout.Fd(), true).difference(before, after)
	return exitOK
}

// difference prints the figures that both reports have.
func (s *screen) difference(before, after *report) {
	fmt.Fprintf(s.out, "%-56s %12s %12s %9s\n", "", "old", "new", "")
	for _, p := range after.Parts {
		for _, f := range p.Figures {
			old := before.find(p.Name, f.Name)
			if old == nil || old.Note != "" || f.Note != "" {
				continue
			}
			fmt.Fprintf(s.out, "%-10s %-41s %-3s %12s %12s %s\n",
				p.Name, f.Name, f.Unit, number(old.Value), number(f.Value), s.change(old.Value, &f))
		}
	}
	for _, what := range onlyIn(after, before) {
		fmt.Fprintf(s.out, "only in the new report: %s\n", what)
	}
	for _, what := range onlyIn(before, after) {
		fmt.Fprintf(s.out, "only in the old report: %s\n", what)
	}
	if loadOf(before) != loadOf(after) {
		fmt.Fprintln(s.out, s.paint(red, fmt.Sprintf("\nnot the same load: %s before, %s now", loadOf(before), loadOf(after))))
	}
	if before.Machine != after.Machine {
		fmt.Fprintln(s.out, s.paint(red, "\nnot the same machine: only ratios within one report mean anything"))
	}
}

// change is by how much a figure differs, in the colour of what that means.
func (s *screen) change(before float64, f *figure) string {
	if before == 0 {
		return ""
	}
	text := fmt.Sprintf("%+8.1f%%", 100*(f.Value/before-1))
	switch {
	case f.Better == "" || f.Value == before:
		return text
	case (f.Better == "more") == (f.Value > before):
		return s.paint(green, text)
	}
	return s.paint(red, text)
}

// onlyIn lists what one report has figures of and the other has not: whole
// scenarios, or single figures.
func onlyIn(one, other *report) (names []string) {
	for _, p := range one.Parts {
		if !slices.ContainsFunc(other.Parts, func(o *part) bool { return o.Name == p.Name }) {
			names = append(names, p.Name)
			continue
		}
		for _, f := range p.Figures {
			if other.find(p.Name, f.Name) == nil {
				names = append(names, p.Name+", "+f.Name)
			}
		}
	}
	return names
}

// loadOf says what a report's server had to bear.
func loadOf(r *report) string {
	o := r.Options
	return fmt.Sprintf("%d connections, %d in flight, %s/s in rate, %d bytes", o.Conns, o.InFlight, number(o.Rate), o.Size)
}
