package session

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"turnstile/metrics"
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
	// answering, and that answers again. They are called from any goroutine.
	OnTrouble   func(node string, err error)
	OnRecovered func(node string, after time.Duration)
}

// Redis is the Store in Redis: it outlives the process, and is shared with
// other instances. No call waits for the network. What is asked goes into the
// queue of the session's node, from which one goroutine for each node takes
// all there is, sends it in one pipeline, and posts the outcomes to the owners'
// loops.
type Redis struct {
	// Fixed after NewRedis.
	config    RedisConfig
	times     lifetimes
	cluster   *cluster // nil for a single node
	stop      context.CancelFunc
	stopped   context.Context
	running   sync.WaitGroup
	instance  uint32
	moreNames chan struct{} // says that something is in unheard

	mu      sync.Mutex
	leases  map[holderID]*remote // Guarded by mu.
	serial  uint32               // Guarded by mu.
	names   map[uint32]bool      // Guarded by mu: the instances whose leases are or were here.
	gave    bool                 // Guarded by mu: leases that began here may be elsewhere.
	unheard []uint32             // Guarded by mu: those of names that are not listened to yet.
	nodes   []*node              // Guarded by mu.
	later   []*remote            // Guarded by mu: what the watch has to send.
	drained chan struct{}        // Guarded by mu: closed when nothing is left to send, nil unless Close waits.

	routes atomic.Pointer[[]*node] // by hash slot, or just one; changed under mu
}

// lifetimes are how long what is in Redis lives.
type lifetimes struct {
	every time.Duration // between two renewals of a session that is held
	left  time.Duration // the record of a session that nobody holds
	held  time.Duration // the record of one that is held: it outlives a crash by left
	owner time.Duration // the owner's key: longer than any record, or two could count
	watch time.Duration // between two looks at what waits
}

func newLifetimes(ttl, timeout time.Duration) lifetimes {
	every := min(ttl/4, 10*time.Minute)
	return lifetimes{
		every: every, left: ttl, held: ttl + 2*every, owner: ttl + 6*every,
		watch: min(timeout/20, every/4, 250*time.Millisecond),
	}
}

// NewRedis returns a store that connects in the background, now and whenever it
// has to. Until it has, it is not available.
func NewRedis(config RedisConfig) *Redis {
	s := &Redis{
		config: config, times: newLifetimes(config.TTL, config.Timeout),
		instance: rand.Uint32(), leases: make(map[holderID]*remote), moreNames: make(chan struct{}, 1),
	}
	s.names = map[uint32]bool{s.instance: true}
	s.stopped, s.stop = context.WithCancel(context.Background())
	config.Metrics.QueueLength, config.Metrics.Available = s.queueLength, s.Available
	if config.Address.isCluster() {
		s.cluster = newCluster(s)
	} else {
		client := config.Address.client(config.Timeout)
		n := newNode(s, client, config.Address.String(), probeKey(0))
		s.nodes = []*node{n}
		s.routes.Store(&[]*node{n})
		n.start()
		s.goes(func() { s.listen(client) })
	}
	s.goes(s.watch)
	return s
}

var _ Store = (*Redis)(nil)

// goes runs f until it returns, which it has to once s.stopped is done.
func (s *Redis) goes(f func()) { s.running.Go(f) }

// Available implements Store: every node has answered within the timeout.
func (s *Redis) Available() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.isDown() {
			return false
		}
	}
	return len(s.nodes) > 0
}

// Len implements Store.
func (s *Redis) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leases)
}

func (s *Redis) queueLength() (length int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range s.unsettled {
		length++
	}
	return length
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
	r := &remote{id: id, slot: s.slotOf(id), owner: owner, lease: l, phase: first, renewed: now}
	r.token.epoch = uint64(time.Now().UnixMicro())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.route(r).isDown():
		return ErrUnavailable
	case len(s.leases) >= s.config.Max:
		return ErrFull // Redis is slower than clients come and go
	}
	s.serial++
	r.token.holder = holderID{s.instance, s.serial}
	s.leases[r.token.holder] = r
	l.entry = r
	if r.claiming() {
		r.waiting = now
	}
	s.enqueue(r)
	return nil
}

// Commit implements Store.
func (s *Redis) Commit(l *Lease) Outcome {
	r := l.entry.(*remote)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.phase == phaseGone {
		s.config.Metrics.Commits[Revoked].Inc()
		return Revoked
	}
	r.want = l.Count
	r.waiting = s.config.Now()
	s.enqueue(r)
	return Pending
}

// Release implements Store. What the lease has committed, or has pending, is
// written once more, with the time to live of a session that nobody holds.
func (s *Redis) Release(l *Lease) {
	r, ok := l.entry.(*remote)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.claiming() && r.waiting != 0 {
		s.config.Metrics.Claims[claimAbandoned].Inc()
	}
	r.owner, r.lease, r.waiting = nil, nil, 0
	if r.claiming() && !r.flying {
		s.forget(r)
	}
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
	ended := make(chan struct{})
	go func() { s.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done(): // a read that waits for Redis cannot be interrupted
	}
	return err
}

// checkDrained tells Close when every lease has been released, which is when
// nothing is left to send. Under mu.
func (s *Redis) checkDrained() {
	if s.drained != nil && len(s.leases) == 0 {
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

func (s *Redis) route(r *remote) *node {
	routes := *s.routes.Load()
	return routes[int(r.slot)%len(routes)]
}

// enqueue has r's next command sent, if there is one. Under mu.
func (s *Redis) enqueue(r *remote) {
	if !r.queued && !r.flying && r.due(s.config.Now(), s.times.every) {
		s.route(r).push(r)
	}
}

// forget ends a lease. Under mu.
func (s *Redis) forget(r *remote) {
	r.phase = phaseGone
	delete(s.leases, r.token.holder)
	s.checkDrained()
}

// verify has a lease looked at now: somebody may have taken its session, or
// Redis may have lost it. Under mu.
func (s *Redis) verify(r *remote) {
	r.doubted = true // even if a command is on its way, which may have come too soon
	s.enqueue(r)
}

// taken has a lease of this process looked at, since it is said to have been
// taken over.
func (s *Redis) taken(holder holderID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.leases[holder]; r != nil {
		s.verify(r)
	}
}

// verifyAll looks at every lease that is held, in case a word was missed.
func (s *Redis) verifyAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.leases {
		s.verify(r)
	}
}

// watch renews what is held, sends again what could not be sent where it was,
// and lets expire what has waited too long.
func (s *Redis) watch() {
	ticker := time.NewTicker(s.times.watch)
	defer ticker.Stop()
	for renewed := s.config.Now(); ; {
		select {
		case <-s.stopped.Done():
			return
		case <-ticker.C:
		}
		now := s.config.Now()
		s.expire(now)
		s.sendLater()
		if now-renewed >= s.times.every/4 {
			renewed = now
			s.renew()
		}
	}
}

// renew sends every held session's times to live again before they are over.
func (s *Redis) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.leases {
		s.enqueue(r)
	}
}

// sendLater sends what had to wait for a while.
func (s *Redis) sendLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	later := s.later
	s.later = nil
	s.requeue(later)
}

// requeue puts leases out of a queue into the one that they belong to now.
// Under mu.
func (s *Redis) requeue(leases []*remote) {
	for _, r := range leases {
		r.queued = false
		s.enqueue(r)
	}
}

// expire answers those that have waited for longer than the timeout, and
// forgets what nobody holds and Redis no longer has.
func (s *Redis) expire(now time.Duration) {
	var notes []note
	s.mu.Lock()
	for r := range s.unsettled {
		if r.owner == nil && now-r.renewed > s.times.owner && !r.flying {
			s.forget(r)
		}
		if r.waiting != 0 && now-r.waiting > s.config.Timeout {
			notes = append(notes, s.giveUp(r))
		}
	}
	s.mu.Unlock()
	s.deliver(notes)
}

// unsettled is every lease of which something is to be sent or on its way.
// Under mu.
func (s *Redis) unsettled(yield func(*remote) bool) {
	for _, n := range s.nodes {
		for i := range n.flight {
			if !yield(n.flight[i].remote) {
				return
			}
		}
		for _, queue := range [...][]*remote{n.queue, n.claims} {
			for _, r := range queue {
				if !yield(r) {
					return
				}
			}
		}
	}
	for _, r := range s.later {
		if !yield(r) {
			return
		}
	}
}

// giveUp ends the wait of r's owner. What it waited for may happen yet, unless
// it releases the lease. Under mu.
func (s *Redis) giveUp(r *remote) note {
	r.waiting = 0
	if r.claiming() {
		s.config.Metrics.Claims[claimUnavailable].Inc()
		return note{owner: r.owner, kind: noteClaimed, err: ErrUnavailable}
	}
	s.config.Metrics.Commits[Unavailable].Inc()
	return note{owner: r.owner, kind: noteCommitted, outcome: Unavailable}
}
