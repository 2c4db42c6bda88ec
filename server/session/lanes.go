package session

import (
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// How a node's goroutine opens and closes its lanes.

// A laneOpening is what a node knows of the lanes that are being opened.
type laneOpening struct {
	opened chan openedLane // Fixed.

	// Owned by the node's goroutine.
	loops   map[int]bool  // to whose lanes a connection is made
	triedAt time.Duration // when it last began
	told    toldKinds     // of which errors OnLaneTrouble knows since a lane was opened
}

func (o *laneOpening) begin() {
	o.opened, o.loops = make(chan openedLane), make(map[int]bool)
}

// An openedLane is a connection for the lane of a loop, or says why there is none. What
// was written through it proves that it is one to the node's server: the same to which the
// node's own connection was when it was asked for, and is.
type openedLane struct {
	of         *redis.Conn // the node's own connection
	index      int
	conn       *laneConn
	key, proof string
	err        error
}

var errOtherServer = errors.New("a second connection came to another server than the first")

// call is how long Redis may take for an answer.
func (n *node) call() time.Duration { return callTimeout(n.store.config.Timeout) }

// laneOf is the lane that carries r's commits, nil if none is open. Under store.mu.
func (n *node) laneOf(r *redisLease) *lane {
	if r.loop == 0 || int(r.loop) > len(n.lanes) {
		return nil
	}
	return n.lanes[r.loop-1]
}

// openedLanes are the lanes that are open. Under store.mu.
func (n *node) openedLanes() iter.Seq[*lane] {
	return func(yield func(*lane) bool) {
		for _, l := range n.lanes {
			if l != nil && !yield(l) {
				return
			}
		}
	}
}

// openLanes begins to open the lanes that are missing, at most once for each probe. WAIT
// would count for one connection alone, so with wait_replicas there are none.
func (n *node) openLanes(own *redis.Conn) {
	s := n.store
	now := s.config.Now()
	if s.config.Address.replicas > 0 || n.opening.triedAt != 0 && now-n.opening.triedAt < probeEvery {
		return
	}
	for _, index := range n.missingLanes() {
		n.opening.triedAt = now
		n.opening.loops[index] = true
		s.start(func() {
			o := n.open(own, index)
			select {
			case n.opening.opened <- o:
			case <-n.ctx.Done():
				o.close()
			}
		})
	}
}

func (n *node) missingLanes() (missing []int) {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	n.lanes = append(n.lanes, make([]*lane, len(s.loops)-len(n.lanes))...)
	if n.probeKey == "" { // it has no slot yet
		return nil
	}
	for i, l := range n.lanes {
		if l == nil && !n.opening.loops[i] {
			missing = append(missing, i)
		}
	}
	return missing
}

// open makes a connection, as go-redis does it, and writes a proof.
func (n *node) open(own *redis.Conn, index int) openedLane {
	o := openedLane{of: own, index: index, key: n.proofKey(index), proof: rand.Text()}
	a, timeout := n.store.config.Address, n.store.config.Timeout
	addr := n.client.Options().Addr
	if a.master != "" {
		if addr, o.err = a.masterAddr(n.ctx, timeout); o.err != nil {
			return o
		}
	}
	dialled := make(chan *laneConn, poolSize) // go-redis dials on a goroutine, which it may leave behind
	client := a.node(addr, timeout, func(c *laneConn) { dialled <- c })
	defer client.Close()
	if o.err = client.Set(n.ctx, o.key, o.proof, probeTTL).Err(); o.err == nil {
		o.conn = <-dialled
		o.err = o.conn.keep()
	}
	return o
}

// proofKey is where the lane of a loop writes its proof.
func (n *node) proofKey(index int) string {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	return fmt.Sprintf("%s:%x:lane:%d", n.probeKey, n.store.instance, index)
}

// close gives up a connection that is not needed.
func (o *openedLane) close() {
	if o.err == nil {
		o.conn.socket.close()
	}
}

// admit puts a connection on its loop, if the node's own connection sees what was written
// through it. What was asked for by an earlier one proves nothing: a replica, which has
// become the master since, may have it too.
func (n *node) admit(own *redis.Conn, o openedLane) {
	delete(n.opening.loops, o.index)
	if o.of != own || n.ctx.Err() != nil {
		o.close()
		return
	}
	err := o.err
	if err == nil {
		err = n.check(own, &o)
	}
	if err != nil || !n.addLane(o) {
		o.close()
	}
	n.opening.note(n, err)
}

func (n *node) check(own *redis.Conn, o *openedLane) error {
	proof, err := own.Get(n.ctx, o.key).Result()
	if errors.Is(err, redis.Nil) || err == nil && proof != o.proof {
		err = errOtherServer
	}
	return err
}

// note tells of the first error of each kind since a lane was opened.
func (o *laneOpening) note(n *node, err error) {
	if err == nil {
		o.told = toldKinds{}
		return
	}
	s, kind := n.store, errorKindOf(err)
	s.config.Metrics.Errors[kind].Inc()
	if o.told.add(kind) {
		s.config.OnLaneTrouble(n.name, kind, s.config.Address.withoutUser(err))
	}
}

// addLane makes the lane of a connection, unless the store or the loop has been closed.
func (n *node) addLane(o openedLane) bool {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &lane{node: n, loop: s.loops[o.index], index: o.index, conn: o.conn}
	l.task = l.run
	if s.stopped.Err() != nil || !l.loop.Post(l.begin) {
		return false
	}
	n.lanes[o.index] = l
	return true
}

// closeLanes ends all lanes, and waits until what they had under way is settled: whoever
// verifies leases after it finds none on its way elsewhere.
func (n *node) closeLanes() {
	n.store.mu.Lock()
	lanes := slices.Collect(n.openedLanes())
	n.store.mu.Unlock()
	for _, l := range lanes {
		l.loop.Call(l.end)
	}
}

// remove takes a lane out of use. What it had queued goes elsewhere.
func (n *node) remove(l *lane) {
	n.store.mu.Lock()
	n.lanes[l.index] = nil
	n.store.mu.Unlock()
	n.store.requeue(&l.queue, runtime.Gosched)
}
