package session

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// A flying is a command on its way, with what it was made of: the lease goes on
// meanwhile.
type flying struct {
	*remote
	cmd     redis.Cmder
	renewed *redis.BoolCmd // nil without renew
	phase   phase
	token   string
	rival   string
	count   uint64
	lives   time.Duration // the record
	renew   bool          // the owner's key gets its time to live again
	asking  bool
	at      time.Duration
}

// newFlying is r's next command. Under Redis.mu.
func newFlying(r *remote, now time.Duration, times *lifetimes) flying {
	f := flying{
		remote: r, phase: r.phase, token: r.token.String(), rival: r.rival, count: r.want,
		lives: times.held, renew: r.renews(now, times.every), asking: r.asking, at: now,
	}
	if r.owner == nil {
		f.lives = times.left
	}
	r.asking, r.doubted = false, false
	return f
}

type evaluate func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd

// append adds the command to a pipeline; scripted says that it was by script.
func (f *flying) append(ctx context.Context, pipe redis.Pipeliner, script evaluate, times *lifetimes) (scripted bool) {
	owner := ownerKey(f.id)
	if f.asking {
		pipe.Do(ctx, "ASKING")
	}
	switch f.phase {
	case phaseFind:
		f.cmd = pipe.Get(ctx, owner)
	case phaseHeld:
		if f.renew { // first: it must never be the record that lives longer
			f.renewed = pipe.PExpire(ctx, owner, times.owner)
			if f.asking {
				pipe.Do(ctx, "ASKING")
			}
		}
		f.cmd = redis.NewStatusCmd(ctx, storeCommand(recordKey(f.id, f.token), f.count, f.lives)...)
		pipe.Process(ctx, f.cmd)
	default:
		f.cmd = f.own(ctx, pipe, script, owner, times)
		return true
	}
	return false
}

// own is the command that makes the lease the owner.
func (f *flying) own(ctx context.Context, pipe redis.Pipeliner, script evaluate, owner string, times *lifetimes) *redis.Cmd {
	keys, theirs, mine := []string{owner}, "", recordKey(f.id, f.token)
	if f.rival != "" && f.rival != f.token {
		theirs = recordKey(f.id, f.rival)
		keys = append(keys, theirs)
	}
	if !f.asking {
		keys = append(keys, mine)
	}
	var count any = ""
	if f.phase == phaseRestore {
		count = f.count
	}
	return script(ctx, pipe, keys, f.token, f.rival, count, f.lives.Milliseconds(), times.owner.Milliseconds(), theirs, mine)
}

// A reply is what a command has brought.
type reply struct {
	fence bool   // the record, or the owner's key, is not there
	owner string // who is the owner instead, "" for nobody
	count uint64
	known bool // the owner that was replaced had a record
}

// reply reads the result; err is what Redis refused, or what became of the
// connection.
func (f *flying) reply() (reply, error) {
	err := f.cmd.Err()
	switch {
	case errors.Is(err, redis.Nil):
		return reply{fence: f.phase == phaseHeld}, nil
	case err != nil:
		return reply{}, err
	}
	if f.renewed != nil && f.renewed.Err() == nil && !f.renewed.Val() {
		return reply{fence: true}, nil // the owner's key is gone: nobody else may own the session
	}
	switch cmd := f.cmd.(type) {
	case *redis.Cmd:
		return readOwn(cmd)
	case *redis.StringCmd:
		if cmd.Val() != "" {
			return reply{owner: cmd.Val()}, nil
		}
	case *redis.StatusCmd:
		if cmd.Val() == "OK" {
			return reply{}, nil
		}
	}
	return reply{}, errNoAnswer // of a pipeline that was not carried out
}

// readOwn reads what the script returns.
func readOwn(cmd *redis.Cmd) (reply, error) {
	values, err := cmd.Slice()
	if err != nil || len(values) < 2 {
		return reply{}, errNoAnswer
	}
	if done, _ := values[0].(int64); done == 0 {
		owner, _ := values[1].(string)
		return reply{owner: owner}, nil
	}
	count, err := strconv.ParseUint(fmt.Sprint(values[1]), 10, 64)
	if err != nil {
		return reply{}, err
	}
	known, _ := values[2].(int64)
	return reply{count: count, known: known == 1}, nil
}
