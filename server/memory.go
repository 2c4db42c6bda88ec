package main

import "runtime/debug"

// onSecond drops what is over; the acceptor's loop calls it once a second.
func (s *server) onSecond() {
	if s.memory != nil {
		s.memory.Expire()
	}
	if len(s.giving) > 0 {
		return // it gives its connections, and most likely ends: that would only stretch the pauses
	}
	connections := s.connections()
	fewerConnections := s.connectionPeak.hasHalved(connections)
	fewerSessions := s.sessionPeak.hasHalved(s.store.Len())
	waveIsOver := s.wave.isOver(connections)
	if fewerConnections || fewerSessions || waveIsOver {
		go s.returnMemory() // it waits for the loops, and a collection takes some milliseconds
	}
}

// returnMemory gives the memory of connections and sessions that have gone, and the garbage
// of those that have come, back to the system. The Go runtime alone would take minutes for
// that, and keep a share.
func (s *server) returnMemory() {
	s.engine.Shrink()
	s.store.Shrink()
	debug.FreeOSMemory()
}

// A peak is how many of something there were at the most since it last halved.
type peak int

// leastGone is how many must have gone at least: the memory of fewer, half a megabyte,
// is not worth a collection.
const leastGone = 1000

// hasHalved reports whether half of them have gone, now that there are n.
func (p *peak) hasHalved(n int) bool {
	*p = max(*p, peak(n))
	gone := int(*p) - n
	if gone < leastGone || gone < n {
		return false
	}
	*p = peak(n)
	return true
}

// A wave is many connections that come within a short time. An upgrade makes garbage, and
// messages make none. So what the last upgrades have left, up to half of all that is alive,
// would stay for as long as nobody else comes.
type wave struct {
	before int // how many connections there were a second ago
	rest   int // how many there were after the last wave, or since then if that is fewer
}

// leastCome is how many must have come at least: the garbage of fewer, some 100 kB, is not
// worth a collection.
const leastCome = 1000

// isOver reports whether half as many again have come, and hardly any more come. It is called
// once a second, with how many there are now.
func (w *wave) isOver(n int) bool {
	comes := n-w.before > n/100
	w.before, w.rest = n, min(w.rest, n)
	if come := n - w.rest; comes || come < leastCome || come < w.rest/2 {
		return false
	}
	w.rest = n
	return true
}
