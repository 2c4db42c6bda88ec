package session

// settle takes in what has become of a batch. The error is one after which the
// connection is of no use.
func (s *Redis) settle(n *node, batch []flying, hints []holderID) (failure error) {
	var notes []note
	s.mu.Lock()
	for i := range batch {
		f := &batch[i]
		f.flying = false
		reply, err := f.reply()
		if err == nil {
			notes = append(notes, s.onReply(n, f, reply)...)
		} else if err := s.onError(n, f, err); err != nil && failure == nil {
			failure = err
		}
		if f.owner == nil && f.claiming() {
			s.forget(f.remote)
		}
		s.enqueue(f.remote)
	}
	if failure != nil {
		n.hints = append(n.hints, hints...) // nobody may have heard them
	}
	clear(batch)
	n.flight = batch[:0]
	s.mu.Unlock()
	s.deliver(notes)
	return failure
}

// onReply is what Redis answered. Under mu.
func (s *Redis) onReply(n *node, f *flying, got reply) []note {
	r := f.remote
	switch {
	case got.fence:
		r.phase, r.rival = phaseRestore, f.token
	case f.phase == phaseFind:
		r.phase, r.rival = phaseTake, ""
		if got.owner != "" {
			r.onOwner(got.owner)
		}
	case got.owner != "":
		if r.onOwner(got.owner) {
			return s.lose(n, r)
		}
	default:
		return s.onStored(n, f, got)
	}
	return nil
}

// onStored follows a command that has done what it was to do. Under mu.
func (s *Redis) onStored(n *node, f *flying, got reply) []note {
	r := f.remote
	r.count = f.count
	if f.phase == phaseTake {
		r.count, r.want = got.count, got.count
	}
	if f.phase != phaseHeld || f.renew {
		r.renewed = f.at
	}
	s.tellLoser(n, r)
	r.phase, r.proven = phaseHeld, true
	if r.owner == nil && f.lives == s.times.left {
		s.forget(r)
	}
	if r.waiting == 0 || r.count != r.want {
		return nil
	}
	told := note{owner: r.owner, lease: r.lease, count: r.count, asked: r.waiting}
	if f.phase == phaseTake {
		told.resumed = r.known && got.known
		told.kind = noteClaimed
		s.countClaim(told.resumed)
	} else {
		told.kind = noteCommitted
		s.config.Metrics.Commits[Committed].Inc()
		s.config.Metrics.CommitLatency.Update((s.config.Now() - r.waiting).Seconds())
	}
	r.waiting = 0
	return []note{told}
}

// lose ends a lease whose session is another one's. Under mu.
func (s *Redis) lose(n *node, r *remote) []note {
	s.forget(r)
	if r.owner == nil {
		return nil
	}
	if r.waiting == 0 {
		s.config.Metrics.Takeovers[takeoverTold].Inc()
		return []note{{owner: r.owner, kind: noteTakenOver}}
	}
	s.config.Metrics.Takeovers[takeoverFenced].Inc()
	s.config.Metrics.Commits[Revoked].Inc()
	return []note{{owner: r.owner, kind: noteCommitted, outcome: Revoked}}
}

// tellLoser has the owner that was replaced look at its lease, wherever it is.
// If the word is lost, it finds out when it next counts or renews. Under mu.
func (s *Redis) tellLoser(n *node, r *remote) {
	loser := parseToken(r.loser)
	r.loser = ""
	switch {
	case loser.epoch == 0:
	case s.leases[loser.holder] != nil:
		s.verify(s.leases[loser.holder])
	case loser.holder.instance != s.instance || s.gave:
		n.hints = append(n.hints, loser.holder)
	}
}

// revisit has every lease of n's looked at before any claim. Under no lock.
func (s *Redis) revisit(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.closed = true
	queue := n.queue
	n.queue = nil
	for _, r := range queue {
		n.push(r) // claims wait, the others are looked at anyway
	}
	for _, r := range s.leases {
		if s.route(r) == n && !r.claiming() {
			s.verify(r)
		}
	}
}

// admitClaims ends what revisit began.
func (s *Redis) admitClaims(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.closed = false
	claims := n.claims
	n.claims = nil
	s.requeue(claims)
}

// onError is what Redis refused, or what has become of the connection. Under
// mu. It returns the error if the connection is of no more use.
func (s *Redis) onError(n *node, f *flying, err error) error {
	f.doubted = f.doubted || f.renew
	kind := errorKindOf(err)
	switch kind.scope() {
	case scopeConnection:
		f.doubt()
		return err
	case scopeNode:
		return err
	}
	s.config.Metrics.Errors[kind].Inc()
	if kind == errorAsk && s.cluster != nil {
		f.remote.asking = true
		s.cluster.nodeAt(s.cluster.addressOf(redirectedTo(err))).push(f.remote)
		return nil
	}
	if kind == errorMoved && s.cluster != nil {
		s.cluster.reload()
	}
	f.queued = true
	s.later = append(s.later, f.remote)
	return nil
}

func (s *Redis) countClaim(resumed bool) {
	result := claimStarted
	if resumed {
		result = claimResumed
	}
	s.config.Metrics.Claims[result].Inc()
}
