package handover

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// A codec writes records of one version to data, or reads them from it.
//
// Version 1 is all fields of all records, one behind the other. From version 2 on, a
// record is its length, and its fields that are not zero, each behind its tag. So a
// reader finds its way round what it does not know. All integers are varints, as
// encoding/binary has them.
type codec struct {
	version int
	data    []byte
	reading bool
	mark    tag     // mustKnow for the fields that are written
	err     error   // of reading
	values  []value // of the record that is read; the next one uses its memory
}

// A tag is the number of a field, and how to read it:
//
//	bit 0   its value is a length and so many bytes, and no integer
//	bit 1   mustKnow
//	others  the number
type tag uint64

const (
	isBytes  tag = 1
	mustKnow tag = 2 // a reader that does not know the field must not take the record
)

func (t tag) number() int { return int(min(t>>2, math.MaxInt32)) }

// A value is what stands behind a tag.
type value struct {
	tag     tag
	integer uint64
	bytes   []byte
	isKnown bool // its field was asked for
}

var (
	errCut   = errors.New("a record is cut off")
	errValue = errors.New("a record holds a value that its field cannot have")
)

// isTagged reports whether fields have tags.
func (c *codec) isTagged() bool { return c.version > 1 }

// fail ends reading.
func (c *codec) fail(err error) {
	c.data, c.values = nil, nil
	if c.err == nil {
		c.err = err
	}
}

// appendAll appends records, or sessions.
func appendAll[T any](c *codec, all []T, fields func(*T, *codec)) []byte {
	one := codec{version: c.version}
	for i := range all {
		if !c.isTagged() {
			fields(&all[i], c)
			continue
		}
		one.data = one.data[:0]
		fields(&all[i], &one)
		c.data = append(binary.AppendUvarint(c.data, uint64(len(one.data))), one.data...)
	}
	return c.data
}

// readAll reads records, or sessions, to the end of data, into the memory of all. Their
// bytes are a part of data.
func readAll[T any](all []T, version int, data []byte, fields func(*T, *codec)) ([]T, error) {
	c, one := codec{version: version, data: data, reading: true}, codec{version: version, reading: true}
	all = all[:0]
	for len(c.data) > 0 && one.err == nil {
		all = append(all, *new(T))
		record := &all[len(all)-1]
		if !c.isTagged() {
			fields(record, &c)
			continue
		}
		one.data, one.values = c.cutBytes(), one.values[:0]
		one.readTags()
		fields(record, &one)
		one.checkUnknown()
	}
	return all, cmp.Or(c.err, one.err)
}

// readTags reads the values of a record.
func (c *codec) readTags() {
	for len(c.data) > 0 {
		v := value{tag: tag(c.cut())}
		if v.tag&isBytes != 0 {
			v.bytes = c.cutBytes()
		} else {
			v.integer = c.cut()
		}
		if c.find(v.tag.number()) != nil {
			c.fail(errValue) // it is there twice
		}
		if c.err == nil {
			c.values = append(c.values, v)
		}
	}
}

func (c *codec) find(number int) *value {
	for i := range c.values {
		if c.values[i].tag.number() == number {
			return &c.values[i]
		}
	}
	return nil
}

// checkUnknown refuses a record with a field that must be known, and that nobody has
// asked for.
func (c *codec) checkUnknown() {
	for _, v := range c.values {
		if v.tag&mustKnow != 0 && !v.isKnown {
			c.fail(&UnknownFieldError{v.tag.number()})
			return
		}
	}
}

// An UnknownFieldError says that a record has a field that its reader must know and does
// not.
type UnknownFieldError struct{ Number int }

func (e *UnknownFieldError) Error() string {
	return fmt.Sprintf("a record has field %d, which this version does not know and must not leave out", e.Number)
}

// cut takes an integer from the front of data.
func (c *codec) cut() uint64 {
	n, size := binary.Uvarint(c.data)
	if size <= 0 {
		c.fail(errCut)
		return 0
	}
	c.data = c.data[size:]
	return n
}

// cutBytes takes a length and so many bytes from the front of data; nil for none.
func (c *codec) cutBytes() (b []byte) {
	switch length := c.cut(); {
	case length > uint64(len(c.data)):
		c.fail(errCut)
	case length > 0:
		b, c.data = c.data[:length:length], c.data[length:]
	}
	return b
}

// take returns the value of a field, whose kind is 0 or isBytes; zero if the record does
// not have it.
func (c *codec) take(number int, kind tag) value {
	v := c.find(number)
	switch {
	case v == nil:
		return value{}
	case v.tag&isBytes != kind:
		c.fail(errValue)
		return value{}
	}
	v.isKnown = true
	return *v
}

// tag appends the tag of a field, if there are tags.
func (c *codec) tag(number int, kind tag) {
	if c.isTagged() {
		c.data = binary.AppendUvarint(c.data, uint64(number)<<2|uint64(kind|c.mark))
	}
}

func (c *codec) number(number int, n *uint64) {
	switch {
	case c.reading && c.isTagged():
		*n = c.take(number, 0).integer
	case c.reading:
		*n = c.cut()
	case *n != 0 || !c.isTagged():
		c.tag(number, 0)
		c.data = binary.AppendUvarint(c.data, *n)
	}
}

func (c *codec) bytes(number int, b *[]byte) {
	switch {
	case c.reading && c.isTagged():
		*b = c.take(number, isBytes).bytes
	case c.reading:
		*b = c.cutBytes()
	case len(*b) > 0 || !c.isTagged():
		c.tag(number, isBytes)
		c.data = append(binary.AppendUvarint(c.data, uint64(len(*b))), *b...)
	}
}

// signed is number in zigzag form.
func (c *codec) signed(number int, n *int64) {
	folded := uint64(*n)<<1 ^ uint64(*n>>63)
	c.number(number, &folded)
	*n = int64(folded>>1) ^ -int64(folded&1)
}

func (c *codec) int(number int, n *int) {
	wide := int64(*n)
	c.signed(number, &wide)
	*n = int(wide)
}

func (c *codec) duration(number int, d *time.Duration) { c.signed(number, (*int64)(d)) }

func (c *codec) byte(number int, b *uint8) {
	wide := uint64(*b)
	c.number(number, &wide)
	if wide > math.MaxUint8 {
		c.fail(errValue)
	}
	*b = uint8(wide)
}

func (c *codec) flag(number int, f *bool) {
	var b uint8
	if *f {
		b = 1
	}
	c.byte(number, &b)
	if b > 1 {
		c.fail(errValue)
	}
	*f = b == 1
}

func (c *codec) array(number int, a *[16]byte) {
	b := a[:]
	if c.isTagged() && *a == [16]byte{} {
		b = nil
	}
	c.bytes(number, &b)
	switch {
	case len(b) == len(a):
		copy(a[:], b)
	case len(b) > 0 || !c.isTagged():
		c.fail(errValue)
	}
}

func (c *codec) text(number int, s *string) {
	b := []byte(*s)
	c.bytes(number, &b)
	*s = string(b)
}
