package session

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"turnstile/netpoll"
	"turnstile/server/redistest"
)

// lane is the lane of the test's loop.
func (i *instance) lane() *lane {
	i.Redis.mu.Lock()
	defer i.Redis.mu.Unlock()
	return i.nodes[0].laneOf(&redisLease{loop: 1})
}

// onLoop runs f on the instance's loop and waits for it.
func (i *instance) onLoop(f func()) { i.loop.Call(f) }

// mintMany makes clients, each with a count of 1.
func (i *instance) mintMany(n int) (clients []*client) {
	i.t.Helper()
	for range n {
		clients = append(clients, i.mint().count(1))
	}
	return clients
}

// countAtOnce has each of the clients commit one more message, in one task of the loop.
func (i *instance) countAtOnce(clients []*client) {
	i.onLoop(func() {
		for _, c := range clients {
			c.Count++
			i.Commit(&c.Lease)
		}
	})
}

func wantCommitted(clients []*client) {
	for _, c := range clients {
		c.t.Helper()
		c.wantOutcome(Committed)
	}
}

// connections is how many clients a server has, the one that asks not among them.
func connections(server *redistest.Server) int {
	return strings.Count(fmt.Sprint(server.Do("CLIENT", "LIST", "TYPE", "normal")), "id=") - 1
}

// A lane goes when the store is closed, and its connection with it.
func TestLaneIsClosedWithItsStore(t *testing.T) {
	server := redistest.Start(t)
	before := connections(server) // the test's own client may have kept one
	a := readyStore(t, server.URL())
	a.mint().count(1).release()
	if got := connections(server) - before; got < 2 {
		t.Fatalf("%d connections, want that of the node's goroutine and that of the lane", got)
	}
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Until("all connections are closed", func() bool { return connections(server) <= before })
}

// A lane is cut while a pipeline is under way: what was answered is stored once, what was
// not is stored by the node's goroutine, and a new lane comes.
func TestLaneIsCut(t *testing.T) {
	server := redistest.Start(t)
	a, b := readyStore(t, server.URL()), readyStore(t, server.URL())
	clients := a.mintMany(3 * laneMost / 2)
	for range 2 {
		cut := a.lane()
		server.Pause()
		for _, c := range clients {
			c.countNow(1)
		}
		a.onLoop(func() { unix.Shutdown(cut.conn.socket.fd, unix.SHUT_RDWR) })
		server.Continue()
		wantCommitted(clients)
		eventually(t, "there is a new lane", func() bool { return a.lane() != nil && a.lane() != cut })
	}
	for _, c := range clients {
		b.claim(c.ID(), 3, true)
	}
}

// An answer that does not come ends the lane, though the rest of the store goes on.
func TestLaneIsNotAnswered(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL(), func(c *RedisConfig) { c.Timeout = 8 * time.Second })
	c, silent := a.mint().count(1), a.lane()
	ours, theirs := socketPair(t)
	a.onLoop(func() { // the lane talks to somebody who says nothing
		if err := unix.Dup3(ours, silent.conn.socket.fd, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
	})
	c.count(1)
	if got := read(t, theirs); !strings.HasPrefix(got, "*6\r\n$3\r\nSET\r\n") {
		t.Errorf("the lane sent %q", got)
	}
	a.settle()
	a.claim(c.ID(), 2, true)
}

// A pipeline that the socket does not take at once is sent when it does.
func TestLaneWritesTheRestLater(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	clients := a.mintMany(2 * laneMost)
	lane := a.lane()
	a.onLoop(func() {
		unix.SetsockoptInt(lane.conn.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
		lane.isDense = true // it does not send the first commit by itself
	})
	server.Pause()
	a.countAtOnce(clients)
	eventually(t, "a part of the pipeline waits", func() (waits bool) {
		a.onLoop(func() { waits = lane.conn.socket.hasMore() && lane.watched })
		return waits
	})
	server.Continue()
	wantCommitted(clients)
	if a.lane() != lane {
		t.Error("the lane has ended")
	}
}

// While a pipeline is under way, all that is queued behind it has to be verified: it goes to
// the node's goroutine, and nothing stays.
func TestLaneLeavesNothing(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	clients := a.mintMany(2*laneMost + 1)
	server.Pause()
	a.countAtOnce(clients)
	a.verifyAll()
	server.Continue()
	wantCommitted(clients)
	a.settle()
}

// A loop that stood still finds the answer that came meanwhile, and keeps its lane.
func TestLaneOfALoopThatStoodStill(t *testing.T) {
	server := redistest.Start(t)
	a := readyStore(t, server.URL())
	c, lane := a.mint().count(1), a.lane()
	a.onLoop(func() {
		c.Count++
		a.Commit(&c.Lease)
		deadline := time.Now().Add(patience)
		for netpoll.Unread(lane.conn.socket.fd) == 0 && time.Now().Before(deadline) { // until Redis has answered
			runtime.Gosched()
		}
		lane.sentAt -= lane.node.call()
		lane.OnTimer()
	})
	c.wantOutcome(Committed)
	if a.lane() != lane {
		t.Error("the lane has ended")
	}
}

// A connection that was asked for before the node's own was lost is not admitted, though what
// was written through it can be read: a replica may have it.
func TestLaneOfAnEarlierConnection(t *testing.T) {
	server := redistest.Start(t)
	i := readyStore(t, server.URL())
	n := newNode(i.Redis, i.config.Address.client(i.config.Timeout), "another", probeKey(0)) // its goroutine is the test's
	own, earlier := n.client.Conn(), n.client.Conn()
	t.Cleanup(func() {
		n.closeLanes()
		own.Close()
		earlier.Close()
		n.client.Close()
	})
	n.missingLanes()
	for _, asked := range []*redis.Conn{earlier, own} {
		o := n.open(asked, 0)
		if o.err != nil {
			t.Fatal(o.err)
		}
		n.admit(own, o)
		i.Redis.mu.Lock()
		admitted := n.lanes[0] != nil
		i.Redis.mu.Unlock()
		if admitted != (asked == own) {
			t.Errorf("admitted: %v, want %v", admitted, asked == own)
		}
	}
}

// A second connection that comes to another server than the first carries nothing.
func TestLaneToAnotherServer(t *testing.T) {
	server, other := redistest.Start(t), redistest.Start(t)
	proxy := redistest.StartProxy(t, server)
	a := startStore(t, proxy.URL)
	eventually(t, "the store is available", a.Available)
	proxy.Redirect(other)
	c := a.mint()
	a.wantLaneTrouble(errorConnection)
	c.count(1)
	if got := other.Keys("turnstile:{*-*}*"); len(got) > 0 || a.lane() != nil {
		t.Errorf("the other server has %q, the lane is %v", got, a.lane())
	}
	proxy.Redirect(server)
	a.wantLanes()
	c.count(1)
	a.claim(c.ID(), 2, true)
}

// wantLaneTrouble waits until lanes were refused more than once, and expects to have been
// told once.
func (i *instance) wantLaneTrouble(kind errorKind) {
	i.t.Helper()
	eventually(i.t, "lanes are refused", func() bool { return i.config.Metrics.Errors[kind].Load() > 1 })
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.laneTroubles) != 1 || i.laneTroubles[0].kind != kind || i.laneTroubles[0].err == nil {
		i.t.Errorf("told of %v, want one %s", i.laneTroubles, kind)
	}
}

// Redis takes no more connections: commits go over the node's own, and the lane opens when
// there is room.
func TestLaneFindsRedisFull(t *testing.T) {
	server := redistest.Start(t)
	a := startStore(t, server.URL())
	eventually(t, "the store is available", a.Available)
	connected := strings.Count(server.Do("CLIENT", "LIST").(string), "\n")
	server.Do("CONFIG", "SET", "maxclients", connected)
	c := a.mint().count(2)
	eventually(t, "it is told", func() bool { // the answer, or the end of the connection
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.laneTroubles) > 0
	})
	c.count(1)
	server.Do("CONFIG", "SET", "maxclients", 1000)
	a.wantLanes()
	c.count(1)
	a.claim(c.ID(), 4, true)
}

// TestLaneParses cuts answers at every point.
func TestLaneParses(t *testing.T) {
	answers := []string{"+OK\r\n", "$-1\r\n", "-MOVED 1 10.0.0.1:6379\r\n", "+OK\r\n"}
	text := strings.Join(answers, "")
	for cut := range len(text) + 1 {
		l := new(lane)
		for range answers {
			l.batch = append(l.batch, inFlight{sent: l.storing.take(t.Context())})
		}
		for _, part := range []string{text[:cut], text[cut:]} {
			l.in = append(l.in, part...)
			if err := l.parse(); err != nil {
				t.Fatal(err)
			}
		}
		for i, f := range l.batch {
			if got := string(f.sent.(*storeCommand).reply); got != answers[i] {
				t.Fatalf("cut at %d, answer %d is %q, want %q", cut, i, got, answers[i])
			}
		}
		if l.answered != len(answers) || len(l.in) > 0 {
			t.Fatalf("cut at %d: %d answers, and %q is left", cut, l.answered, l.in)
		}
		if l.in = append(l.in, "+OK\r\n"...); l.parse() == nil {
			t.Fatal("an answer to nothing is no error")
		}
	}
	l := &lane{in: bytes.Repeat([]byte("x"), longestAnswer+1)}
	if l.parse() == nil {
		t.Error("an answer without an end is no error")
	}
}

// TestStoreCommandOnTheWire: a lane sends what go-redis would.
func TestStoreCommandOnTheWire(t *testing.T) {
	server := redistest.Start(t)
	id := NewID()
	c := newStoreCommand(t.Context())
	c.set(id, &command{token: token{1, leaseID{2, 3}, 4}, count: 1<<64 - 1, ttl: time.Hour})
	server.Do("SET", string(c.key), 1)
	conn, err := net.Dial("unix", server.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(c.appendTo(nil)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	c.Write(buf[:n])
	if err := errors.Join(err, c.Err()); err != nil {
		t.Fatal(err)
	}
	if got := server.Do("GET", recordKey(id, "1.2-3.4")); got != "18446744073709551615" {
		t.Errorf("the count is %v", got)
	}
}

// socketPair is two ends of a connection.
func socketPair(t *testing.T) (ours, theirs int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// read is what has come.
func read(t *testing.T, fd int) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}
