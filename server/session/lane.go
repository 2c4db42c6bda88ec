package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"turnstile/netpoll"
)

// A lane is a connection to a node that belongs to one worker's loop. It carries the
// commits of that loop's connections. Between a message and its answer there is no other
// goroutine.
//
// All else is the node's goroutine's: claims, looks and renewals, and what lanes cannot
// carry at the moment. It opens the lanes once its own connection works, and closes them
// before it makes another one. So no lane ever talks to another server than the node.
//
// One pipeline is under way at a time. Meanwhile the next one gathers.
type lane struct {
	// Fixed after node.admit.
	node  *node
	loop  *netpoll.Loop
	index int // in node.lanes
	conn  *laneConn
	task  func() // run

	// Guarded by store.mu.
	queue  queue
	posted bool // task will run

	flight // its batch is empty while nothing is under way

	// Owned by the loop.
	timer    netpoll.Timer
	timed    bool // the timer is set
	sentAt   time.Duration
	out      []byte
	in       []byte // what is read of an answer that is not whole
	answered int    // of the batch
	telling  bool   // the holders of a batch are being told
	isDense  bool   // the last pipeline had more than one commit
	watched  bool   // for writing too
	begun    bool
	ended    bool
}

const (
	// laneMost is how many commits one pipeline of a lane takes at the most. Their holders are
	// answered in one go, and the loop's other connections wait meanwhile.
	laneMost = 256
	// laneBuffer is what is read at once: the answers to a full pipeline, and more.
	laneBuffer = 4096
)

// errLaneTimeout says that an answer did not come in time.
var errLaneTimeout = fmt.Errorf("an answer to a commit: %w", os.ErrDeadlineExceeded)

// begin takes the connection into the loop.
func (l *lane) begin() {
	if l.ended {
		return
	}
	l.timer.Owner = l
	if err := l.loop.Add(l.conn.socket.fd, netpoll.Readable, l.onReady); err != nil {
		l.fail(err)
		return
	}
	l.begun = true
	l.send()
}

// commit sends what a holder has queued. It runs on the loop. If commits come one at a time
// this one is sent at once. If not, it waits for those of the other sockets that are ready.
func (l *lane) commit() {
	if l.isDense {
		l.node.store.mu.Lock()
		l.wake()
		l.node.store.mu.Unlock()
	} else {
		l.send()
	}
}

// wake has what is queued sent, from any goroutine. Under store.mu.
func (l *lane) wake() {
	if !l.posted {
		l.posted = true
		l.loop.Post(l.task)
	}
}

func (l *lane) run() {
	l.node.store.mu.Lock()
	l.posted = false
	l.node.store.mu.Unlock()
	l.send()
}

// send sends what is queued, if nothing is under way. It runs on the loop. It tells no
// holder anything: it may run within a holder's Commit.
func (l *lane) send() {
	if !l.begun || l.ended || l.telling || !l.take() {
		return
	}
	for i := range l.batch {
		f := &l.batch[i]
		store := l.storing.take(l.node.ctx)
		store.set(f.id, &f.command)
		l.out = store.appendTo(l.out)
		f.sent = store
	}
	l.node.store.config.Metrics.BatchSize.Update(float64(len(l.batch)))
	l.sentAt = l.loop.Now()
	l.setTimer()
	l.isDense = len(l.batch) > 1
	_, err := l.conn.Write(l.out)
	l.out = l.out[:0]
	if err == nil {
		err = l.watch()
	}
	if err != nil {
		l.loop.Post(func() { l.fail(err) })
	}
}

// take makes a batch of the front of the queue. It reports false if there is none, or one
// is under way.
func (l *lane) take() bool {
	s := l.node.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(l.batch) > 0 {
		return false
	}
	now := s.config.Now()
	for l.queue.len() > 0 && len(l.batch) < laneMost {
		if r := l.queue.pop(); r.fitsLane(now, &s.times) {
			l.add(r, now, &s.times)
		} else {
			s.enqueue(r) // it may have to be renewed by now
		}
	}
	return len(l.batch) > 0
}

// watch has the loop watch for writing while there is something to write.
func (l *lane) watch() error {
	hasMore := l.conn.socket.hasMore()
	if hasMore == l.watched {
		return nil
	}
	l.watched = hasMore
	events := netpoll.Readable
	if hasMore {
		events |= netpoll.Writable
	}
	return l.loop.Mod(l.conn.socket.fd, events)
}

// onReady reads answers, and writes what did not fit before.
func (l *lane) onReady(w netpoll.Woken) {
	events := l.loop.Awake(w)
	if l.ended {
		return
	}
	var err error
	if events&netpoll.Writable != 0 {
		if err = l.conn.socket.flush(); err == nil {
			err = l.watch()
		}
	}
	if err == nil {
		err = l.read()
	}
	if err != nil {
		l.fail(err)
	}
}

// read reads what has come. Behind the answer to the last command of a pipeline there is
// nothing to read.
func (l *lane) read() error {
	for {
		if len(l.in) == cap(l.in) {
			l.in = slices.Grow(l.in, laneBuffer)
		}
		n, err := l.conn.Read(l.in[len(l.in):cap(l.in)])
		if err != nil {
			return orNothing(err)
		}
		l.in = l.in[:len(l.in)+n]
		if err := l.parse(); err != nil {
			return err
		}
		if len(l.batch) > 0 && l.answered == len(l.batch) {
			return l.settle()
		}
	}
}

// longestAnswer is how long the line of an answer may be. Redis's errors are shorter.
const longestAnswer = 64 << 10

// parse gives the lines that are there to the commands of the batch. SET has no other
// answers than lines: OK, nil, or an error.
func (l *lane) parse() error {
	rest := l.in
	for {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			break
		}
		if l.answered == len(l.batch) {
			return fmt.Errorf("an answer to nothing: %.100q", rest[:end])
		}
		l.batch[l.answered].sent.(*storeCommand).Write(rest[:end+1])
		l.answered++
		rest = rest[end+1:]
	}
	if len(rest) > longestAnswer {
		return fmt.Errorf("an answer of more than %d bytes", longestAnswer)
	}
	l.in = l.in[:copy(l.in, rest)]
	return nil
}

// settle takes in the answers to a batch, and tells the holders.
func (l *lane) settle() error {
	failure := l.node.store.settle(l.node, &l.flight, nil)
	l.answered = 0
	l.telling = true
	for i := range l.notes {
		l.notes[i].tell(l.node.store.config.Now)
	}
	l.telling = false
	l.clearNotes()
	if failure == nil {
		l.node.store.config.Metrics.LastSuccess.Store(int64(l.node.store.config.Now()))
		l.send()
	}
	return failure
}

// setTimer sees to it that an answer that does not come is noticed. It is set once for many
// pipelines.
func (l *lane) setTimer() {
	if !l.timed {
		l.timed = true
		l.loop.Schedule(&l.timer, l.sentAt+l.node.call())
	}
}

// orNothing is err, unless that only says that there is nothing to read.
func orNothing(err error) error {
	if errors.Is(err, errWouldBlock) {
		return nil
	}
	return err
}

// OnTimer implements netpoll.Expirer.
func (l *lane) OnTimer() {
	l.timed = false
	switch {
	case l.ended || l.answered == len(l.batch):
	case l.loop.Now()-l.sentAt >= l.node.call():
		l.late()
	default:
		l.setTimer()
	}
}

// late ends a lane whose answers do not come. It reads first: the loop may have stood still,
// and not Redis.
func (l *lane) late() {
	sentAt := l.sentAt
	err := l.read()
	switch {
	case err == nil && len(l.batch) > 0 && l.sentAt == sentAt:
		l.fail(errLaneTimeout)
	case err != nil:
		l.fail(err)
	case len(l.batch) > 0:
		l.setTimer()
	}
}

// fail ends a lane that is of no use, and has the node looked at. That Redis has closed an
// idle connection is no error.
func (l *lane) fail(err error) {
	if l.ended {
		return
	}
	if err != io.EOF || len(l.batch) > 0 {
		l.node.store.config.Metrics.Errors[errorKindOf(err)].Inc()
	}
	l.end()
	l.node.suspect()
}

// end closes the lane. What it had sent may have been carried out or not; what it had
// queued goes to the node's goroutine.
func (l *lane) end() {
	if l.ended {
		return
	}
	l.ended = true
	l.loop.Cancel(&l.timer)
	l.loop.Del(l.conn.socket.fd)
	l.conn.socket.close()
	l.node.remove(l)
	if len(l.batch) > 0 {
		l.settle()
	}
}
