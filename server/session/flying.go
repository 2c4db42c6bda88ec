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
	cmd    redis.Cmder
	phase  phase
	token  string
	rival  string
	count  uint64
	lives  time.Duration // the record
	renew  bool          // the owner's key gets its time to live again
	asking bool
	at     time.Duration
}

// newFlying is r's next command. Under Redis.mu.
func newFlying(r *remote, now time.Duration, times *lifetimes) flying {
	f := flying{
		remote: r, phase: r.phase, token: r.token.String(), rival: r.rival, count: r.want,
		lives: times.held, renew: now-r.renewed >= times.every, asking: r.asking, at: now,
	}
	if r.owner == nil {
		f.lives, f.renew = times.left, false
	}
	r.asking = false
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
			pipe.PExpire(ctx, owner, times.owner)
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
	mine := recordKey(f.id, f.token)
	theirs, count := mine, ""
	if f.rival != "" {
		theirs = recordKey(f.id, f.rival)
	}
	var known any = count
	if f.phase == phaseRestore {
		known = f.count
	}
	return script(ctx, pipe, []string{owner, mine, theirs}, f.token, f.rival, known, f.lives.Milliseconds(), times.owner.Milliseconds())
}

// A reply is what a command has brought.
type reply struct {
	fence bool   // the record is not there
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
	switch cmd := f.cmd.(type) {
	case *redis.StringCmd:
		return reply{owner: cmd.Val()}, nil
	case *redis.Cmd:
		return readOwn(cmd)
	}
	return reply{}, nil
}

// readOwn reads what the script returns.
func readOwn(cmd *redis.Cmd) (reply, error) {
	values, err := cmd.Slice()
	if err != nil {
		return reply{}, err
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
