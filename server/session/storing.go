package session

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// A storeCommand is the SET that stores a count, as go-redis sends it. It is used again
// with its arguments and the memory of its reply, so that a commit leaves no garbage.
// Redis's answer is written into it as it came: go-redis's other types make a string of
// each OK.
type storeCommand struct {
	*redis.RawWriteToCmd // writes what Redis answers into reply

	key    recordKeyBytes
	count  uint64
	millis int64 // the record's time to live
	reply  []byte
}

// recordKeyBytes is a key that go-redis writes without a string.
type recordKeyBytes []byte

// MarshalBinary implements encoding.BinaryMarshaler.
func (k *recordKeyBytes) MarshalBinary() ([]byte, error) { return *k, nil }

func newStoreCommand(ctx context.Context) *storeCommand {
	c := new(storeCommand)
	c.RawWriteToCmd = redis.NewRawWriteToCmd(ctx, c, storeArgs(&c.key, &c.count, &c.millis)...)
	return c
}

// set makes c the command that stores a count.
func (c *storeCommand) set(id ID, do *command) {
	c.key = appendRecordKey(c.key[:0], id, do.token)
	c.count, c.millis = do.count, do.ttl.Milliseconds()
	c.reply = c.reply[:0]
	c.SetErr(nil)
}

// appendTo appends the command as it is sent. See "RESP protocol spec" in Redis's documentation.
func (c *storeCommand) appendTo(buf []byte) []byte {
	args := c.Args()
	buf = appendHeader(buf, '*', len(args))
	var space [128]byte // a key has 85 bytes at the most
	for _, arg := range args {
		text := appendArg(space[:0], arg)
		buf = append(append(appendHeader(buf, '$', len(text)), text...), "\r\n"...)
	}
	return buf
}

// appendHeader appends the type and the length of what follows.
func appendHeader(buf []byte, kind byte, length int) []byte {
	return append(strconv.AppendInt(append(buf, kind), int64(length), 10), "\r\n"...)
}

// appendArg appends one of storeArgs.
func appendArg(buf []byte, arg any) []byte {
	switch a := arg.(type) {
	case string:
		return append(buf, a...)
	case *recordKeyBytes:
		return append(buf, *a...)
	case *uint64:
		return strconv.AppendUint(buf, *a, 10)
	case *int64:
		return strconv.AppendInt(buf, *a, 10)
	}
	panic(fmt.Sprintf("BUG: an argument of type %T", arg))
}

// Write implements io.Writer, for a part of the reply.
func (c *storeCommand) Write(p []byte) (int, error) {
	c.reply = append(c.reply, p...)
	return len(p), nil
}

// Err is nil if the count is stored, and redis.Nil if the record is not there.
func (c *storeCommand) Err() error {
	text := bytes.TrimSuffix(c.reply, []byte("\r\n"))
	switch err := c.RawWriteToCmd.Err(); {
	case err != nil:
		return err
	case string(text) == "+OK":
		return nil
	case string(text) == "$-1":
		return redis.Nil
	case bytes.HasPrefix(text, []byte("-")):
		return refusal(text[1:])
	}
	return errNoAnswer // of a pipeline that was not carried out
}

// A refusal is an error that Redis has answered. It implements redis.Error.
type refusal string

func (r refusal) Error() string { return string(r) }

// RedisError implements redis.Error.
func (refusal) RedisError() {}

// storeCommands are the commands that the pipelines of one connection use again. Whose it is
// owns them. It uses none again before the answers to the whole pipeline have come: then all
// of it has been written. What was in a pipeline that failed is
// never used again, so it does not matter what a lost connection still does with it.
type storeCommands struct {
	all  []*storeCommand
	used int // of all, by the pipeline
}

// take returns a command that no pipeline has.
func (s *storeCommands) take(ctx context.Context) *storeCommand {
	if s.used == len(s.all) {
		s.all = append(s.all, newStoreCommand(ctx))
	}
	s.used++
	return s.all[s.used-1]
}

// takeBack ends the pipeline that has the commands.
func (s *storeCommands) takeBack(failure error) {
	if failure != nil {
		s.all = nil
	}
	s.used = 0
}
