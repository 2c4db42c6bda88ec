package session

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"
)

// What each command of a renewal says is looked at.
func TestAnswerToARenewal(t *testing.T) {
	f := func(what string, renewed, stored error, isThere bool, want answerKind) {
		t.Helper()
		ctx := t.Context()
		pexpire, set := redis.NewBoolCmd(ctx), redis.NewStatusCmd(ctx)
		pexpire.SetVal(isThere)
		pexpire.SetErr(renewed)
		set.SetErr(stored)
		if stored == nil {
			set.SetVal("OK")
		}
		command := inFlight{command: command{phase: phaseOwned, renew: true}, renewed: pexpire, sent: set}
		if got, err := command.answer(); got.kind != want || (err == nil) != (renewed == nil && (stored == nil || stored == redis.Nil)) {
			t.Errorf("%s: answer %v, error %v; want answer %v", what, got.kind, err, want)
		}
	}
	refused, lost := redisError("NOPERM this user has no permissions to run the 'pexpire' command"), errors.New("EOF")
	f("both are done", nil, nil, true, answerDone)
	f("the owner's key is gone", nil, nil, false, answerMissing)
	f("the record is gone", nil, redis.Nil, true, answerMissing)
	f("the renewal is refused, the count stored", refused, nil, false, answerRefused)
	f("the renewal is refused, the record gone", refused, redis.Nil, false, answerRefused)
	f("the count is refused", nil, refused, true, answerRefused)
	f("the connection is lost before", lost, lost, false, answerUnknown)
	f("the connection is lost between", nil, lost, true, answerUnknown)
}

// redisError is an answer of Redis.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}
