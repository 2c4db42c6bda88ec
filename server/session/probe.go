package session

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// probeEvery is how often a node is probed.
	probeEvery = time.Second
	probeTTL   = time.Minute
	// probeChannel is one to which nobody listens.
	probeChannel = channelPrefix + "probe"
)

// errDataLost says that the server behind a connection has not what it had: it was
// flushed, or another one has its place.
var errDataLost = errors.New("Redis no longer has what the last probe wrote: it was flushed, or another server has its place")

// A canary is what the last probe of a connection has written. Whoever finds it gone
// knows that sessions are gone too.
type canary struct {
	key, value string // "" for none
	at         time.Duration
}

// probe sees whether the node takes writes, and whether it still has what the probe
// before has written. It sends every kind of command that the store may need, on keys of
// its own: that the user lacks the right to one of them must not be found out when a
// session depends on it.
func (n *node) probe(conn *redis.Conn) error {
	n.store.mu.Lock()
	key := n.probeKey
	n.store.mu.Unlock()
	n.probedAt = n.store.config.Now()
	if key == "" {
		return conn.Ping(n.ctx).Err()
	}
	n.probes++
	next := canary{fmt.Sprintf("%s:%x", key, n.store.instance), strconv.FormatUint(n.probes, 10), n.probedAt}
	pipe := conn.Pipeline()
	isLost := n.appendCanary(pipe)
	set := pipe.Set(n.ctx, next.key, next.value, probeTTL)
	n.appendRest(pipe, next)
	sent := slices.Clone(pipe.Cmds())
	replicated := n.appendWait(pipe)
	_, err := pipe.Exec(n.ctx)
	if err := n.refusalOf(sent); err != nil {
		return err
	}
	if set.Err() == nil && set.Val() != "OK" { // a command does not always have the pipeline's error
		return cmp.Or(err, errNoAnswer)
	}
	if isLost() {
		return errDataLost
	}
	n.canary = next
	return replicated()
}

// appendCanary adds the look at the canary to a pipeline. The func says, once the pipeline
// has been carried out, whether the canary is gone. It does not say so of one that may have
// ended by itself.
func (n *node) appendCanary(pipe redis.Pipeliner) (isLost func() bool) {
	c := n.canary
	if c.key == "" || n.store.config.Now()-c.at > probeTTL/2 {
		return isNotLost
	}
	get := pipe.Get(n.ctx, c.key)
	return func() bool {
		return errors.Is(get.Err(), redis.Nil) || get.Err() == nil && get.Val() != c.value
	}
}

func isNotLost() bool { return false }

// appendRest adds the commands of a probe that come behind its SET.
func (n *node) appendRest(pipe redis.Pipeliner, c canary) {
	theirs, mine, ttl := c.key+":old", c.key+":new", probeTTL.Milliseconds()
	if n.store.cluster != nil {
		pipe.Do(n.ctx, "ASKING")
	}
	pipe.Get(n.ctx, c.key)
	pipe.PExpire(n.ctx, c.key, probeTTL)
	pipe.Del(n.ctx, theirs) // the script does it too, but its error does not name the command
	for _, script := range []evaluate{ownScript.Eval, ownScript.EvalSha} {
		script(n.ctx, pipe, []string{c.key, theirs, mine}, c.value, c.value, 0, ttl, ttl, theirs, mine)
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

// errClusterNode says that the one address is that of a cluster's node.
var errClusterNode = errors.New("it is a node of a Redis Cluster: write the addresses of several of its nodes, with commas between, " +
	"such as redis://10.0.0.5,10.0.0.6 (if it is the only one, write it twice)")

// checkMode sees that a node that is alone is not one of a cluster's: most sessions would
// belong elsewhere. Redis 5 does not say what it is; MOVED does, with the first session.
func (n *node) checkMode(conn *redis.Conn) error {
	if n.store.cluster != nil {
		return nil
	}
	hello, err := conn.Do(n.ctx, "HELLO").Slice()
	if err != nil && errorKindOf(err).scope() == scopeConnection {
		if !n.up.Load() { // perhaps no address of a Redis at all
			err = n.store.config.Address.explain(n.ctx, n.client.Options().Addr, err)
		}
		return err
	}
	for i := 0; i+1 < len(hello); i += 2 {
		if hello[i] == "mode" && hello[i+1] == "cluster" {
			n.isOfCluster.Store(true)
		}
	}
	if n.isOfCluster.Load() {
		return errClusterNode
	}
	return nil
}
