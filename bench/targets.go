package main

import (
	"fmt"
	"slices"
	"strings"
)

// A heldFigure is one of the figures of the first rank, and what the project holds it to.
type heldFigure struct {
	part, figure string
	most         float64
}

// firstRank is what users notice first, and pay for.
var firstRank = []heldFigure{
	{"sparse", "server CPU a message", 130}, // 74 to 105 were measured on 2026-11-26; the machine moves as much
	{"sparse", "answer p99", 5},
	{"sparse", "generator's own lateness p99", 0.3},
	{"rate", "answer p99", 10},
	{"rate", "generator's own lateness p99", 1},
	{"idle", "resident memory a connection", 1000},
	{"churn", "of it for each connection that was", 1000}, // its session is kept
	{"drain", "drain time", 10},
}

// A ranked figure is one of a report's.
type ranked struct {
	Part   string
	Figure *figure
}

// FirstRank is the figures of the first rank that were measured.
func (r *report) FirstRank() (figures []ranked) {
	for _, held := range firstRank {
		if f := r.find(held.part, held.figure); f != nil {
			figures = append(figures, ranked{held.part, f})
		}
	}
	return figures
}

// hold sets the project's targets for the scenarios that were run.
func (r *report) hold() {
	for _, held := range firstRank {
		switch f := r.find(held.part, held.figure); {
		case f != nil:
			f.Most = &held.most
		case slices.ContainsFunc(r.Parts, func(p *part) bool { return p.Name == held.part }):
			r.FellShort = append(r.FellShort, fmt.Sprintf("%s: %s is not known", held.part, held.figure))
		}
	}
}

// judge lists the figures that are not what they are held to.
func (r *report) judge() {
	for _, p := range r.Parts {
		for i := range p.Figures {
			if f := &p.Figures[i]; !f.OK() {
				r.FellShort = append(r.FellShort, strings.TrimSpace(fmt.Sprintf("%s: %s is %s %s", p.Name, f.Name, f.Shown(), f.Unit)))
			}
		}
	}
}
