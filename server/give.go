package main

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/engine"
	"turnstile/server/handover"
	"turnstile/server/session"
)

// A giver gives listeners, connections and the sessions that no connection holds to a
// successor, on a goroutine of its own. A worker freezes each batch on its loop, and
// releases it or takes it back after the exchange; it serves all others meanwhile.
type giver struct {
	server   *server
	exchange *handover.Exchange
	hello    handover.Hello // what the successor can take
	most     int            // how many connections a batch has at most
	batch    engine.Batch   // the one that is under way, or given and to be released
	moved    int            // how many connections were given
}

// batchSize is how many of n connections are frozen at a time. Each batch costs some changes of
// threads, and all of its connections wait for them.
func batchSize(n int) int { return min(max(leastBatch, n/300), mostBatch) }

const leastBatch, mostBatch = 32, 64

// freezeAgain is how long the giver waits for connections that cannot be frozen yet,
// because they wait for the store.
const freezeAgain = 2 * time.Millisecond

var errDraining = errors.New("a drain has begun")

// giveTo serves a successor that has asked for a handover on conn. It returns when the
// handover is over.
func (s *server) giveTo(conn *net.UnixConn) {
	x := handover.NewExchange(conn)
	defer x.Close()
	hello, err := x.Hear()
	if err != nil {
		s.log.Warn().Err(err).Msg("handover_failed")
		return
	}
	if !s.handingOver.CompareAndSwap(false, true) {
		s.refuseHandover(x, &handover.RefusedError{Reason: handover.RefusedBusy, Text: "another handover is under way"})
		return
	}
	defer s.handingOver.Store(false)
	if refused := s.objection(hello); refused != nil {
		s.refuseHandover(x, refused)
		return
	}
	wanted, err := x.Welcome(handover.Welcome{Connections: s.connections(), Listeners: s.listenAddresses()})
	if err != nil {
		s.log.Info().Err(err).Msg("handover_not_started")
		return
	}
	s.give(&giver{server: s, exchange: x, hello: hello, most: batchSize(s.connections())}, wanted)
}

// listenAddresses are the listeners' addresses, as -listen named them.
func (s *server) listenAddresses() (addresses []string) {
	for _, l := range s.engine.Listeners() {
		addresses = append(addresses, l.Asked)
	}
	return addresses
}

func (s *server) refuseHandover(x *handover.Exchange, e *handover.RefusedError) {
	s.countRefusal(e.Reason)
	s.log.Warn().Str("reason", string(e.Reason)).Str("text", e.Text).Msg("handover_refused")
	x.Refuse(e)
}

// countRefusal counts a refusal, unless only another version of this program knows its
// reason.
func (s *server) countRefusal(reason handover.Refusal) {
	if i := slices.Index(handover.Refusals, reason); i >= 0 {
		s.metrics.HandoverRefusals[i].Inc()
	}
}

// objection is why a process like this cannot take over, nil if it can.
func (s *server) objection(h handover.Hello) *handover.RefusedError {
	mine, need := s.hello(), s.connections()
	refuse := func(reason handover.Refusal, format string, args ...any) *handover.RefusedError {
		return &handover.RefusedError{Reason: reason, Text: fmt.Sprintf(format, args...)}
	}
	switch {
	case s.drainSince.Load() != 0:
		return refuse(handover.RefusedDraining, "it drains already")
	case s.takeover.Load() != nil:
		return refuse(handover.RefusedBusy, "it takes over from another server itself, or is prepared to")
	case h.Common() == 0:
		return refuse(handover.RefusedVersion, "its handovers are of versions %d to %d, not of %d to %d",
			h.Version, max(h.Version, h.Newest), mine.Version, mine.Newest)
	case h.Store != mine.Store:
		return refuse(handover.RefusedStore, "its sessions are in %q, not in %q", h.Store, mine.Store)
	case need > 0 && !slices.ContainsFunc(mine.Endpoints, func(path string) bool { return slices.Contains(h.Endpoints, path) }):
		return refuse(handover.RefusedEndpoints, "it serves %q, none of %q", h.Endpoints, mine.Endpoints)
	case need > 0 && h.FileDescriptors <= 0:
		return refuse(handover.RefusedFileDescriptors,
			"its limit of open files leaves room for no connection, and there are %d: raise its LimitNOFILE", need)
	case need > 0 && h.Connections <= 0:
		return refuse(handover.RefusedConnections,
			"it has room for no connection, and there are %d: raise its -max-connections", need)
	}
	return nil
}

// room is how many connections the successor may still get.
func (g *giver) room() int { return min(g.hello.Connections, g.hello.FileDescriptors) - g.moved }

// takes reports whether the successor can go on with a connection. One that it cannot
// take stays, and is drained.
func (g *giver) takes(r *handover.Record) bool {
	switch {
	case r.Endpoint == "":
		return true // a request that is not whole
	case !slices.Contains(g.hello.Endpoints, r.Endpoint):
		return false
	case r.V2 && !slices.Contains(g.hello.Subprotocols, proto.Subprotocol):
		return false
	case r.Window != 0 && !g.hello.Compress:
		return false
	case g.hello.MaxMessage >= g.server.config.MaxMessage:
		return true
	case r.Window != 0: // how long a message is that is cut or waits, nobody knows yet
		return len(r.Unparsed) == 0 && r.Parser.Op == 0
	}
	return messageBytes(r) <= int64(g.hello.MaxMessage)
}

// messageBytes is how long a message of the client's may be that the successor has to go on
// with: the one that is cut, or one that waits.
func messageBytes(r *handover.Record) int64 {
	parser := proto.Parser{Rules: &proto.Rules{FromClient: true, MaxMessage: math.MaxInt}}
	return int64(len(r.Parser.Message)) + max(int64(len(r.Unparsed)), parser.FrameEnd(r.Unparsed))
}

// give carries out the handover. After it, the process drains the connections that are
// left, and ends; if it fails, the process goes on serving those it still has.
func (s *server) give(g *giver, wanted handover.Go) {
	s.giving <- struct{}{}
	defer func() { <-s.giving }()
	began := netpoll.Monotonic()
	s.log.Info().Int("connections", s.connections()).Strs("listeners", wanted.Listeners).Msg("handover_started")
	err := g.giveAll(wanted)
	took := netpoll.Monotonic() - began
	s.metrics.HandoverTime.Set(took)
	if err != nil {
		s.engine.HoldRequests(false)
		s.engine.TakeBack()
		s.log.Error().Err(err).Int("moved", g.moved).Int("left", s.connections()).Int64("duration_ms", took.Milliseconds()).Msg("handover_failed")
		return
	}
	s.log.Info().Int("moved", g.moved).Int("left", s.connections()).Int64("duration_ms", took.Milliseconds()).Msg("handover_finished")
	s.hasGiven.Store(true)
	s.handedOver <- struct{}{}
}

func (g *giver) giveAll(wanted handover.Go) error {
	s := g.server
	if s.drainSince.Load() != 0 {
		return errDraining
	}
	s.engine.HoldRequests(true)
	if err := g.giveListeners(wanted.Listeners); err != nil {
		return err
	}
	if err := g.giveConnections(); err != nil {
		return err
	}
	// Clients that came meanwhile go as well: accept all of them, and then give the
	// workers' connections once more.
	s.engine.StopAccepting()
	if err := g.giveConnections(); err != nil {
		return err
	}
	if s.drainSince.Load() != 0 {
		return errDraining
	}
	if s.memory != nil {
		if err := s.memory.Export(g.giveSessions); err != nil {
			return err
		}
	}
	if err := g.exchange.Done(); err != nil {
		return err
	}
	s.engine.CloseListeners()
	return nil
}

func (g *giver) giveListeners(addresses []string) error {
	lent := g.server.engine.Lend(addresses)
	if len(lent) == 0 {
		return nil
	}
	var asked []string
	var fds []int
	for _, l := range lent {
		asked, fds = append(asked, l.Asked), append(fds, l.FD)
	}
	_, err := g.exchange.OfferListeners(asked, fds) // see Listener.Shared
	return err
}

func (g *giver) giveSessions(states []session.State) (given bool, err error) {
	sessions := make([]handover.Session, len(states))
	for i, state := range states {
		sessions[i] = handover.Session(state)
	}
	return g.exchange.OfferSessions(sessions)
}

func (g *giver) giveConnections() error {
	for number := range g.server.config.Workers {
		if err := g.giveWorker(number); err != nil {
			return err
		}
	}
	return nil
}

// giveWorker gives the connections of a worker that the successor can take, and has room
// for. Those that wait for the store longer than -store-timeout stay, for the drain.
func (g *giver) giveWorker(number int) error {
	defer g.batch.Release() // the last one; Freeze releases the others
	patience := g.server.config.StoreTimeout + time.Second
	for progress := time.Now(); g.room() > 0; {
		waiting := g.server.engine.Freeze(&g.batch, number, min(g.most, g.room()), g.takes)
		switch {
		case len(g.batch.FDs) > 0:
			if err := g.giveBatch(); err != nil {
				return err
			}
			progress = time.Now()
		case waiting == 0 || time.Since(progress) > patience:
			return nil
		default:
			time.Sleep(freezeAgain)
		}
		if g.server.drainSince.Load() != 0 {
			return errDraining
		}
	}
	return nil
}

// giveBatch gives the batch that is under way, and leaves its release to giveWorker.
func (g *giver) giveBatch() error {
	given, err := g.exchange.OfferConnections(g.batch.Records, g.batch.FDs)
	if given {
		g.moved += len(g.batch.FDs)
	} else {
		g.batch.TakeBack()
	}
	return err
}
