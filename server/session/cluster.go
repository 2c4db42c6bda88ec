package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A cluster keeps the nodes and the routes of a Redis store as Redis Cluster has
// them. It asks again now and then, after MOVED, and when a node fails.
type cluster struct {
	// Fixed after newCluster.
	store      *Redis
	client     *redis.ClusterClient // for CLUSTER SLOTS and publish/subscribe
	unassigned *node                // takes the leases whose slot has no node; it is always down
	again      chan struct{}
}

const (
	slotsEvery = 10 * time.Second       // between two looks at the slots when all is well
	slotsPause = 100 * time.Millisecond // between two looks at the least
)

func newCluster(s *Redis) *cluster {
	c := &cluster{store: s, client: s.config.Address.cluster(s.config.Timeout), again: make(chan struct{}, 1)}
	c.unassigned = newNode(s, nil, s.config.Address.String(), "")
	s.nodes = []*node{c.unassigned}
	s.routes.Store(&[]*node{c.unassigned})
	s.start(c.run)
	s.start(func() { s.listen(c.client) })
	return c
}

// reload has the slots asked for again soon.
func (c *cluster) reload() {
	select {
	case c.again <- struct{}{}:
	default:
	}
}

func (c *cluster) run() {
	defer c.client.Close()
	for known := false; ; {
		ctx, cancel := context.WithTimeout(c.store.stopped, c.store.config.Timeout)
		//lint:ignore SA1019 every Redis has CLUSTER SLOTS, before 7 and after
		ranges, err := c.client.ClusterSlots(ctx).Result()
		cancel()
		if err == nil {
			c.apply(ranges)
			known = true
		} else if !known && c.store.stopped.Err() == nil { // later on, the nodes tell of their own
			c.unassigned.health.onTrouble(c.withAdvice(err))
		}
		if !c.wait(err) {
			return
		}
	}
}

// withAdvice adds to an error of CLUSTER SLOTS what to write instead.
func (c *cluster) withAdvice(err error) error {
	if strings.Contains(err.Error(), "cluster support disabled") {
		return fmt.Errorf("%w: several addresses are a Redis Cluster; write one address, or those of sentinels with ?master_name=", err)
	}
	address := c.store.config.Address
	return address.explain(c.store.stopped, address.addrs[0], err)
}

// wait waits until it is time to ask for the slots again. It reports false when
// the store is closed.
func (c *cluster) wait(err error) (goOn bool) {
	stopped := c.store.stopped.Done()
	select {
	case <-stopped:
		return false
	case <-time.After(slotsPause):
	}
	if err != nil {
		return true
	}
	select {
	case <-stopped:
		return false
	case <-c.again:
	case <-time.After(slotsEvery):
	}
	return true
}

// apply makes the nodes and the routes what ranges say.
func (c *cluster) apply(ranges []redis.ClusterSlot) {
	probes := make([]string, len(ranges)) // made before the lock is taken: a key of a given slot has to be searched for
	for i, r := range ranges {
		probes[i] = probeKey(uint16(r.Start))
	}
	for _, n := range c.replaceRoutes(ranges, probes) {
		n.requeueAll()
	}
}

// replaceRoutes returns the nodes whose queues may have leases of other nodes now.
func (c *cluster) replaceRoutes(ranges []redis.ClusterSlot, probes []string) (changed []*node) {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	routes := make([]*node, slots)
	for i := range routes {
		routes[i] = c.unassigned
	}
	old := s.nodes
	s.nodes = nil
	for i, r := range ranges {
		if len(r.Nodes) == 0 {
			continue
		}
		n := c.keep(old, c.addressOf(r.Nodes[0].Addr), probes[i])
		for slot := r.Start; slot <= r.End; slot++ {
			routes[slot] = n
		}
	}
	if slices.Contains(routes, c.unassigned) {
		s.nodes = append(s.nodes, c.unassigned)
		if !slices.Contains(old, c.unassigned) {
			c.unassigned.failing.Store(int64(s.config.Now()))
		}
	}
	haveChanged := !slices.Equal(routes, *s.routes.Load())
	s.routes.Store(&routes)
	c.unassigned.up.Store(true) // from now on, a slot without a node may get one at any moment
	return c.retire(old, haveChanged)
}

// keep returns the node at addr, which has the slot of the key probe: the one there was,
// or a new one.
func (c *cluster) keep(old []*node, addr, probe string) *node {
	s := c.store
	for _, n := range s.nodes {
		if n.name == addr {
			return n
		}
	}
	for _, n := range old {
		if n.name == addr {
			n.probeKey = probe
			s.nodes = append(s.nodes, n)
			return n
		}
	}
	return c.add(addr, probe)
}

// retire ends the nodes that have no slots any more. It returns them, and if the routes have
// changed the others of old too. Under the store's mu.
func (c *cluster) retire(old []*node, haveChanged bool) (changed []*node) {
	for _, n := range old {
		hasEnded := n != c.unassigned && !slices.Contains(c.store.nodes, n)
		if hasEnded {
			n.cancel()
		}
		if hasEnded || haveChanged {
			changed = append(changed, n)
		}
	}
	return changed
}

// nodeAt is the node at addr: a new one if it is about to get its first slot.
// Under the store's mu.
func (c *cluster) nodeAt(addr string) *node {
	s := c.store
	for _, n := range s.nodes {
		if n.name == addr {
			return n
		}
	}
	return c.add(addr, "")
}

// add makes a node and starts it.
func (c *cluster) add(addr, probe string) *node {
	s := c.store
	n := newNode(s, s.config.Address.node(addr, s.config.Timeout, nil), addr, probe)
	n.up.Store(c.unassigned.up.Load()) // after the start, a new one gets time to answer
	s.nodes = append(s.nodes, n)
	n.start()
	return n
}

// addressOf fills in the host that a node which does not know its own leaves out.
func (c *cluster) addressOf(addr string) string {
	if !strings.HasPrefix(addr, ":") {
		return addr
	}
	host, _, _ := net.SplitHostPort(c.store.config.Address.addrs[0])
	return net.JoinHostPort(host, addr[1:])
}
