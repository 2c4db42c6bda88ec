package main

import "runtime/debug"

// onSecond drops what is over; the acceptor's loop calls it once a second.
func (s *server) onSecond() {
	if s.memory != nil {
		s.memory.Expire()
	}
	fewerConnections := s.connectionPeak.hasHalved(s.connections())
	fewerSessions := s.sessionPeak.hasHalved(s.store.Len())
	if fewerConnections || fewerSessions {
		go s.returnMemory() // it waits for the loops, and a collection takes some milliseconds
	}
}

// returnMemory gives the memory of connections and sessions that have gone back to the
// system. The Go runtime alone would take minutes for that, and keep a share.
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
