package session

import (
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
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
}

func (o *laneOpening) begin() {
	o.opened, o.loops = make(chan openedLane), make(map[int]bool)
}

// An openedLane is a connection for the lane of a loop, or says why there is none. What
// was written through it proves that it is one to the node's server.
type openedLane struct {
	index int
	conn  *laneConn
	proof string
	err   error
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
func (n *node) openLanes() {
	s := n.store
	now := s.config.Now()
	if s.config.Address.replicas > 0 || n.opening.triedAt != 0 && now-n.opening.triedAt < probeEvery {
		return
	}
	for _, index := range n.missingLanes() {
		n.opening.triedAt = now
		n.opening.loops[index] = true
		s.start(func() {
			o := n.open(index)
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
func (n *node) open(index int) openedLane {
	o := openedLane{index: index, proof: rand.Text()}
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
	if o.err = client.Set(n.ctx, n.proofKey(index), o.proof, probeTTL).Err(); o.err == nil {
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
// through it.
func (n *node) admit(conn *redis.Conn, o openedLane) {
	delete(n.opening.loops, o.index)
	if o.err == nil {
		o.err = n.check(conn, &o)
	}
	if o.err != nil {
		n.store.config.Metrics.Errors[errorKindOf(o.err)].Inc()
		return
	}
	if l := n.addLane(o); l == nil {
		o.close()
	} else if !l.loop.Post(l.begin) { // the loop has ended
		n.remove(l)
		o.close()
	}
}

func (n *node) check(conn *redis.Conn, o *openedLane) error {
	if proof, err := conn.Get(n.ctx, n.proofKey(o.index)).Result(); err != nil || proof != o.proof {
		o.close()
		return errOtherServer
	}
	return nil
}

// addLane makes the lane of a connection; nil if the store has been closed.
func (n *node) addLane(o openedLane) *lane {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Err() != nil {
		return nil
	}
	l := &lane{node: n, loop: s.loops[o.index], index: o.index, conn: o.conn}
	l.task = l.run
	n.lanes[o.index] = l
	return l
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
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	n.lanes[l.index] = nil
	for l.queue.len() > 0 {
		s.enqueue(l.queue.pop())
	}
}
