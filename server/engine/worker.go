package engine

import (
	"net/netip"
	"sync"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/proto"
)

// A worker is an event loop with its connections. What is said to run on its
// loop runs on one goroutine; no connection is ever seen by two.
type worker struct {
	// Fixed after newWorker.
	engine    *Engine
	loop      *netpoll.Loop
	metrics   *metrics.Worker
	rules     proto.Rules
	endpoints []*endpoint
	inbox     *inbox

	// Owned by the loop.

	// Connections.
	conns      []*Conn
	upgraded   int              // how many are upgraded and not closed
	requestIDs map[*Conn]string // of requests that wait for their session
	upgrader   *proto.Upgrader

	// Memory that callbacks share.
	readBuffer []byte // what a read goes into where no frame is unfinished
	out        []byte // what the running callback has appended; empty between callbacks
	frame      []byte // what Conn.Send makes
	text       []byte // what a log line is given
	free       freeList
	farewell   farewell // what the running handler has asked for

	// What waits.
	heldFrom  int     // where in out the answers start whose count is not stored
	heldBytes int     // of all backlogs, what waits for the store
	starved   []*Conn // not read, because heldBytes is too much
	dirty     []*Conn // have frames of Conn.Send to send

	// The end.
	draining     bool
	holdRequests bool          // another process takes over, and answers them
	unread       map[*Conn]int // what of a drain's connections had arrived and is to be read, nil before it
	onEmpty      func()        // called once, when a draining worker has no upgraded connection left
}

// An arrival is what the acceptor knows of a socket.
type arrival struct {
	fd          int
	ip          netip.Addr // zero for a unix socket
	beyondLimit bool       // it is beyond -max-connections
	charged     bool       // it counts for ip in -max-connections-per-ip
	refused     bool       // it is beyond that
}

func newWorker(e *Engine, loop *netpoll.Loop, m *metrics.Worker) *worker {
	w := &worker{
		engine: e, loop: loop, metrics: m,
		rules:      proto.Rules{FromClient: true, MaxMessage: e.config.MaxMessage},
		endpoints:  newEndpoints(e.config.Endpoints),
		readBuffer: make([]byte, readBufferBytes),
		upgrader:   proto.NewUpgrader(proto.Subprotocol), requestIDs: make(map[*Conn]string),
	}
	w.inbox = newInbox(w)
	return w
}

// adopt makes a connection of a socket that was accepted.
func (w *worker) adopt(a arrival) {
	c := newConn(w, a)
	if !w.enrol(c) {
		return
	}
	c.schedule()
	if a.refused {
		c.refuse(handshakeTooManyOfIP)
		c.flush()
	}
}

// enrol takes a connection into the loop; one that cannot be is closed, and
// false returned. See remove.
func (w *worker) enrol(c *Conn) bool {
	if err := w.loop.Add(int(c.fd), netpoll.Readable, c.onEvent); err != nil {
		w.engine.config.Log.Warn().Err(err).Msg("connection_dropped")
		w.engine.forget(c)
		netpoll.CloseFD(int(c.fd))
		return false
	}
	c.watched = uint8(netpoll.Readable)
	c.index = int32(len(w.conns))
	w.conns = append(w.conns, c)
	return true
}

// remove takes a connection out of the loop and of all counts. Its fd is still
// open on return.
func (w *worker) remove(c *Conn) {
	w.loop.Del(int(c.fd)) // before the fd is closed or goes elsewhere
	w.loop.Cancel(&c.timer)
	last := len(w.conns) - 1
	moved := w.conns[last]
	w.conns[c.index], moved.index = moved, c.index
	w.conns[last] = nil
	w.conns = w.conns[:last]
	delete(w.requestIDs, c)
	delete(w.unread, c)
	w.engine.forget(c)
}

// An inbox passes sockets from the acceptor to a worker: one task for as many
// as gather until the worker comes to take them, and no garbage.
type inbox struct {
	worker *worker
	take   func() // taken as a value once, so that posting it allocates nothing

	mu       sync.Mutex
	arrivals []arrival // Guarded by mu.

	taken []arrival // Owned by the worker's loop: the slice that arrivals is swapped with.
}

func newInbox(w *worker) *inbox {
	b := &inbox{worker: w}
	b.take = b.adoptAll
	return b
}

// put may be called from any goroutine.
func (b *inbox) put(a arrival) {
	b.mu.Lock()
	b.arrivals = append(b.arrivals, a)
	first := len(b.arrivals) == 1
	b.mu.Unlock()
	if first {
		b.worker.loop.Post(b.take)
	}
}

func (b *inbox) adoptAll() {
	b.mu.Lock()
	b.arrivals, b.taken = b.taken[:0], b.arrivals
	b.mu.Unlock()
	for _, a := range b.taken {
		b.worker.adopt(a)
	}
}
