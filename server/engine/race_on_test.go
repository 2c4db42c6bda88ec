//go:build race

package engine

// raceEnabled says that the race detector is in this build, which slows
// everything down tenfold and allocates.
const raceEnabled = true
