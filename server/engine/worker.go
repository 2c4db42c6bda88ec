package engine

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/proto"
)

// A worker is an event loop with its connections. A method that runs "on the loop"
// runs on the loop's one goroutine; no other goroutine touches a connection.
type worker struct {
	// Fixed after newWorker.
	engine  *Engine
	loop    *netpoll.Loop
	metrics *metrics.Worker
	rules   proto.Rules
	// inflatingRules are those of connections with compression. rules has no Inflater.
	inflatingRules proto.Rules
	endpoints      []*endpoint
	inbox          *inbox

	// Atomic.
	sockets atomic.Int64 // how many are its own, from assign to forget

	// Owned by the loop.

	// Connections.
	conns      []*Conn
	upgraded   int              // how many are upgraded and not closed
	requestIDs map[*Conn]string // X-Request-ID of requests that wait for their session
	upgrader   *proto.Upgrader
	request    proto.Request // the request that the running callback answers; empty between callbacks
	date       httpDate

	// Memory that callbacks share.
	readBuffer []byte // a read goes here, unless the connection has a long spill
	out        []byte // answers of the running callback; empty between callbacks
	frame      []byte // Conn.Send makes its frame here
	text       []byte // a field of a log line is written here
	free       freeList
	spares     [][]byte // spills that no connection needs: see newSpill
	farewell   farewell // the close that the running handler has asked for
	inflater   proto.Inflater
	deflater   proto.Deflater

	frames int // how many were handled

	// What clients have begun.
	unfinished unfinished

	// Answers that wait.
	heldFrom  int     // the index in out where the answers begin whose count is not stored
	heldBytes int     // how many bytes of all backlogs wait for the store
	starved   []*Conn // connections that are not read, because heldBytes is too high
	dirty     []*Conn // connections with frames of Conn.Send to flush

	// The end.
	draining     bool
	holdRequests bool          // requests wait for the process that takes over
	unread       map[*Conn]int // bytes that arrived before the drain and are still to be read; nil before a drain
	onEmpty      func()        // called once, when a draining worker has no upgraded connection left
}

// An arrival is what the acceptor knows of a socket.
type arrival struct {
	fd      int
	ip      netip.Addr      // zero for a unix socket
	charged bool            // it counts for ip in -max-connections-per-ip
	beyond  handshakeResult // why it will be refused; withinLimits if it will not
}

func newWorker(e *Engine, loop *netpoll.Loop, m *metrics.Worker) *worker {
	w := &worker{
		engine: e, loop: loop, metrics: m,
		rules:      proto.Rules{FromClient: true, MaxMessage: e.config.MaxMessage},
		endpoints:  newEndpoints(e.config.Endpoints),
		readBuffer: make([]byte, readBufferBytes),
		upgrader:   proto.NewUpgrader(proto.Subprotocol, e.config.Compress > 0), requestIDs: make(map[*Conn]string),
	}
	w.inflatingRules = w.rules
	w.inflatingRules.Inflater = &w.inflater
	w.unfinished = unfinished{worker: w, standstill: longestStandstill}
	w.unfinished.timer.Owner = &w.unfinished
	w.inbox = newInbox(w)
	return w
}

// welcome makes a connection of a socket that was accepted.
func (w *worker) welcome(a arrival) {
	if c := newConn(w, a); w.enrol(c) {
		c.schedule()
	}
}

// enrol adds a connection to the loop. If that fails, it closes the connection and
// returns false. See remove.
func (w *worker) enrol(c *Conn) bool {
	if err := w.loop.Add(int(c.fd), netpoll.Readable, c.onEvent); err != nil {
		w.engine.config.Log.Warn().Err(err).Msg("connection_dropped")
		w.engine.forget(c)
		netpoll.CloseFD(int(c.fd))
		return false
	}
	c.watched = uint16(netpoll.Readable)
	c.index = int32(len(w.conns))
	w.conns = append(w.conns, c)
	return true
}

// remove removes a connection from the loop and from all counts. Its fd is still
// open on return.
func (w *worker) remove(c *Conn) {
	w.loop.Del(int(c.fd)) // before the fd is closed, or net/http gets it
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

// shrink gives up the memory that the worker's connections of the past have left; it
// runs on the loop. The callbacks' table is easygo's, and keeps its size.
func (w *worker) shrink() {
	w.conns, w.dirty, w.starved = slices.Clone(w.conns), slices.Clone(w.dirty), slices.Clone(w.starved)
	w.requestIDs = maps.Collect(maps.All(w.requestIDs))
	w.free, w.spares = freeList{}, nil
	w.out = nil
	w.inflater, w.deflater = proto.Inflater{}, proto.Deflater{}
}

// An inbox passes sockets from the acceptor to a worker. One task welcomes those that
// have gathered, welcomeMost in a turn of the loop; posting it allocates nothing.
type inbox struct {
	// Fixed after newInbox.
	worker *worker
	onMail func() // welcomeSome, made once: a method value allocates

	mu       sync.Mutex
	arrivals []arrival // Guarded by mu.
	isPosted bool      // Guarded by mu: onMail will run.

	// Owned by the worker's loop.
	taken   []arrival // the slice that arrivals is swapped with
	waiting []arrival // the rest of taken
}

// welcomeMost is how many sockets a worker welcomes before the others have had their turn.
// Of a thousand that come at once, each costs some 30 µs until its request is answered.
const welcomeMost = 16

func newInbox(w *worker) *inbox {
	b := &inbox{worker: w}
	b.onMail = b.welcomeSome
	return b
}

// maxKept is for how many sockets an inbox keeps memory.
const maxKept = 1024

// put may be called from any goroutine.
func (b *inbox) put(a arrival) {
	b.mu.Lock()
	b.arrivals = append(b.arrivals, a)
	first := !b.isPosted
	b.isPosted = true
	b.mu.Unlock()
	if first {
		b.worker.loop.Post(b.onMail)
	}
}

func (b *inbox) welcomeSome() {
	if b.welcome(welcomeMost) {
		b.worker.loop.Post(b.onMail)
	}
}

// welcomeAll is for a worker whose connections are about to go, or to end.
func (b *inbox) welcomeAll() {
	for b.welcome(maxKept) {
	}
}

// welcome welcomes at most n sockets, and reports whether more wait.
func (b *inbox) welcome(n int) (more bool) {
	if len(b.waiting) == 0 {
		b.take()
	}
	n = min(n, len(b.waiting))
	for _, a := range b.waiting[:n] {
		b.worker.welcome(a)
	}
	if b.waiting = b.waiting[n:]; len(b.waiting) == 0 && cap(b.taken) > maxKept {
		b.taken, b.waiting = nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.isPosted = len(b.waiting)+len(b.arrivals) > 0
	return b.isPosted
}

// take takes all that have arrived.
func (b *inbox) take() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = b.arrivals
	b.arrivals, b.taken = b.taken[:0], b.arrivals
}
