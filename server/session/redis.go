package session

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"turnstile/metrics"
	"turnstile/netpoll"
)

// RedisConfig is what a Redis store is held to.
type RedisConfig struct {
	Address *Address
	TTL     time.Duration // how long a session is kept after its last owner left
	Timeout time.Duration // how long a claim or a commit may take
	Max     int           // sessions that are held, or released and not stored yet
	Now     func() time.Duration
	Metrics *metrics.Store

	// OnTrouble and OnRecovered are told of each Redis node that stops
	// answering, and that answers again; OnTrouble once for each kind of error (a
	// label of Metrics.Errors), since the first may hide the cause. They are called from any goroutine.
	OnTrouble   func(node string, kind fmt.Stringer, err error)
	OnRecovered func(node string, after time.Duration)
	// OnLaneTrouble is told once for each kind of error, until a lane is opened, why a worker
	// has no connection of its own to a node: its commits then go over the node's, at twice
	// the price. It is called from any goroutine.
	OnLaneTrouble func(node string, kind fmt.Stringer, err error)
	// OnDamaged is told of a session that cannot be claimed, since Redis has something else
	// in its keys than the store writes. It is called from any goroutine.
	OnDamaged func(id ID, err error)

	listenCheck time.Duration // 0 is the default. Tests make it shorter.
}

// Redis is the Store in Redis: it outlives the process, and is shared with
// other instances. No call waits for the network. A lease that has a command to
// send is put into the queue of its session's node. One goroutine for each node
// takes all there is, sends it in one pipeline, and posts the outcomes to the
// owners' loops. Which command comes next is for the lease's ownership to say.
type Redis struct {
	// Fixed after NewRedis.
	config    RedisConfig
	times     lifetimes
	cluster   *cluster // nil for a single node
	stop      context.CancelFunc
	stopped   context.Context
	running   sync.WaitGroup
	instance  uint32
	listening health        // of the subscription to hints
	subscribe chan struct{} // says that instances has more

	deliveries deliveries // Has a lock of its own.

	mu sync.Mutex // Guards all that follows but routes.

	// What this process has.
	leases  leaseTable
	serial  uint32        // of the latest lease
	drained chan struct{} // closed when nothing is left to send; nil unless Close waits

	// Other processes.
	hasGiven  bool            // leases that began here may be elsewhere
	adoptedAt time.Duration   // when the latest lease came of those that are to be looked at; 0 for none
	instances map[uint32]bool // the processes whose leases are or were here, this one among them

	// Where commands go.
	loops       []*netpoll.Loop          // of the holders
	loopNumbers map[*netpoll.Loop]uint16 // the places in loops, counted from 1
	nodes       []*node
	waiting     queue                   // refused commands, which the watch sends again
	routes      atomic.Pointer[[]*node] // by hash slot, or just one; changed under mu
}

// A redisLease is a lease of this process on a session in Redis. There is one for each
// connection: see TestSizeOfALease.
type redisLease struct {
	// Fixed after Redis.begin or Redis.Adopt.
	slot uint16
	loop uint16 // the place of its holder's loop in Redis.loops, counted from 1; 0 for none

	// Guarded by Redis.mu.
	queued     bool  // in a node's commits or claims, or in Redis.waiting
	asking     bool  // the next command follows an ASK redirection
	inLooks    bool  // in a node's looks: perhaps in another queue as well
	damageTold bool  // OnDamaged has been told of the session
	owner      Owner // a departed one once it is released
	ownership
}

// id is the session that the lease is on. Under mu.
func (r *redisLease) id() ID { return r.owner.Holding().id }

// A departed is the owner of a lease that its holder has released. It has the session's
// ID, and nothing is told to it.
type departed struct{ lease Lease }

func (d *departed) Holding() *Lease     { return &d.lease }
func (*departed) Loop() Loop            { panic("BUG: a departed owner has no loop") }
func (*departed) OnClaimed(bool, error) { panic("BUG: a departed owner waits for nothing") }
func (*departed) OnCommitted(Outcome, uint64, time.Duration) {
	panic("BUG: a departed owner waits for nothing")
}
func (*departed) OnTakenOver() { panic("BUG: a departed owner has nothing to lose") }

// lifetimes are how long what is in Redis lives.
type lifetimes struct {
	renewal  time.Duration // between two renewals of a session that is held
	released time.Duration // the record of a session that nobody holds
	record   time.Duration // the record of one that is held: after a crash it lives for released at least
	owner    time.Duration // the owner's key: longer than any record, or two leases could count
	watch    time.Duration // between two looks at what waits
}

func newLifetimes(ttl, timeout time.Duration) lifetimes {
	renewal := min(ttl/4, 10*time.Minute)
	return lifetimes{
		renewal: renewal, released: ttl, record: ttl + 2*renewal, owner: ttl + 6*renewal,
		watch: min(timeout/20, renewal/4, 250*time.Millisecond),
	}
}

// NewRedis returns a store that connects in the background, now and whenever it
// has to. Until it has, it is not available.
func NewRedis(config RedisConfig) *Redis {
	s := &Redis{
		config: config, times: newLifetimes(config.TTL, config.Timeout),
		instance: rand.Uint32(), subscribe: make(chan struct{}, 1),
	}
	s.instances = map[uint32]bool{s.instance: true}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.loopNumbers = make(map[*netpoll.Loop]uint16)
	config.Metrics.QueueLength, config.Metrics.Available, config.Metrics.Parts = s.queueLength, s.Available, s.states
	s.listening.begin(s, config.Address.String()+", publish/subscribe")
	if config.Address.isCluster() {
		s.cluster = newCluster(s)
	} else {
		n := newNode(s, config.Address.client(config.Timeout), config.Address.String(), probeKey(0))
		s.nodes = []*node{n}
		s.routes.Store(&[]*node{n})
		n.start()
		s.start(func() { s.listen(n.client) })
	}
	s.start(s.watch)
	return s
}

var _ Store = (*Redis)(nil)

// start runs f in a goroutine. f has to return once s.stopped is done.
func (s *Redis) start(f func()) { s.running.Go(f) }

// Available implements Store: every node has answered within the timeout, and Redis
// does not refuse the subscription to hints.
func (s *Redis) Available() bool {
	return s.Trouble() == ""
}

// Trouble implements Store: the first part that is down, and the kind of its last error.
func (s *Redis) Trouble() string {
	for _, h := range s.parts() {
		if h.isDown() {
			return h.name + ": " + cmp.Or(h.trouble(), "no answer yet")
		}
	}
	return ""
}

// parts are the nodes and the subscription.
func (s *Redis) parts() (all []*health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		all = append(all, &n.health)
	}
	return append(all, &s.listening)
}

// states are the parts as the metrics tell of them.
func (s *Redis) states() (states []metrics.StorePart) {
	for _, h := range s.parts() {
		states = append(states, metrics.StorePart{Name: h.name, Available: !h.isDown(), Error: h.trouble()})
	}
	return states
}

// Len implements Store.
func (s *Redis) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases.len()
}

// Shrink implements Store.
func (s *Redis) Shrink() {
	s.shrink(runtime.Gosched)
}

// queueLength is how many leases have a command to send or on its way.
func (s *Redis) queueLength() (length int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		length += len(n.batch) + n.commits.len() + n.claims.len() + n.looks.len()
		for l := range n.openedLanes() {
			length += len(l.batch) + l.queue.len()
		}
	}
	return length + s.waiting.len()
}

// Mint implements Store. It does not wait for Redis: nobody else knows the ID.
func (s *Redis) Mint(l *Lease, owner Owner) error {
	return s.begin(l, NewID(), owner, phaseRestore)
}

// Claim implements Store.
func (s *Redis) Claim(l *Lease, id ID, owner Owner) (resumed bool, err error) {
	switch err := s.begin(l, id, owner, phaseFind); err {
	case nil:
		return false, ErrPending
	case ErrFull:
		s.config.Metrics.Claims[claimFull].Inc()
		return false, err
	default:
		s.config.Metrics.Claims[claimUnavailable].Inc()
		return false, err
	}
}

// begin makes a lease whose first command is that of phase.
func (s *Redis) begin(l *Lease, id ID, owner Owner, first phase) error {
	now := s.config.Now()
	token := token{epoch: uint64(time.Now().UnixMicro())}
	r := &redisLease{slot: s.slotOf(id), owner: owner}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.loop = s.loopNumber(owner)
	switch {
	case s.route(r).isDown():
		return ErrUnavailable
	case s.leases.len() >= s.config.Max:
		return ErrFull // Redis is slower than clients come and go
	}
	s.serial++
	token.lease = leaseID{s.instance, s.serial}
	r.ownership = newOwnership(token, first, now)
	l.id, l.entry = id, r
	s.leases.add(r)
	s.enqueue(r)
	return nil
}

// Commit implements Store.
func (s *Redis) Commit(l *Lease) Outcome {
	r := l.entry.(*redisLease)
	s.mu.Lock()
	if !r.commit(l.Count, s.config.Now()) {
		s.mu.Unlock()
		s.config.Metrics.Commits[Revoked].Inc()
		return Revoked
	}
	lane := s.queue(r)
	s.mu.Unlock()
	if lane != nil {
		lane.commit() // the holder calls from the lane's loop
	}
	return Pending
}

// Release implements Store. What the lease has committed, or has pending, is
// written once more, with the time to live of a session that nobody holds.
func (s *Redis) Release(l *Lease) {
	r, ok := l.entry.(*redisLease)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.release() {
		s.config.Metrics.Claims[claimAbandoned].Inc()
	}
	r.owner = &departed{Lease{id: l.id}}
	s.dropEnded(r)
	s.enqueue(r)
}

// Close implements Store.
func (s *Redis) Close(ctx context.Context) error {
	drained := make(chan struct{})
	s.mu.Lock()
	s.drained = drained
	s.checkDrained()
	s.mu.Unlock()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = ErrUnavailable
	}
	s.stop()
	for _, n := range s.allNodes() {
		n.closeLanes() // not left to a goroutine that may wait for Redis: the loops end soon
	}
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done(): // a read that waits for Redis cannot be interrupted
	}
	return err
}

func (s *Redis) allNodes() []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// checkDrained tells Close when every lease has been released, which is when
// nothing is left to send. Under mu.
func (s *Redis) checkDrained() {
	if s.drained != nil && s.leases.len() == 0 {
		close(s.drained)
		s.drained = nil
	}
}

// slotOf is 0 where there is one node for all slots.
func (s *Redis) slotOf(id ID) uint16 {
	if s.cluster == nil {
		return 0
	}
	return slotOf(id)
}

func (s *Redis) route(r *redisLease) *node {
	routes := *s.routes.Load()
	return routes[int(r.slot)%len(routes)]
}

// enqueue has r's next command sent, if one is due. Under mu.
func (s *Redis) enqueue(r *redisLease) {
	if l := s.queue(r); l != nil {
		l.wake()
	}
}

// queue puts r into the queue where its next command belongs, if one is due. If that is a
// lane's, the lane has to be told. Under mu.
func (s *Redis) queue(r *redisLease) *lane {
	isQueued := r.queued || r.isLook() && r.inLooks
	now := s.config.Now()
	if isQueued || !r.isDue(now, &s.times) {
		return nil
	}
	n := s.route(r)
	if l := n.laneOf(r); l != nil && r.fitsLane(now, &s.times) {
		l.queue.push(r)
		return l
	}
	n.push(r)
	return nil
}

// fitsLane reports whether the next command is due, and one that lanes carry.
func (r *redisLease) fitsLane(now time.Duration, times *lifetimes) bool {
	return r.isDue(now, times) && r.phase == phaseOwned && !r.asking && !r.mustRenew(now, times)
}

// loopNumber is the number of a holder's loop. A loop that is new gets a lane soon. Under mu.
func (s *Redis) loopNumber(owner Owner) uint16 {
	loop, isReal := owner.Loop().(*netpoll.Loop)
	if !isReal {
		return 0
	}
	number, isKnown := s.loopNumbers[loop]
	if !isKnown {
		s.loops = append(s.loops, loop)
		number = uint16(len(s.loops))
		s.loopNumbers[loop] = number
		for _, n := range s.nodes {
			n.suspect()
		}
	}
	return number
}

// dropEnded forgets r if it has ended. Under mu.
func (s *Redis) dropEnded(r *redisLease) {
	if r.phase == phaseEnded && s.leases.remove(r) {
		s.checkDrained()
	}
}

// verify has a lease looked at now: somebody may have taken its session, or
// Redis may have lost it. Under mu.
func (s *Redis) verify(r *redisLease) {
	r.mustVerify = true // even if a command is on its way: Redis may have answered it before
	s.enqueue(r)
}

// onHint has a lease of this process verified. Another process says that it has
// taken the lease's session.
func (s *Redis) onHint(lease leaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.leases.get(lease); r != nil {
		s.verify(r)
	}
}

// verifyAll looks at every lease that is held, in case a hint was missed.
func (s *Redis) verifyAll() { s.visitAll(s.verify) }
