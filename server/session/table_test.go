package session

import (
	"math/rand/v2"
	"testing"
)

// TestTable compares a table with a map. It puts, replaces, removes and resizes at random.
func TestTable(t *testing.T) {
	var tab table
	naive := make(map[ID]*Lease)
	for range 20_000 {
		id := numbered(rand.IntN(1000))
		if l := tab.find(id); l != naive[id] {
			t.Fatalf("%v is %p, want %p", id, l, naive[id])
		}
		switch {
		case naive[id] != nil && rand.IntN(2) == 0:
			tab.remove(id)
			delete(naive, id)
		case rand.IntN(1000) == 0:
			tab.resize()
		default:
			l := &Lease{id: id}
			tab.put(l)
			naive[id] = l
		}
	}
	found := 0
	for l := range tab.all {
		if found++; naive[l.id] != l {
			t.Errorf("%v is %p, want %p", l.id, l, naive[l.id])
		}
	}
	if found != len(naive) || tab.len != len(naive) {
		t.Errorf("%d leases are found and %d counted, want %d", found, tab.len, len(naive))
	}
}

// TestTableOfChosenIDs: clients choose IDs, and cannot make long chains by that.
func TestTableOfChosenIDs(t *testing.T) {
	m, _ := newMemory(10_000)
	for n := range 10_000 { // all that an ID without a hash would put into one shard
		claim(t, m, ID{0: byte(n), 1: byte(n >> 8)}, 0, false)
	}
	for i := range m.shards {
		if n := m.shards[i].sessions.len; n > 1000 {
			t.Errorf("%d sessions of 10,000 are in one of %d shards", n, shards)
		}
	}
}

// TestMemoryOfAnIdleSession: a session that nobody holds is 80 bytes and its place in the
// table.
func TestMemoryOfAnIdleSession(t *testing.T) {
	const n = 100_000
	m, _ := newMemory(n)
	before := heapInUse()
	for range n {
		var l Lease
		if err := m.Mint(&l, nobody); err != nil {
			t.Fatal(err)
		}
		m.Release(&l)
	}
	each := (heapInUse() - before) / n
	t.Logf("%d bytes", each)
	if m.Len() != n || each > 100 {
		t.Errorf("%d sessions take %d bytes each, want 100 at most", m.Len(), each)
	}
}
