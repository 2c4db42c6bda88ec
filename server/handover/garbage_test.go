package handover

import (
	"runtime"
	"testing"
	"time"
)

// The heap of a process with few connections is small, and collected after each megabyte:
// so what a handover leaves behind is paid for with pauses.
func TestBatchesMakeLittleGarbage(t *testing.T) {
	const connections, batches = 64, 50
	const most = 150 // bytes for each connection: its strings, and file descriptors
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
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range batches {
		give()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / (connections * batches); each > most {
		t.Errorf("%d bytes of garbage for each connection, want at most %d", each, most)
	}
}
