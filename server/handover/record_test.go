package handover

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
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

func encode(version int, records ...Record) []byte {
	return appendAll(&codec{version: version}, records, (*Record).fields)
}

func decode(t testing.TB, version int, body []byte, fds int) (*Batch, error) {
	t.Helper()
	return (&Exchange{version: version}).batch(message{word: wordConnections, body: body, fds: make([]int, fds)})
}

// versions runs a test for each version.
func versions(t *testing.T, run func(t *testing.T, version int)) {
	for version := Oldest; version <= Newest; version++ {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) { run(t, version) })
	}
}

// ofVersion is the part of a record that a version has.
func ofVersion(version int, r Record) Record {
	if version == 1 {
		r.FrameTAT, r.Window, r.Parser.Compressed, r.Begun = 0, 0, false, 0
	}
	return r
}

// TestRecordRoundTrip sees every field of a record arrive: one that fields
// forgets is zero on the other side.
func TestRecordRoundTrip(t *testing.T) {
	lowest := filled(t)
	lowest.Frozen, lowest.RateTAT, lowest.Due = math.MinInt64, math.MaxInt64, math.MinInt
	lowest.Session.Count, lowest.Parser.Op = math.MaxUint64, math.MaxUint8
	versions(t, func(t *testing.T, version int) {
		want := []Record{ofVersion(version, filled(t)), {}, ofVersion(version, lowest)}
		got, err := readAll[Record](nil, version, encode(version, want...), (*Record).fields)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

func TestSessionRoundTrip(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		want := []Session{filled(t).Session, {}}
		body := appendAll(&codec{version: version}, want, (*Session).fields)
		got, err := (&Exchange{version: version}).batch(message{word: wordSessions, body: body})
		if err != nil || !reflect.DeepEqual(got.Sessions, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

// TestRecordsShareNoMemory: what is appended to one field must not run into the
// next.
func TestRecordsShareNoMemory(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		got, err := readAll[Record](nil, version, encode(version, filled(t)), (*Record).fields)
		if err != nil {
			t.Fatal(err)
		}
		r := &got[0]
		backlog := bytes.Clone(r.Backlog)
		r.Unparsed = append(r.Unparsed, "more than there was"...)
		if !bytes.Equal(r.Backlog, backlog) {
			t.Error("the backlog was overwritten by what came behind the unparsed bytes")
		}
	})
}

func TestRecordIsCutOff(t *testing.T) {
	versions(t, func(t *testing.T, version int) {
		body := encode(version, filled(t))
		for cut := 1; cut < len(body); cut++ {
			if _, err := decode(t, version, body[:cut], 1); err != errCut {
				t.Fatalf("cut at %d of %d: %v, want %v", cut, len(body), err, errCut)
			}
		}
		if _, err := decode(t, version, encode(version, Record{}), 2); err == nil {
			t.Error("one record with two file descriptors is no error")
		}
	})
}

// TestRecordDoesNotFit: lengths and positions in a record must fit the bytes in it.
func TestRecordDoesNotFit(t *testing.T) {
	frame := func(n byte, have int) []byte {
		return append([]byte{0x81, 0x80 | n, 2: 0}, make([]byte, have)...)[:have]
	}
	f := func(name string, fits bool, r Record) {
		t.Helper()
		if _, err := decode(t, Newest, encode(Newest, r), 1); (err == nil) != fits {
			t.Errorf("%s: %v", name, err)
		}
	}
	f("nothing", true, Record{})
	f("all of the backlog is due", true, Record{Backlog: make([]byte, 3), Due: 3})
	f("more than the backlog is due", false, Record{Backlog: make([]byte, 3), Due: 4})
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
	f("a window", true, Record{Window: 15})
	f("a window that is too small", false, Record{Window: 7})
	f("a window that is too large", false, Record{Window: 16})
	f("a compressed message", true, Record{Window: 8, Parser: Parser{Op: 1, Compressed: true}})
	f("the same without compression", false, Record{Parser: Parser{Op: 1, Compressed: true}})
	f("a compressed message that is not begun", false, Record{Window: 8, Parser: Parser{Compressed: true}})
	f("more than a character", false, Record{Parser: Parser{Tail: []byte("\xf0\x9f\x98\x80")}})
}

// TestLessThanNothingIsDue: a process of version 1 may write that.
func TestLessThanNothingIsDue(t *testing.T) {
	for version := Oldest; version <= Newest; version++ {
		b, err := decode(t, version, encode(version, Record{Due: -59}), 1)
		if err != nil || b.Records[0].Due != 0 {
			t.Errorf("version %d: %+v, %v, want that nothing is due", version, b, err)
		}
	}
}

// TestFieldDoesNotFit: a value that the field cannot have is no other value.
func TestFieldDoesNotFit(t *testing.T) {
	f := func(name string, body []byte, read func(*codec)) {
		t.Helper()
		c := &codec{version: 1, data: body, reading: true}
		if read(c); c.err != errValue {
			t.Errorf("%s: %v, want %v", name, c.err, errValue)
		}
	}
	f("a byte of 256", []byte{0x80, 2}, func(c *codec) { c.byte(1, new(uint8)) })
	f("a flag of 2", []byte{2}, func(c *codec) { c.flag(1, new(bool)) })
	f("an address of 15 bytes", append([]byte{15}, make([]byte, 15)...), func(c *codec) { c.array(1, new([16]byte)) })
	f("an address of 17 bytes", append([]byte{17}, make([]byte, 17)...), func(c *codec) { c.array(1, new([16]byte)) })
	f("an address of no bytes", []byte{0}, func(c *codec) { c.array(1, new([16]byte)) })

	tagged := func(name string, fields ...byte) {
		t.Helper()
		if _, err := readAll[Record](nil, 2, append([]byte{byte(len(fields))}, fields...), (*Record).fields); err != errValue {
			t.Errorf("%s: %v, want %v", name, err, errValue)
		}
	}
	tagged("a flag of 2", 3<<2, 2)
	tagged("a flag that is bytes", 3<<2|byte(isBytes), 1, 1)
	tagged("bytes that are an integer", 12<<2, 1)
	tagged("a field twice", 3<<2, 1, 3<<2, 1)
	tagged("an address of 15 bytes", append([]byte{4<<2 | byte(isBytes), 15}, make([]byte, 15)...)...)
}

// TestLastField: LastField is the number of a field, and none is higher.
func TestLastField(t *testing.T) {
	c := &codec{version: Newest, reading: true}
	body := encode(Newest, filled(t))
	_, c.data = body[0], body
	c.data = c.cutBytes()
	c.readTags()
	numbers := make(map[int]bool)
	for _, v := range c.values {
		numbers[v.tag.number()] = true
	}
	for number := 1; number <= LastField; number++ {
		if !numbers[number] {
			t.Errorf("no field has number %d", number)
		}
	}
	if len(numbers) != LastField || c.err != nil {
		t.Errorf("%d fields have numbers, want %d; %v", len(numbers), LastField, c.err)
	}
}

// TestLaterRecord: fields that a later version adds are left out, unless they must not be.
func TestLaterRecord(t *testing.T) {
	want := filled(t)
	one := &codec{version: Newest}
	want.fields(one)
	add := func(tags ...tag) []byte {
		later := slices.Clone(one.data)
		for _, tag := range tags {
			later = binary.AppendUvarint(later, uint64(tag))
			if tag&isBytes != 0 {
				later = append(later, 5, 'l', 'a', 't', 'e', 'r')
			} else {
				later = binary.AppendUvarint(later, math.MaxUint64)
			}
		}
		return append(binary.AppendUvarint(nil, uint64(len(later))), later...)
	}
	body := slices.Concat(add(90<<2), add(98<<2|isBytes, 4000<<2), encode(Newest, want))
	got, err := readAll[Record](nil, Newest, body, (*Record).fields)
	if err != nil || len(got) != 3 || !reflect.DeepEqual(got[0], want) || !reflect.DeepEqual(got[1], want) {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = decode(t, Newest, slices.Concat(encode(Newest, want), add(98<<2, 99<<2|isBytes|mustKnow)), 2)
	if unknown, ok := errors.AsType[*UnknownFieldError](err); !ok || unknown.Number != 99 || !strings.Contains(err.Error(), "field 99") {
		t.Errorf("got %v, want that field 99 is unknown", err)
	}
}

// TestCompressionMustBeKnown: who does not know the fields of compression must not take the
// connection, and takes all others.
func TestCompressionMustBeKnown(t *testing.T) {
	tags := func(r Record) (must []int) {
		c := &codec{version: Newest}
		r.fields(c)
		c.reading = true
		c.readTags()
		for _, v := range c.values {
			if v.tag&mustKnow != 0 {
				must = append(must, v.tag.number())
			}
		}
		return must
	}
	r := filled(t)
	if got := tags(r); !slices.Equal(got, []int{28, 29}) {
		t.Errorf("fields %v must be known, want 28 and 29", got)
	}
	r.Window, r.Parser.Compressed = 0, false
	if got := tags(r); got != nil {
		t.Errorf("without compression, fields %v must be known", got)
	}
}

// TestFirstVersion reads what a process of the first version wrote, and writes the same
// bytes for it: testdata/record-1.hex, of "fill" above, without the fields that are newer.
func TestFirstVersion(t *testing.T) {
	text, err := os.ReadFile("testdata/record-1.hex")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	records, err := readAll[Record](nil, 1, stored, (*Record).fields)
	if err != nil || len(records) != 1 {
		t.Fatalf("read %+v, %v", records, err)
	}
	if r := records[0]; r.Endpoint == "" || r.Due == 0 || r.Session.Rival == "" || !r.Session.Owned || r.Parser.Tail == nil {
		t.Errorf("fields are missing: %+v", r)
	}
	if again := encode(1, records...); !bytes.Equal(again, stored) {
		t.Errorf("written again it is\n%x, want\n%x", again, stored)
	}
}

// FuzzRecord reads anything: it takes no more memory than the bytes call for, what is
// read is written and read the same, and what is accepted points to nothing that is not
// there.
func FuzzRecord(f *testing.F) {
	for version := Oldest; version <= Newest; version++ {
		v := uint8(version)
		whole := encode(version, filled(f), Record{})
		f.Add(v, whole)
		f.Add(v, whole[:len(whole)-3])
		f.Add(v, []byte{})
		f.Add(v, bytes.Repeat([]byte{0xff}, 40))
		f.Add(v, append([]byte{0}, bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 3)...))
		f.Add(v, encode(version, Record{Due: -59}))
		f.Add(v, encode(version, Record{
			Unparsed: []byte{1, 0x83, 1, 2, 3, 4, 'a', 'b'}, Backlog: []byte("abc"), Due: 3,
			Parser: Parser{Op: 1, Message: []byte("x"), Seen: 2, Tail: []byte{0xe2, 0x82}},
		}))
	}
	f.Fuzz(func(t *testing.T, v uint8, body []byte) {
		version := Oldest + int(v)%(Newest-Oldest+1)
		records, err := readAll[Record](nil, version, body, (*Record).fields)
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
		again, err := readAll[Record](nil, version, encode(version, records...), (*Record).fields)
		if err != nil || !reflect.DeepEqual(again, records) {
			t.Fatalf("read %+v, written and read again %+v, %v", records, again, err)
		}
		if b, err := decode(t, version, body, len(records)); err == nil {
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
