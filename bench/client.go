package main

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/proto"
)

// A client is one WebSocket connection. It belongs to one lane's loop.
type client struct {
	lane    *lane
	index   int  // among all clients of all processes: it picks the local address
	stays   bool // a storm does not cut it
	fd      int
	state   clientState
	parser  proto.Parser
	spill   []byte          // of an unfinished frame
	backlog []byte          // what the socket did not take
	began   time.Duration   // when it began to connect
	due     []time.Duration // when each message without an answer was to be sent

	session  string
	count    uint64 // of the last answer
	lastBeat time.Duration
	answered bool // since it connected
}

type clientState uint8

const (
	clientIdle clientState = iota
	clientDialing
	clientUpgrading
	clientOpen
)

var (
	clientRules = proto.Rules{MaxMessage: 1 << 20}
	clientMask  = [4]byte{0x37, 0xfa, 0x21, 0x3d}
)

// readBytes is the room for one read.
const readBytes = 64 << 10

// connect begins to connect; with resume to the session it had.
func (c *client) connect(resume bool) {
	if !resume {
		c.session, c.count = "", 0
	}
	c.began, c.answered = netpoll.Monotonic(), false
	c.parser, c.due = proto.Parser{Rules: &clientRules}, c.due[:0]
	fd, err := c.lane.generator.target.dial(c.index)
	if err != nil {
		c.lane.failedToOpen(fmt.Sprintf("connect: %v", err))
		return
	}
	c.fd, c.state = fd, clientDialing
	if err := c.lane.loop.Add(fd, netpoll.Writable, c.onEvent); err != nil {
		netpoll.CloseFD(fd)
		c.state = clientIdle
		c.lane.failedToOpen(err.Error())
	}
}

func (c *client) onEvent(woken netpoll.Woken) {
	events := c.lane.loop.Awake(woken)
	if c.state == clientDialing {
		c.onConnected()
		return
	}
	if c.state != clientIdle && events&netpoll.Writable != 0 {
		c.onWritable()
	}
	if c.state != clientIdle && events&^netpoll.Writable != 0 {
		c.onReadable()
	}
}

func (c *client) onConnected() {
	if code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		c.fail("connect: " + unix.Errno(code).Error())
		return
	}
	c.state = clientUpgrading
	c.lane.loop.Mod(c.fd, netpoll.Readable)
	t := c.lane.generator.target
	path := t.path
	if c.session != "" {
		path += "?session_id=" + c.session
	}
	c.write(proto.AppendRequest(c.lane.out[:0], t.host, path, ""))
}

func (c *client) onReadable() {
	l := c.lane
	l.in = slices.Grow(l.in[:0], len(c.spill)+readBytes)
	l.in = l.in[:cap(l.in)]
	seen := copy(l.in, c.spill)
	n, err := netpoll.Read(c.fd, l.in[seen:])
	switch {
	case err == netpoll.ErrAgain:
		return
	case err != nil:
		c.fail("lost: " + err.Error())
		return
	case n == 0:
		c.fail("lost: closed by the server")
		return
	}
	rest := c.consume(l.in[:seen+n])
	c.spill = append(c.spill[:0], rest...)
	if c.state == clientOpen && len(l.out) > 0 {
		c.write(l.out)
	}
	l.out = l.out[:0]
}

// consume handles what was read and returns what is unfinished of it.
func (c *client) consume(buf []byte) (rest []byte) {
	if c.state == clientUpgrading {
		end := proto.HeaderEnd(buf, 0)
		if end == 0 {
			return buf
		}
		if err := proto.CheckUpgrade(buf[:end]); err != nil {
			c.fail(err.Error())
			return nil
		}
		buf = buf[end:]
		c.onOpen()
	}
	for c.state == clientOpen {
		m, n, err := c.parser.Next(buf)
		if err != nil {
			c.fail("protocol: " + err.Error())
			return nil
		}
		buf = buf[n:]
		if m.Op == proto.OpContinuation {
			return buf
		}
		c.onFrame(m)
	}
	return nil
}

func (c *client) onOpen() {
	c.state = clientOpen
	c.lastBeat = 0
	c.lane.opened(c)
}

func (c *client) onFrame(m proto.Message) {
	switch m.Op {
	case proto.OpPing:
		c.lane.out = proto.AppendMaskedFrame(c.lane.out, proto.OpPong, true, clientMask, m.Payload)
	case proto.OpClose:
		c.fail(fmt.Sprintf("lost: close %d", proto.CloseCode(m.Payload)))
	case proto.OpText:
		if proto.IsHeartbeat(m.Payload) {
			c.onHeartbeat()
			return
		}
		c.onAnswer(m.Payload)
	}
}

// onAnswer takes the answer to the first message that has none.
func (c *client) onAnswer(payload []byte) {
	l := c.lane
	if l.generator.target.counted && !c.checkCount(payload) {
		return
	}
	if len(c.due) == 0 {
		l.fault("an answer to no message")
		return
	}
	now := netpoll.Monotonic()
	if l.isServing(c) {
		l.seen.Served.record(now - l.stormBegan)
		l.unserved.Add(-1)
	} else {
		l.seen.Latency.record(now - c.due[0])
	}
	c.answered = true
	l.answers.Add(1)
	c.due = c.due[:copy(c.due, c.due[1:])]
	if len(c.due) == 0 {
		l.settled.Add(1)
	}
	switch {
	case l.refill:
		c.ask(now)
	case l.churning:
		c.close()
	}
}

// checkCount holds the server to counts without a gap and without a repeat.
func (c *client) checkCount(payload []byte) bool {
	count, session, ok := proto.ReadCount(payload)
	switch {
	case !ok:
		c.lane.fault("an answer that is no count")
		return false
	case count > c.count+1:
		c.lane.fault("a gap in the counts")
	case count <= c.count:
		c.lane.fault("a count twice")
	}
	c.count = count
	if c.session == "" {
		c.session = string(session)
	}
	return true
}

func (c *client) onHeartbeat() {
	now := netpoll.Monotonic()
	if c.lastBeat != 0 {
		c.lane.seen.Beat.record(now - c.lastBeat)
	}
	c.lastBeat = now
	c.lane.beats.Add(1)
}

// ask appends one message to the lane's out, which was due at a time.
func (c *client) ask(due time.Duration) {
	if len(c.due) == 0 {
		c.lane.settled.Add(-1)
	}
	c.due = append(c.due, due)
	c.lane.out = append(c.lane.out, c.lane.generator.message...)
}

// askTimes sends so many messages, which are due now.
func (c *client) askTimes(n int) {
	now := netpoll.Monotonic()
	for range n {
		c.ask(now)
	}
	c.send()
}

// send sends what is in the lane's out.
func (c *client) send() {
	out := c.lane.out
	c.lane.out = out[:0]
	c.write(out)
}

// write sends p, in its turn: what the socket does not take waits in backlog.
func (c *client) write(p []byte) {
	if len(c.backlog) > 0 {
		c.backlog = append(c.backlog, p...)
		return
	}
	n, ok := c.writeSome(p)
	if ok && n < len(p) {
		c.backlog = slices.Clone(p[n:])
		c.lane.loop.Mod(c.fd, netpoll.Readable|netpoll.Writable)
	}
}

// writeSome writes what the socket takes; ok is false if the connection has
// failed.
func (c *client) writeSome(p []byte) (n int, ok bool) {
	n, err := netpoll.Write(c.fd, p)
	if err != nil && err != netpoll.ErrAgain {
		c.fail("lost: " + err.Error())
		return n, false
	}
	return n, true
}

func (c *client) onWritable() {
	n, ok := c.writeSome(c.backlog)
	if !ok {
		return
	}
	if c.backlog = c.backlog[n:]; len(c.backlog) == 0 {
		c.backlog = nil
		c.lane.loop.Mod(c.fd, netpoll.Readable)
	}
}

// fail ends the connection for a reason that the report shows.
func (c *client) fail(reason string) {
	switch c.state {
	case clientIdle:
		return
	case clientOpen:
		c.lane.fault(reason)
		c.close()
	default:
		c.drop()
		c.lane.failedToOpen(reason)
	}
}

// close ends an open connection.
func (c *client) close() {
	if c.state == clientOpen {
		c.drop()
		c.lane.closed(c)
	}
}

func (c *client) drop() {
	c.state = clientIdle
	c.lane.loop.Del(c.fd)
	netpoll.CloseFD(c.fd)
	c.spill, c.backlog = nil, nil
}
