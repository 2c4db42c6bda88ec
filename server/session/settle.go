package session

// settle takes in what has become of a pipeline. What it means for the holders is in
// f.notes, to be told to them. The error is one after which the connection is of no use.
func (s *Redis) settle(n *node, f *flight, hints []leaseID) (failure error) {
	var damaged []damage
	s.mu.Lock()
	for i := range f.batch {
		r := f.batch[i].lease
		got, err := f.batch[i].answer()
		damaged = s.appendDamage(damaged, n, r, err)
		e := r.onAnswer(&f.batch[i].command, got)
		if err := s.onError(n, r, err); err != nil && failure == nil {
			failure = err
		}
		s.tellReplaced(n, e.replaced)
		f.notes = s.appendNote(f.notes, r, e.news)
		s.dropEnded(r)
		s.enqueue(r)
	}
	if failure != nil {
		n.hints = append(n.hints, hints...) // Redis may not have published them
	}
	clear(f.batch)
	f.batch = f.batch[:0]
	s.mu.Unlock()
	f.storing.takeBack(failure)
	for _, d := range damaged {
		s.config.OnDamaged(d.id, d.err)
	}
	return failure
}

// A damage is a session of which Redis has something else than this package writes.
type damage struct {
	id  ID
	err error
}

// appendDamage adds the damage that err says r's session has, once for each lease. If the
// owner is there and knows the count, it writes that again when it looks. Under mu.
func (s *Redis) appendDamage(all []damage, n *node, r *redisLease, err error) []damage {
	if err == nil || errorKindOf(err) != errorDamaged {
		return all
	}
	s.tellReplaced(n, parseToken(r.expected()))
	if r.damageTold {
		return all
	}
	r.damageTold = true
	return append(all, damage{r.id(), err})
}

// tellReplaced has the lease that was the owner look at its session, in whatever
// process it is. If that process does not hear it, the lease finds out when it
// next counts or renews. Under mu.
func (s *Redis) tellReplaced(n *node, replaced token) {
	switch {
	case replaced.epoch == 0:
	case s.leases.get(replaced.lease) != nil:
		s.verify(s.leases.get(replaced.lease))
	case replaced.lease.instance != s.instance || s.hasGiven:
		n.hints = append(n.hints, replaced.lease)
		n.signal()
	}
}

// onError counts what Redis refused, and has r's command sent again where and
// when Redis may take it. It returns the errors that concern the connection or
// the whole node. Under mu.
func (s *Redis) onError(n *node, r *redisLease, err error) error {
	if err == nil {
		return nil
	}
	kind := errorKindOf(err)
	if kind.scope() != scopeSession {
		return err
	}
	if kind == errorMoved && s.cluster == nil {
		n.isOfCluster.Store(true)
		return errClusterNode
	}
	s.config.Metrics.Errors[kind].Inc()
	if kind == errorAsk && s.cluster != nil {
		r.asking = true
		s.cluster.nodeAt(s.cluster.addressOf(redirectedTo(err))).push(r)
		return nil
	}
	if kind == errorMoved && s.cluster != nil {
		s.cluster.reload()
	}
	s.waiting.push(r)
	return nil
}

// holdClaims has every lease of the node verified before any claim is sent.
func (s *Redis) holdClaims(n *node) {
	s.mu.Lock()
	n.holdsClaims = true
	s.mu.Unlock()
	s.visitAll(func(r *redisLease) {
		if s.route(r) == n && !r.isClaiming() {
			s.verify(r)
		}
	})
}

// admitClaims ends what holdClaims began.
func (s *Redis) admitClaims(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.holdsClaims = false
}
