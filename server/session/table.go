package session

import "hash/maphash"

// A table finds leases by their session. It links them through a field of their own, so
// that a session costs it about six bytes; an entry of a Go map would cost forty. The
// zero table is empty.
type table struct {
	buckets []*Lease // chains, by the session's hash; a power of two of them
	len     int
}

// chainMost is how many leases a bucket has, on average, before there are more buckets.
const chainMost = 2

// seed keeps clients, who choose IDs, from putting all theirs into one bucket.
var seed = maphash.MakeSeed()

// hash is of which shard and bucket a session is: the low bits say the shard.
func (id *ID) hash() uint64 { return maphash.Bytes(seed, id[:]) }

// find is the lease on a session; nil if there is none.
func (t *table) find(id ID) *Lease {
	if t.len == 0 {
		return nil
	}
	return *t.link(id)
}

// link is what points to the lease on a session, or to nil where it would be.
func (t *table) link(id ID) **Lease {
	link := &t.buckets[id.hash()/shards%uint64(len(t.buckets))]
	for *link != nil && (*link).id != id {
		link = &(*link).next
	}
	return link
}

// put adds a lease on a session that has none, or takes the place of the lease that the
// session has.
func (t *table) put(l *Lease) {
	if t.len >= chainMost*len(t.buckets) {
		t.resize()
	}
	link := t.link(l.id)
	before := *link
	*link = l
	if before == nil {
		t.len++
		return
	}
	l.next, before.next = before.next, nil
}

// remove removes the lease on a session that has one.
func (t *table) remove(id ID) {
	link := t.link(id)
	gone := *link
	*link, gone.next = gone.next, nil
	t.len--
}

// all calls yield with every lease, until it returns false.
func (t *table) all(yield func(*Lease) bool) {
	for _, l := range t.buckets {
		for l != nil {
			next := l.next
			if !yield(l) {
				return
			}
			l = next
		}
	}
}

// resize gives the table a bucket for each lease.
func (t *table) resize() {
	buckets := 1
	for buckets < t.len {
		buckets *= 2
	}
	old := table{buckets: t.buckets}
	t.buckets = make([]*Lease, buckets)
	for l := range old.all {
		l.next = nil
		*t.link(l.id) = l
	}
}
