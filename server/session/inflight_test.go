package session

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// What each command of a renewal says is looked at.
func TestAnswerToARenewal(t *testing.T) {
	f := func(what string, renewed, stored error, isThere bool, want answerKind) {
		t.Helper()
		ctx := t.Context()
		pexpire, set := redis.NewBoolCmd(ctx), newStoreCommand(ctx)
		pexpire.SetVal(isThere)
		pexpire.SetErr(renewed)
		set.SetErr(stored)
		if stored == nil {
			set.Write([]byte("+OK\r\n"))
		}
		command := inFlight{command: command{phase: phaseOwned, renew: true}, renewed: pexpire, sent: set}
		if got, err := command.answer(); got.kind != want || (err == nil) != (renewed == nil && (stored == nil || stored == redis.Nil)) {
			t.Errorf("%s: answer %v, error %v; want answer %v", what, got.kind, err, want)
		}
	}
	refused, lost := refusal("NOPERM this user has no permissions to run the 'pexpire' command"), errors.New("EOF")
	f("both are done", nil, nil, true, answerDone)
	f("the owner's key is gone", nil, nil, false, answerMissing)
	f("the record is gone", nil, redis.Nil, true, answerMissing)
	f("the renewal is refused, the count stored", refused, nil, false, answerRefused)
	f("the renewal is refused, the record gone", refused, redis.Nil, false, answerRefused)
	f("the count is refused", nil, refused, true, answerRefused)
	f("the connection is lost before", lost, lost, false, answerUnknown)
	f("the connection is lost between", nil, lost, true, answerUnknown)
}

// What Redis answers to a SET is an error of the same text as go-redis makes of it.
func TestAnswersToAStoreCommand(t *testing.T) {
	f := func(reply string, want error) {
		t.Helper()
		c := newStoreCommand(t.Context())
		c.Write([]byte(reply))
		if got := c.Err(); got != want {
			t.Errorf("%q is the error %v, want %v", reply, got, want)
		}
	}
	f("+OK\r\n", nil)
	f("$-1\r\n", redis.Nil)
	f("-MOVED 3999 127.0.0.1:6381\r\n", refusal("MOVED 3999 127.0.0.1:6381"))
	f("", errNoAnswer)
	f(":1\r\n", errNoAnswer)
}

// A command is used again once go-redis has brought the answers to its pipeline, and never
// if the pipeline failed.
func TestStoreCommandsAreUsedAgain(t *testing.T) {
	var s storeCommands
	id := NewID()
	pipeline := func(failure error) (all [2]*storeCommand) {
		for i := range all {
			all[i] = s.take(t.Context())
			all[i].set(id, &command{token: token{1, leaseID{2, 3}, uint32(i)}, count: uint64(i), ttl: time.Second})
		}
		s.takeBack(failure)
		return all
	}
	first := pipeline(nil)
	if first[0] == first[1] {
		t.Fatal("two commands of a pipeline are the same")
	}
	first[0].Write([]byte("-ERR\r\n"))
	first[1].SetErr(errNoAnswer)
	second := pipeline(errNoAnswer)
	if second != first {
		t.Error("the commands were not used again")
	}
	for i, c := range second {
		want := storeArgs(recordKey(id, token{1, leaseID{2, 3}, uint32(i)}.String()), i, 1000)
		got := c.Args()
		if key := string(c.key); key != want[1] || len(got) != len(want) || c.count != uint64(i) || c.millis != 1000 {
			t.Errorf("command %d is for %s, count %d", i, key, c.count)
		}
		if c.Err() != errNoAnswer || c.RawWriteToCmd.Err() != nil {
			t.Errorf("command %d still has the answer of another: %v", i, c.Err())
		}
	}
	for _, c := range pipeline(nil) {
		if c == first[0] || c == first[1] {
			t.Error("a command of a pipeline that failed is used again")
		}
	}
}
