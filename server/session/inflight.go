package session

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// An inFlight is a command in a pipeline. The lease goes on meanwhile.
type inFlight struct {
	lease   *redisLease
	id      ID
	command command
	asking  bool           // the node takes the slot over, and answers only behind ASKING
	sent    redis.Cmder    // has the reply
	renewed *redis.BoolCmd // nil without command.renew
}

type evaluate func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd

// append adds the command to the node's pipeline; scripted says that it was by script.
func (f *inFlight) append(n *node, pipe redis.Pipeliner, script evaluate) (scripted bool) {
	ctx, times := n.ctx, &n.store.times
	if f.asking {
		pipe.Do(ctx, "ASKING")
	}
	switch f.command.phase {
	case phaseFind:
		f.sent = pipe.Get(ctx, ownerKey(f.id))
	case phaseOwned:
		f.appendStore(n, pipe)
	default:
		f.sent = f.appendOwn(ctx, pipe, script, times)
		return true
	}
	return false
}

// appendStore adds the commands that store the count of a lease that owns its
// session.
func (f *inFlight) appendStore(n *node, pipe redis.Pipeliner) {
	if f.command.renew { // first: the record must never live longer than the owner's key
		f.renewed = pipe.PExpire(n.ctx, ownerKey(f.id), n.store.times.owner)
		if f.asking {
			pipe.Do(n.ctx, "ASKING")
		}
	}
	store := n.storing.take(n.ctx)
	store.set(f.id, &f.command)
	f.sent = store
	pipe.Process(n.ctx, store)
}

// appendOwn adds the script that makes the lease the owner.
func (f *inFlight) appendOwn(ctx context.Context, pipe redis.Pipeliner, script evaluate, times *lifetimes) *redis.Cmd {
	c := &f.command
	token := c.token.String()
	keys, theirs, mine := []string{ownerKey(f.id)}, "", recordKey(f.id, token)
	if c.expected != "" && c.expected != token {
		theirs = recordKey(f.id, c.expected)
		keys = append(keys, theirs)
	}
	if !f.asking {
		keys = append(keys, mine)
	}
	var count any = ""
	if c.phase == phaseRestore {
		count = c.count
	}
	return script(ctx, pipe, keys, token, c.expected, count, c.ttl.Milliseconds(), times.owner.Milliseconds(), theirs, mine)
}

// answer reads the reply. The error is what Redis refused, or what became of the
// connection.
func (f *inFlight) answer() (answer, error) {
	err := f.sent.Err()
	if f.renewed != nil && f.renewed.Err() != nil {
		err = f.renewed.Err() // also if the count is stored: the owner's key must outlive it
	}
	switch {
	case errors.Is(err, redis.Nil) && f.command.phase == phaseFind:
		return answer{kind: answerOwner}, nil
	case errors.Is(err, redis.Nil) && f.command.phase == phaseOwned:
		return answer{kind: answerMissing}, nil
	case err != nil:
		return failed(err), err
	}
	if f.renewed != nil && !f.renewed.Val() {
		return answer{kind: answerMissing}, nil // the owner's key is gone: nobody else may own the session
	}
	switch cmd := f.sent.(type) {
	case *redis.Cmd:
		return readOwn(cmd)
	case *redis.StringCmd:
		return readOwner(cmd.Val())
	case *storeCommand:
		return answer{kind: answerDone}, nil
	}
	return failed(errNoAnswer), errNoAnswer // of a pipeline that was not carried out
}

// failed is what an error says of the command.
func failed(err error) answer {
	if errorKindOf(err).scope() == scopeConnection {
		return answer{kind: answerUnknown}
	}
	return answer{kind: answerRefused}
}

// readOwner reads what is in an owner's key. What is no token is nobody's: it can be
// neither replaced nor fenced, and must not be taken for an older owner.
func readOwner(text string) (answer, error) {
	if parseToken(text) == (token{}) {
		return failed(errDamagedOwner), errDamagedOwner
	}
	return answer{kind: answerOwner, owner: text}, nil
}

// readOwn reads what the script returns.
func readOwn(cmd *redis.Cmd) (answer, error) {
	values, err := cmd.Slice()
	if err != nil || len(values) < 2 {
		return failed(errNoAnswer), errNoAnswer
	}
	if done, _ := values[0].(int64); done == 0 {
		owner, isThere := values[1].(string)
		if !isThere {
			return answer{kind: answerOwner}, nil
		}
		return readOwner(owner)
	}
	count, err := strconv.ParseUint(fmt.Sprint(values[1]), 10, 64)
	if err != nil {
		return failed(errNoAnswer), errNoAnswer
	}
	known, _ := values[2].(int64)
	return answer{kind: answerDone, count: count, hadCount: known == 1}, nil
}
