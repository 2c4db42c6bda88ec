package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// commitsMost, claimsMost and looksMost are how many sessions' commands one pipeline takes
	// at the most. There are few looks in each, since a commit waits for the pipeline before
	// it; and there are some in each, since commits never end.
	commitsMost = 1024
	claimsMost  = 256
	looksMost   = 64
	// The pause before the next connection to a node that failed doubles from
	// the first to the second.
	pauseFirst, pauseMost = 10 * time.Millisecond, 500 * time.Millisecond
)

// A node is one Redis server that takes writes, the goroutine that talks to it (one
// connection, one pipeline at a time), and the lanes to it.
type node struct {
	health

	// Fixed after newNode.
	client *redis.Client
	wake   chan struct{}
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by store.mu.
	probeKey    string // a key that can always be written, "" while it has no slots
	commits     queue  // what somebody waits for, or what is not stored yet
	claims      queue
	looks       queue     // at leases of which all is known and nobody waits
	holdsClaims bool      // claims wait until every lease has been verified
	hints       []leaseID // leases of other processes, which have lost their sessions
	lanes       []*lane   // of each of Redis.loops; nil for those that are not open

	flight // of the goroutine

	// Owned by the goroutine.
	opening  laneOpening
	canary   canary
	probes   uint64        // how many there were
	probedAt time.Duration // when the last one was

	// Atomic.
	isOfCluster atomic.Bool // though its address is the only one
	isSuspected atomic.Bool // a lane has failed: the next probe is due
}

// A flight is the commands that are under way on one connection.
type flight struct {
	batch []inFlight // Guarded by store.mu: others look at its leases.

	// Owned by whom the connection belongs to.
	storing storeCommands
	notes   []note // what the answers mean for the holders
}

// add adds the command of a lease that is due. Under store.mu.
func (f *flight) add(r *redisLease, now time.Duration, times *lifetimes) {
	f.batch = append(f.batch, inFlight{lease: r, id: r.id(), command: r.next(now, times), asking: r.asking})
	r.asking = false
}

// sending is the leases whose commands are under way. Under store.mu.
func (f *flight) sending() (leases []*redisLease) {
	for i := range f.batch {
		leases = append(leases, f.batch[i].lease)
	}
	return leases
}

// clearNotes forgets what has been told.
func (f *flight) clearNotes() {
	clear(f.notes)
	f.notes = f.notes[:0]
}

func newNode(s *Redis, client *redis.Client, name, probe string) *node {
	n := &node{client: client, probeKey: probe, wake: make(chan struct{}, 1)}
	n.opening.begin()
	n.looks.ofLooks = true
	n.health.begin(s, name)
	n.ctx, n.cancel = context.WithCancel(s.stopped)
	return n
}

func (n *node) start() { n.store.start(n.run) }

// push puts r at the end of the queue where its next command belongs. Under store.mu.
func (n *node) push(r *redisLease) {
	switch {
	case r.isClaiming():
		n.claims.push(r)
	case r.isLook():
		n.looks.push(r)
	default:
		n.commits.push(r)
	}
	n.signal()
}

// signal wakes the goroutine.
func (n *node) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// suspect has the node probed now.
func (n *node) suspect() {
	n.isSuspected.Store(true)
	n.signal()
}

// requeueAll puts every queued lease into the queue where it belongs now.
func (n *node) requeueAll() {
	for _, q := range []*queue{&n.commits, &n.claims, &n.looks} {
		n.store.requeue(q, runtime.Gosched)
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
	defer n.closeLanes()
	pipe := newPipeline(conn)
	n.canary = canary{}
	if err := n.checkMode(conn); err != nil {
		return false, err
	}
	if err := n.probe(conn); err != nil {
		return false, err
	}
	if err := n.verifyLeases(pipe); err != nil {
		return false, err
	}
	n.onSuccess()
	n.openLanes(conn)
	return true, n.serve(conn, pipe)
}

// serve sends what is queued until something fails.
func (n *node) serve(conn *redis.Conn, pipe *pipeline) error {
	alarm := time.NewTimer(probeEvery)
	defer alarm.Stop()
	for {
		select {
		case o := <-n.opening.opened:
			n.admit(conn, o)
		default:
		}
		more, err := n.exchange(pipe)
		if err != nil {
			return err
		}
		untilProbe := n.probedAt + probeEvery - n.store.config.Now()
		if n.isSuspected.Swap(false) || untilProbe <= 0 {
			if err := n.probe(conn); err != nil {
				return err
			}
			n.onSuccess()
			n.openLanes(conn)
		} else if !more {
			alarm.Reset(untilProbe)
			select {
			case <-n.ctx.Done():
				return n.ctx.Err()
			case <-n.wake:
			case o := <-n.opening.opened:
				n.admit(conn, o)
			case <-alarm.C:
			}
		}
	}
}

// verifyLeases verifies every lease of the node's before any claim is sent: the
// server may have lost what it had stored, and what this process knows has to be
// there again. The first round finds what is missing, two more restore it. Commits
// go on meanwhile.
func (n *node) verifyLeases(pipe *pipeline) error {
	n.store.holdClaims(n)
	defer n.store.admitClaims(n)
	for range 3 {
		n.store.mu.Lock()
		rounds := max((n.looks.len()+looksMost-1)/looksMost, (n.commits.len()+commitsMost-1)/commitsMost)
		n.store.mu.Unlock()
		for range rounds {
			if _, err := n.exchange(pipe); err != nil {
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

// exchange sends one batch; more is false if nothing was queued.
func (n *node) exchange(pipe *pipeline) (more bool, err error) {
	hints, more := n.take()
	if len(n.batch)+len(hints) == 0 {
		return more, nil
	}
	n.send(pipe, hints)
	err = n.store.settle(n, &n.flight, hints)
	n.store.deliver(n.notes)
	n.clearNotes()
	if err != nil {
		return true, err
	}
	n.onSuccess()
	return true, nil
}

// take makes a batch of the fronts of the queues: commits, claims, looks. more is false
// if all were empty.
func (n *node) take() (hints []leaseID, more bool) {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	more = n.takeFrom(&n.commits, commitsMost)
	if !n.holdsClaims {
		more = n.takeFrom(&n.claims, claimsMost) || more
	}
	more = n.takeFrom(&n.looks, looksMost) || more
	hints, n.hints = n.hints, nil
	return hints, more
}

// takeFrom adds the front of a queue to the batch. It reports false if the queue was
// empty. Under store.mu.
func (n *node) takeFrom(q *queue, most int) bool {
	s := n.store
	now, count := s.config.Now(), min(q.len(), most)
	for range count {
		r := q.pop()
		if r.isDue(now, &s.times) {
			n.add(r, now, &s.times)
		}
	}
	return count > 0
}

// send sends a batch in one pipeline. The replies are in the commands.
func (n *node) send(pipe *pipeline, hints []leaseID) {
	batch, hasClaims := n.batch, false
	script := ownScript.Eval // the first script of a pipeline brings the text
	for i := range batch {
		hasClaims = hasClaims || batch[i].command.isClaim()
		if batch[i].append(n, pipe, script) {
			script = ownScript.EvalSha
		}
	}
	for _, h := range hints {
		pipe.Publish(n.ctx, channel(h.instance), h.serial)
	}
	isLost := isNotLost
	if hasClaims { // behind them: what they have not found was there
		isLost = n.appendCanary(pipe)
	}
	replicated := n.appendWait(pipe)
	pipe.exec(n.ctx)
	switch err := replicated(); {
	case err != nil:
		overrule(batch, err, func(*inFlight) bool { return true })
	case isLost():
		overrule(batch, errDataLost, func(f *inFlight) bool { return f.command.isClaim() })
	}
	n.store.config.Metrics.BatchSize.Update(float64(len(batch)))
}

// overrule gives those of a batch that which chooses an error in place of their reply.
func overrule(batch []inFlight, err error, which func(*inFlight) bool) {
	for i := range batch {
		if f := &batch[i]; which(f) && (f.sent.Err() == nil || errors.Is(f.sent.Err(), redis.Nil)) {
			f.sent.SetErr(err)
		}
	}
}
