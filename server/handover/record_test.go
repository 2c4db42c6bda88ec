package handover

import (
	"bytes"
	"math"
	"reflect"
	"testing"
	"time"
)

// fill sets every field of a struct, and of those within it, to a value of its
// own that is not zero.
func fill(t testing.TB, v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Slice:
		v.SetBytes(bytes.Repeat([]byte{byte(*n)}, int(*n)))
	case reflect.String:
		v.SetString("field " + time.Duration(*n).String())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-*n << 20)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		t.Fatalf("a field of kind %v: the test has to learn it", v.Kind())
	}
}

func filled(t testing.TB) (r Record) {
	n := int64(0)
	fill(t, reflect.ValueOf(&r).Elem(), &n)
	return r
}

func encode(records ...Record) []byte {
	c := new(codec)
	for i := range records {
		records[i].fields(c)
	}
	return c.data
}

func decode(t testing.TB, body []byte, fds int) (*Batch, error) {
	t.Helper()
	return (&message{word: wordConnections, body: body, fds: make([]int, fds)}).batch()
}

// TestRecordRoundTrip sees every field of a record arrive: one that fields
// forgets is zero on the other side.
func TestRecordRoundTrip(t *testing.T) {
	lowest := filled(t)
	lowest.Frozen, lowest.RateTAT, lowest.Due = math.MinInt64, math.MaxInt64, math.MinInt
	lowest.Session.Count, lowest.Parser.Op = math.MaxUint64, math.MaxUint8
	want := []Record{filled(t), {}, lowest}
	got, err := decode(t, encode(want...), len(want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Records, want) {
		t.Errorf("got  %+v\nwant %+v", got.Records, want)
	}
}

func TestSessionRoundTrip(t *testing.T) {
	want := []Session{filled(t).Session, {}}
	c := new(codec)
	for i := range want {
		want[i].fields(c)
	}
	got, err := (&message{word: wordSessions, body: c.data}).batch()
	if err != nil || !reflect.DeepEqual(got.Sessions, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// TestRecordsShareNoMemory: what is appended to one field must not run into the
// next.
func TestRecordsShareNoMemory(t *testing.T) {
	got, err := decode(t, encode(filled(t)), 1)
	if err != nil {
		t.Fatal(err)
	}
	r := &got.Records[0]
	backlog := bytes.Clone(r.Backlog)
	r.Unparsed = append(r.Unparsed, "more than there was"...)
	if !bytes.Equal(r.Backlog, backlog) {
		t.Error("the backlog was overwritten by what came behind the unparsed bytes")
	}
}

func TestRecordIsCutOff(t *testing.T) {
	body := encode(filled(t))
	for cut := 1; cut < len(body); cut++ {
		if _, err := decode(t, body[:cut], 1); err != errCut {
			t.Fatalf("cut at %d of %d: %v, want %v", cut, len(body), err, errCut)
		}
	}
	if _, err := decode(t, body, 2); err == nil {
		t.Error("one record with two file descriptors is no error")
	}
}

// FuzzRecord reads anything: it takes no more memory than the bytes call for,
// and what is read is written and read the same.
func FuzzRecord(f *testing.F) {
	whole := encode(filled(f), Record{})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Add(append([]byte{0}, bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 3)...))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := &codec{data: body, reading: true}
		var records []Record
		held := 0
		for len(c.data) > 0 {
			var r Record
			r.fields(c)
			records = append(records, r)
			held += len(r.Endpoint) + len(r.Unparsed) + len(r.Backlog) +
				len(r.Parser.Message) + len(r.Parser.Tail) + len(r.Session.Token) + len(r.Session.Rival)
		}
		if len(records) > len(body) || held > len(body) {
			t.Fatalf("%d bytes are read as %d records that hold %d", len(body), len(records), held)
		}
		if c.err != nil {
			return
		}
		again, err := decode(t, encode(records...), len(records))
		if err != nil || !reflect.DeepEqual(again.Records, records) {
			t.Fatalf("read %+v, written and read again %+v, %v", records, again, err)
		}
	})
}
