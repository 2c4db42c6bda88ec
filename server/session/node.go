package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// batchMost is how many sessions' commands one pipeline takes at the most.
	batchMost = 1024
	// The pause before the next connection to a node that failed doubles from
	// the first to the second.
	pauseFirst, pauseMost = 10 * time.Millisecond, 500 * time.Millisecond
)

// A node is one Redis server that takes writes, and the goroutine that talks to
// it: one connection, one pipeline at a time.
type node struct {
	health

	// Fixed after newNode.
	client *redis.Client
	wake   chan struct{}
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by store.mu.
	probeKey    string // a key that can always be written, "" while it has no slots
	queue       []*redisLease
	claims      []*redisLease // claims that wait until every lease has been verified
	holdsClaims bool          // new claims go there
	batch       []inFlight
	hints       []leaseID // leases of other processes, which have lost their sessions
}

func newNode(s *Redis, client *redis.Client, name, probe string) *node {
	n := &node{client: client, probeKey: probe, wake: make(chan struct{}, 1)}
	n.health.begin(s, name)
	n.ctx, n.cancel = context.WithCancel(s.stopped)
	return n
}

func (n *node) start() { n.store.start(n.run) }

// push puts r at the end of the queue. Under store.mu.
func (n *node) push(r *redisLease) {
	r.queued = true
	if n.holdsClaims && r.isClaiming() {
		n.claims = append(n.claims, r)
		return
	}
	n.queue = append(n.queue, r)
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run talks to the node until its context is done.
func (n *node) run() {
	defer n.client.Close()
	pause := pauseFirst
	for {
		worked, err := n.connect()
		if n.ctx.Err() != nil {
			return
		}
		if worked {
			pause = pauseFirst
		}
		n.onTrouble(err)
		select {
		case <-n.ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, pauseMost)
	}
}

// connect opens a connection and sends what is queued until something fails;
// worked says that the connection was of use.
func (n *node) connect() (worked bool, err error) {
	conn := n.client.EphemeralConn()
	defer conn.Close()
	if err := n.probe(conn); err != nil {
		return false, err
	}
	if err := n.verifyLeases(conn); err != nil {
		return false, err
	}
	n.onSuccess()
	for {
		if err := n.exchange(conn); err != nil {
			return true, err
		}
		select {
		case <-n.ctx.Done():
			return true, n.ctx.Err()
		case <-n.wake:
		case <-time.After(probeEvery):
			if err := n.probe(conn); err != nil {
				return true, err
			}
			n.onSuccess()
		}
	}
}

// verifyLeases verifies every lease of the node's before any claim is sent: the
// server may have lost what it had stored, and what this process knows has to be
// there again. The first round finds what is missing, two more restore it.
func (n *node) verifyLeases(conn *redis.Conn) error {
	n.store.holdClaims(n)
	defer n.store.admitClaims(n)
	for range 3 {
		n.store.mu.Lock()
		rounds := (len(n.queue) + batchMost - 1) / batchMost
		n.store.mu.Unlock()
		for range rounds {
			if _, err := n.exchangeOnce(conn); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendWait ends a pipeline with WAIT, if replicas have to confirm what it
// writes. The func says, once the pipeline has been carried out, whether they
// have.
func (n *node) appendWait(pipe redis.Pipeliner) (replicated func() error) {
	wanted := n.store.config.Address.replicas
	if wanted == 0 {
		return func() error { return nil }
	}
	patience := min(n.store.config.Timeout/waitShare, longestCall/2)
	cmd := redis.NewIntCmd(n.ctx, "WAIT", wanted, patience.Milliseconds())
	pipe.Process(n.ctx, cmd)
	return func() error {
		switch {
		case cmd.Err() != nil:
			return fmt.Errorf("%w: %v", errNotReplicated, cmd.Err()) // not %w: whatever WAIT says, the writes may have been carried out
		case cmd.Val() < int64(wanted):
			return errNotReplicated
		}
		return nil
	}
}

// onTrouble notes that the node does not answer.
func (n *node) onTrouble(err error) {
	n.health.onTrouble(err)
	if n.store.cluster != nil {
		n.store.cluster.reload()
	}
}

// onSuccess notes that the node answers.
func (n *node) onSuccess() {
	n.store.config.Metrics.LastSuccess.Store(int64(n.store.config.Now()))
	n.health.onSuccess()
}

// exchange sends what is in the queue, batch by batch, until it is empty.
func (n *node) exchange(conn *redis.Conn) error {
	for {
		if more, err := n.exchangeOnce(conn); !more || err != nil {
			return err
		}
	}
}

// exchangeOnce sends one batch; more is false if the queue was empty.
func (n *node) exchangeOnce(conn *redis.Conn) (more bool, err error) {
	batch, hints, more := n.take()
	if len(batch)+len(hints) == 0 {
		return more, nil
	}
	n.send(conn, batch, hints)
	if err := n.store.settle(n, batch, hints); err != nil {
		return true, err
	}
	n.onSuccess()
	return true, nil
}

// take makes a batch of the front of the queue; more is false if the queue was
// empty.
func (n *node) take() (batch []inFlight, hints []leaseID, more bool) {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	count := min(len(n.queue), batchMost)
	for _, r := range n.queue[:count] {
		r.queued = false
		if r.isDue(now, &s.times) {
			n.batch = append(n.batch, inFlight{lease: r, command: r.next(now, &s.times), asking: r.asking})
			r.asking = false
		}
	}
	n.queue = n.queue[:copy(n.queue, n.queue[count:])]
	hints, n.hints = n.hints, nil
	return n.batch, hints, count > 0
}

// send sends a batch in one pipeline. The replies are in the commands.
func (n *node) send(conn *redis.Conn, batch []inFlight, hints []leaseID) {
	s := n.store
	pipe := conn.Pipeline()
	script := ownScript.Eval // the first script of a pipeline brings the text
	for i := range batch {
		if batch[i].append(n.ctx, pipe, script, &s.times) {
			script = ownScript.EvalSha
		}
	}
	for _, h := range hints {
		pipe.Publish(n.ctx, channel(h.instance), h.serial)
	}
	replicated := n.appendWait(pipe)
	pipe.Exec(n.ctx)
	if err := replicated(); err != nil {
		for i := range batch {
			if batch[i].sent.Err() == nil {
				batch[i].sent.SetErr(err)
			}
		}
	}
	s.config.Metrics.BatchSize.Update(float64(len(batch)))
}
