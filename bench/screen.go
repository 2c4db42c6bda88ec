package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A screen shows what goes on: on a terminal one line that changes, elsewhere
// nothing but the table at the end.
type screen struct {
	out      io.Writer
	fd       int
	terminal bool
	live     bool
}

func newScreen(out io.Writer, fd uintptr, quiet bool) *screen {
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return &screen{out: out, fd: int(fd), terminal: err == nil, live: err == nil && !quiet}
}

const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	normal = "\x1b[0m"
	clear  = "\r\x1b[K"
)

func (s *screen) paint(color, text string) string {
	if !s.terminal {
		return text
	}
	return color + text + normal
}

// show replaces the live line, which must not be longer than the terminal is
// wide: what has wrapped is not replaced.
func (s *screen) show(name string, at sample, c Counters, done float64) {
	if !s.live {
		return
	}
	line := fmt.Sprintf("%-10s%s%5.0f s %s open", name, bar(done), at.At, grouped(c.Open))
	if at.Rate > 0 {
		line += fmt.Sprintf("  %s msg/s", grouped(int64(at.Rate)))
	}
	if at.Resident > 0 {
		line += fmt.Sprintf("  server %.0f%% %.0f MB", 100*at.ServerCPU, float64(at.Resident)/1e6)
	}
	line += fmt.Sprintf("  bench %.0f%%", 100*at.BenchCPU)
	line = firstRunes(line, s.width()-1)
	if errors := fmt.Sprintf("  %s errors", grouped(c.Faults)); c.Faults > 0 {
		line = firstRunes(line, s.width()-1-len(errors)) + s.paint(red, errors)
	}
	fmt.Fprint(s.out, clear+line)
}

// width is the terminal's, in columns.
func (s *screen) width() int {
	size, err := unix.IoctlGetWinsize(s.fd, unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

func firstRunes(text string, most int) string {
	runes := []rune(text)
	return string(runes[:max(0, min(most, len(runes)))])
}

// bar is a progress bar of twenty places.
func bar(done float64) string {
	n := int(20 * min(max(done, 0), 1))
	return strings.Repeat("█", n) + strings.Repeat("░", 20-n)
}

// table prints the report.
func (s *screen) table(r *report) {
	if s.live {
		fmt.Fprint(s.out, clear)
	}
	fmt.Fprintf(s.out, "%s\n%s\n", s.paint(bold, r.Name), s.paint(dim, fmt.Sprintf("%s · %d cores · %s · Linux %s · %s · %s",
		r.Machine.CPU, r.Machine.Cores, r.Machine.System, r.Machine.Kernel, r.Machine.Go, r.When.Format(time.DateTime))))
	for _, p := range r.Parts {
		s.part(p)
	}
	if r.Failed != "" {
		fmt.Fprintln(s.out, s.paint(red, "\n"+r.Failed))
	}
	if r.Cut {
		fmt.Fprintln(s.out, s.paint(red, "\nended before its time: what is above is what was measured until then"))
	}
	if len(r.FellShort) > 0 {
		fmt.Fprintln(s.out, s.paint(red, "\nfell short: "+strings.Join(r.FellShort, "; ")))
	}
}

// part prints one scenario's figures.
func (s *screen) part(p *part) {
	fmt.Fprintf(s.out, "\n%s %s\n", s.paint(bold, p.Name), s.paint(dim, fmt.Sprintf("%.1f s", p.Seconds)))
	for _, f := range p.Figures {
		fmt.Fprintf(s.out, "  %-44s %12s %-5s %s\n", f.Name, f.Shown(), f.Unit, s.verdict(&f))
	}
	for _, what := range slices.Sorted(maps.Keys(p.Errors)) {
		fmt.Fprintln(s.out, s.paint(red, fmt.Sprintf("  %8d × %s", p.Errors[what], what)))
	}
	for _, limit := range p.Limits {
		fmt.Fprintln(s.out, s.paint(red, "  "+limit))
	}
}

func (s *screen) verdict(f *figure) string {
	switch wanted := f.Verdict(); {
	case wanted == "":
		return ""
	case f.OK():
		return s.paint(green, "ok, "+wanted)
	default:
		return s.paint(red, "FELL SHORT, "+wanted)
	}
}

// number writes three digits that matter, and whole thousands.
func number(v float64) string {
	switch {
	case v == math.Trunc(v) || math.Abs(v) >= 1000:
		return grouped(int64(math.Round(v)))
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	case math.Abs(v) >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func grouped(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
