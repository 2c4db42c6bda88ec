//go:build race

package main

// raceEnabled says that the race detector is in this build, which slows
// everything down tenfold and allocates.
const raceEnabled = true
