package session

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"
)

// TestSizeOfALease: an idle connection is to cost little, and each has a lease. A lease of
// a byte more would take 112. A table grows by a half, so it is measured where it is full
// and where it has just grown.
func TestSizeOfALease(t *testing.T) {
	if size := unsafe.Sizeof(redisLease{}); size > 96 {
		t.Errorf("a lease takes %d bytes, of which there is one for each connection", size)
	}
	for _, n := range []int{10_000, 13_000} {
		before := heapInUse()
		s, _ := withLeases(n)
		if each := (heapInUse() - before) / int64(n); each > 96+20 {
			t.Errorf("%d leases in a table take %d bytes each", n, each)
		}
		runtime.KeepAlive(s)
	}
}

// A table of leases finds what a map finds, whatever process the leases come from.
func TestLeaseTable(t *testing.T) {
	var table leaseTable
	model := make(map[leaseID]*redisLease)
	random := rand.New(rand.NewPCG(1, 0))
	for n := range 20_000 {
		id := leaseID{instance: uint32(random.IntN(3)) << 16, serial: uint32(random.IntN(1500))}
		known := model[id]
		if got := table.get(id); got != known {
			t.Fatalf("step %d: lease %v is %p, want %p", n, id, got, known)
		}
		if known == nil {
			r := &redisLease{ownership: ownership{token: token{lease: id}}}
			if table.remove(r) {
				t.Fatalf("step %d: lease %v was removed, and is not there", n, id)
			}
			table.add(r)
			model[id] = r
		} else {
			if other := *known; table.remove(&other) || !table.remove(known) || table.remove(known) {
				t.Fatalf("step %d: lease %v was not removed, or twice, or in place of another", n, id)
			}
			delete(model, id)
		}
	}
	if table.len() != len(model) {
		t.Errorf("%d leases, want %d", table.len(), len(model))
	}
	for _, r := range table.all {
		if model[r.token.lease] != r {
			t.Errorf("lease %v is in the table, and should not be", r.token.lease)
		}
	}
}

// Leases with consecutive numbers, of one process or of two, do not crowd in one part of a
// table.
func TestLeaseTableIsEven(t *testing.T) {
	var table leaseTable
	const n = 20_000
	for serial := range uint32(n) {
		table.add(&redisLease{ownership: ownership{token: token{lease: leaseID{serial % 2 << 20, serial / 2}}}})
	}
	for i := range table.indexes {
		x := &table.indexes[i]
		if x.len > 2*n/leaseIndexes {
			t.Errorf("part %d has %d leases, of %d in %d parts", i, x.len, n, leaseIndexes)
		}
		run := 0
		for _, place := range x.places {
			if run++; place == 0 {
				run = 0
			}
			if run > 100 {
				t.Fatalf("part %d has more than 100 leases in a row", i)
			}
		}
	}
}
