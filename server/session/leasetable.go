package session

// A leaseTable is all leases of this process. They can be looked at some at a time, which
// a map does not allow. It needs some 15 bytes for each; a map and a slice would need 45.
type leaseTable struct {
	all     []*redisLease // in any order
	indexes [leaseIndexes]leaseIndex
}

// leaseIndexes is how many parts the index of a table has, so that it grows by little at
// once.
const leaseIndexes = 1 << leaseIndexBits

const leaseIndexBits = 6

// A leaseIndex finds leases by their IDs: it is a hash table with linear probing (Knuth, The
// Art of Computer Programming, 6.4, algorithm L). It has no keys of its own.
type leaseIndex struct {
	places []uint32 // in leaseTable.all, counted from 1; 0 where there is none
	len    int      // how many there are: at most three quarters of places
}

func (t *leaseTable) len() int { return len(t.all) }

// get is the lease with an ID; nil if there is none.
func (t *leaseTable) get(id leaseID) *redisLease {
	x := t.indexOf(id)
	if x.len == 0 {
		return nil
	}
	place := x.places[t.find(x, id)]
	if place == 0 {
		return nil
	}
	return t.all[place-1]
}

func (t *leaseTable) add(r *redisLease) {
	x := t.indexOf(r.token.lease)
	if 4*(x.len+1) > 3*len(x.places) {
		t.resize(x)
	}
	t.all = append(t.all, r)
	x.places[t.find(x, r.token.lease)] = uint32(len(t.all))
	x.len++
}

// remove removes r, and reports whether it was there. The last lease takes its place.
func (t *leaseTable) remove(r *redisLease) bool {
	if t.get(r.token.lease) != r {
		return false
	}
	x := t.indexOf(r.token.lease)
	at := t.find(x, r.token.lease)
	place, last := x.places[at], len(t.all)-1
	moved := t.all[last]
	y := t.indexOf(moved.token.lease)
	y.places[t.find(y, moved.token.lease)] = place
	t.all[place-1], t.all[last] = moved, nil
	t.all = t.all[:last]
	t.clear(x, at)
	return true
}

// hash spreads IDs, most of which are consecutive numbers of one process. Nobody else
// chooses them.
func (id leaseID) hash() uint64 {
	return (uint64(id.instance)<<32 | uint64(id.serial)) * 0x9e3779b97f4a7c15
}

func (t *leaseTable) indexOf(id leaseID) *leaseIndex {
	return &t.indexes[id.hash()>>(64-leaseIndexBits)]
}

// find is where the place of a lease stands in its index, or where it would stand.
func (t *leaseTable) find(x *leaseIndex, id leaseID) int {
	at := int(uint64(uint32(id.hash()>>8)) * uint64(len(x.places)) >> 32)
	for x.places[at] != 0 && t.all[x.places[at]-1].token.lease != id {
		at = x.next(at)
	}
	return at
}

func (x *leaseIndex) next(at int) int { return (at + 1) % len(x.places) }

// clear removes what stands in an index, and puts what follows where it is found again.
func (t *leaseTable) clear(x *leaseIndex, at int) {
	x.places[at] = 0
	x.len--
	for at = x.next(at); x.places[at] != 0; at = x.next(at) {
		place := x.places[at]
		x.places[at] = 0
		x.places[t.find(x, t.all[place-1].token.lease)] = place
	}
}

// resize gives an index room for one more lease, and half as many more as it has.
func (t *leaseTable) resize(x *leaseIndex) {
	old := x.places
	x.places = make([]uint32, 2*(x.len+1))
	for _, place := range old {
		if place != 0 {
			x.places[t.find(x, t.all[place-1].token.lease)] = place
		}
	}
}

// shrink gives the table the memory that its leases need. between is called as visit does.
func (s *Redis) shrink(between func()) {
	t := &s.leases
	all := make([]*redisLease, 0, s.Len()) // without the lock
	for i := range t.indexes {
		s.mu.Lock()
		t.resize(&t.indexes[i])
		s.mu.Unlock()
		between()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.all = append(all, t.all...)
}
