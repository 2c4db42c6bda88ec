// Package uplot is the chart library of the console and of bench's report:
// uPlot 1.6.32, as npm serves it (dist/ of the package uplot), by Leon Sorokin
// and under the licence beside it. It is here once, since a Go package can
// embed only what is in its own folder.
package uplot

import _ "embed"

// Script defines the global uPlot.
//
//go:embed uPlot.iife.min.js
var Script []byte

// Style is the style sheet that the charts need.
//
//go:embed uPlot.min.css
var Style []byte
