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
	got, err := readAll(encode(want...), (*Record).fields)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
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
	got, err := readAll(encode(filled(t)), (*Record).fields)
	if err != nil {
		t.Fatal(err)
	}
	r := &got[0]
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
	if _, err := decode(t, encode(Record{}), 2); err == nil {
		t.Error("one record with two file descriptors is no error")
	}
}

// TestRecordDoesNotFit: lengths and positions in a record must fit the bytes in it.
func TestRecordDoesNotFit(t *testing.T) {
	frame := func(n byte, have int) []byte {
		return append([]byte{0x81, 0x80 | n, 2: 0}, make([]byte, have)...)[:have]
	}
	f := func(name string, fits bool, r Record) {
		t.Helper()
		if _, err := decode(t, encode(r), 1); (err == nil) != fits {
			t.Errorf("%s: %v", name, err)
		}
	}
	f("nothing", true, Record{})
	f("all of the backlog is due", true, Record{Backlog: make([]byte, 3), Due: 3})
	f("more than the backlog is due", false, Record{Backlog: make([]byte, 3), Due: 4})
	f("less than nothing is due", false, Record{Due: -1})
	seen := func(frame []byte, seen int) Record { return Record{Unparsed: frame, Parser: Parser{Seen: seen}} }
	f("all of a short frame is checked", true, seen(frame(100, 20), 14))
	f("its header too", false, seen(frame(100, 20), 15))
	f("all of a longer frame", true, seen(frame(126, 20), 12))
	f("its header too", false, seen(frame(126, 20), 13))
	f("all of the longest frame", true, seen(frame(127, 20), 6))
	f("its header too", false, seen(frame(127, 20), 7))
	f("a frame that is not there", false, seen(nil, 1))
	f("less than nothing is checked", false, seen(frame(100, 20), -1))
	f("fragments of text", true, Record{Parser: Parser{Op: 1, Message: []byte("x")}})
	f("fragments of a close", false, Record{Parser: Parser{Op: 8, Message: []byte("x")}})
	f("fragments of nothing", false, Record{Parser: Parser{Message: []byte("x")}})
	f("three bytes of a character", true, Record{Parser: Parser{Tail: []byte("\xf0\x9f\x98")}})
	f("more than a character", false, Record{Parser: Parser{Tail: []byte("\xf0\x9f\x98\x80")}})
}

// TestFieldDoesNotFit: a value that the field cannot have is no other value.
func TestFieldDoesNotFit(t *testing.T) {
	f := func(name string, body []byte, read func(*codec)) {
		t.Helper()
		c := &codec{data: body, reading: true}
		if read(c); c.err != errValue {
			t.Errorf("%s: %v, want %v", name, c.err, errValue)
		}
	}
	f("a byte of 256", []byte{0x80, 2}, func(c *codec) { c.byte(new(uint8)) })
	f("a flag of 2", []byte{2}, func(c *codec) { c.flag(new(bool)) })
	f("an address of 15 bytes", append([]byte{15}, make([]byte, 15)...), func(c *codec) { c.array(new([16]byte)) })
	f("an address of 17 bytes", append([]byte{17}, make([]byte, 17)...), func(c *codec) { c.array(new([16]byte)) })
}

// FuzzRecord reads anything: it takes no more memory than the bytes call for, what is
// read is written and read the same, and what is accepted points to nothing that is not
// there.
func FuzzRecord(f *testing.F) {
	whole := encode(filled(f), Record{})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Add(append([]byte{0}, bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 3)...))
	f.Add(encode(Record{
		Unparsed: []byte{1, 0x83, 1, 2, 3, 4, 'a', 'b'}, Backlog: []byte("abc"), Due: 3,
		Parser: Parser{Op: 1, Message: []byte("x"), Seen: 2, Tail: []byte{0xe2, 0x82}},
	}))
	f.Fuzz(func(t *testing.T, body []byte) {
		records, err := readAll(body, (*Record).fields)
		held := 0
		for _, r := range records {
			held += len(r.Endpoint) + len(r.Unparsed) + len(r.Backlog) +
				len(r.Parser.Message) + len(r.Parser.Tail) + len(r.Session.Token) + len(r.Session.Rival)
		}
		if len(records) > len(body) || held > len(body) {
			t.Fatalf("%d bytes are read as %d records that hold %d", len(body), len(records), held)
		}
		if err != nil {
			return
		}
		again, err := readAll(encode(records...), (*Record).fields)
		if err != nil || !reflect.DeepEqual(again, records) {
			t.Fatalf("read %+v, written and read again %+v, %v", records, again, err)
		}
		if b, err := decode(t, body, len(records)); err == nil {
			for i := range b.Records {
				goOn(&b.Records[i])
			}
		}
	})
}

// goOn slices what a process slices that goes on with the connection; it panics if the
// record points beyond its bytes.
func goOn(r *Record) {
	_ = r.Backlog[:r.Due]
	if r.Parser.Seen > 0 {
		_ = r.Unparsed[frameHeaderBytes(r.Unparsed):][r.Parser.Seen:]
	}
	_ = make([]byte, 3-len(r.Parser.Tail))
}
