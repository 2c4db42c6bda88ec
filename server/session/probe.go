package session

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// probeEvery is how often a node is probed that has nothing else to do.
	probeEvery = time.Second
	probeTTL   = 10 * time.Second
	// probeChannel is one to which nobody listens.
	probeChannel = channelPrefix + "probe"
)

// probe sees whether the node takes writes. It sends every kind of command that the
// store may need, on keys of its own: that the user lacks the right to one of them must
// not be found out when a session depends on it.
func (n *node) probe(conn *redis.Conn) error {
	n.store.mu.Lock()
	key := n.probeKey
	n.store.mu.Unlock()
	if key == "" {
		return conn.Ping(n.ctx).Err()
	}
	pipe := conn.Pipeline()
	set := pipe.Set(n.ctx, key, n.name, probeTTL)
	n.appendRest(pipe, key)
	sent := slices.Clone(pipe.Cmds())
	replicated := n.appendWait(pipe)
	_, err := pipe.Exec(n.ctx)
	if err := n.refusalOf(sent); err != nil {
		return err
	}
	if set.Err() == nil && set.Val() != "OK" { // a command does not always have the pipeline's error
		return cmp.Or(err, errNoAnswer)
	}
	return replicated()
}

// appendRest adds the commands of a probe that come behind its first SET.
func (n *node) appendRest(pipe redis.Pipeliner, key string) {
	const theirs, mine = ":old", ":new"
	ttl := probeTTL.Milliseconds()
	if n.store.cluster != nil {
		pipe.Do(n.ctx, "ASKING")
	}
	pipe.Get(n.ctx, key)
	pipe.PExpire(n.ctx, key, probeTTL)
	pipe.Del(n.ctx, key+theirs) // the script does it too, but its error does not name the command
	for _, script := range []evaluate{ownScript.Eval, ownScript.EvalSha} {
		script(n.ctx, pipe, []string{key, key + theirs, key + mine}, n.name, n.name, 0, ttl, ttl, key+theirs, key+mine)
	}
	pipe.Publish(n.ctx, probeChannel, "")
}

// refusalOf is the error of the first command that has one, with the names of all that
// Redis refuses for the same reason.
func (n *node) refusalOf(sent []redis.Cmder) error {
	var first error
	var names []string
	for _, cmd := range sent {
		err := cmd.Err()
		if err == nil || errors.Is(err, redis.Nil) || n.isOnTheMove(err) {
			continue
		}
		if first == nil {
			first = err
		}
		if name := strings.ToUpper(cmd.Name()); errorKindOf(err) == errorKindOf(first) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if first == nil || errorKindOf(first).scope() == scopeConnection {
		return first
	}
	return fmt.Errorf("%s: %w", strings.Join(names, ", "), first)
}

// isOnTheMove reports whether an error only says that the probe's slot goes from one
// node to another.
func (n *node) isOnTheMove(err error) bool {
	kind := errorKindOf(err)
	return n.store.cluster != nil && (kind == errorAsk || kind == errorTryAgain)
}
