package handover

import (
	"bytes"
	"math"
	"reflect"
	"runtime"
	"testing"
	"time"
)

// A batch uses the memory of the one before, on both sides.
func TestBatchesMakeLittleGarbage(t *testing.T) {
	const connections, batches, groups = 32, 10, 5
	const most = 210 // bytes for each connection: its strings, and file descriptors
	giver, taker := pair(t)
	records := make([]Record, connections)
	for i := range records {
		records[i] = Record{Endpoint: "/ws/chat/", Frozen: time.Hour, Session: Session{ID: [16]byte{1}, Token: "blue-1", Held: true}}
	}
	r, _ := pipes(t, connections)
	give := func() {
		took := taking(taker)
		if given, err := giver.OfferConnections(records, r); !given || err != nil {
			t.Fatal(given, err)
		}
		b := await(t, "the batch", took)
		if b.err != nil || len(b.batch.Records) != connections {
			t.Fatalf("%+v", b)
		}
		closeAll(b.batch.FDs)
	}
	give() // it takes the memory that the others use again
	least := uint64(math.MaxUint64)
	for range groups { // what else the process does makes garbage in some of them
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range batches {
			give()
		}
		runtime.ReadMemStats(&after)
		least = min(least, (after.TotalAlloc-before.TotalAlloc)/(connections*batches))
	}
	if least > most {
		t.Errorf("%d bytes of garbage for each connection, want at most %d", least, most)
	}
}

// A large batch is followed by small ones, and others by none.
func TestBatchesOfDifferentSizes(t *testing.T) {
	giver, taker := pair(t)
	r, _ := pipes(t, 3)
	full := filled(t)
	full.Parser, full.Due, full.Window = Parser{}, 0, 0
	long := Record{Endpoint: "/ws/chat/", Unparsed: bytes.Repeat([]byte("long"), 300_000)}
	for _, records := range [][]Record{{full, full, full}, {{}, {}}, {long, full, {}}, {{Endpoint: "/"}}, {full, full}} {
		took := taking(taker)
		if given, err := giver.OfferConnections(records, r[:len(records)]); !given || err != nil {
			t.Fatal(given, err)
		}
		b := await(t, "the batch", took)
		if b.err != nil {
			t.Fatal(b.err)
		}
		if !reflect.DeepEqual(b.batch.Records, records) {
			t.Errorf("got %.200v, want %.200v", b.batch.Records, records)
		}
		closeAll(b.batch.FDs)
	}
	took := taking(taker)
	if err := giver.Done(); err != nil {
		t.Fatal(err)
	}
	if b := await(t, "the end", took); b.batch != nil || b.err != nil {
		t.Errorf("%+v after the last batch", b)
	}
	if taker.received != nil || taker.records != nil {
		t.Errorf("the memory of %d bytes and %d records is kept after the last batch", cap(taker.received), cap(taker.records))
	}
}
