package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/proto"
)

// Bad input gets a clear answer, nothing leaks, and nobody else notices.

// bystander is a client that has to be served as ever, whatever others do.
func bystander(p *process) (check func()) {
	w := p.open("/ws/chat/")
	count := uint64(0)
	return func() {
		p.t.Helper()
		count++
		w.send(text("still there?"))
		w.wantCount(count, "still there?")
	}
}

// sockets is how many connections the server has, the asking one included.
func (p *process) sockets() float64 { return p.metric("websocket_active_connections") }

func TestHalfRequestsTimeOut(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1s")
	check := bystander(p)
	silent, half, trickle := newWire(t, p.dial()), newWire(t, p.dial()), newWire(t, p.dial())
	half.write([]byte("GET /ws/chat/ HTT"))
	trickle.write([]byte(upgradeRequest("/ws/chat/")[:100]))
	for _, w := range []*wire{silent, half, trickle} {
		w.wantEnd()
	}
	check()
	if n := p.metric(`websocket_handshakes_total{result="handshake_timeout"}`); n != 3 {
		t.Errorf("%v handshakes timed out, want 3", n)
	}
}

func TestManySilentClients(t *testing.T) {
	clients := 10_000
	if raceEnabled {
		clients = 2000
	}
	p := startServer(t, "-handshake-timeout", "1s")
	check := bystander(p)
	goroutines := p.metric("go_goroutines")
	var conns []net.Conn
	for range clients {
		conns = append(conns, p.dial())
	}
	check()
	eventually(t, "all are accepted", func() bool { return p.metric("websocket_accepted_total") >= float64(clients) })
	if now := p.metric("go_goroutines"); now > goroutines+10 {
		t.Errorf("%v goroutines with %d clients, %v without", now, clients, goroutines)
	}
	for _, conn := range conns {
		newWire(t, conn).wantEnd()
	}
	check()
}

func TestHugeHeader(t *testing.T) {
	p := startServer(t)
	check := bystander(p)
	w := newWire(t, p.dial())
	go w.conn.Write([]byte("GET / HTTP/1.1\r\n" + strings.Repeat("X-Header: "+strings.Repeat("x", 1000)+"\r\n", 1000)))
	response, err := http.ReadResponse(w.reader, nil)
	if err != nil || response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Fatalf("%v, %v", response, err)
	}
	check()
}

func TestPingFlood(t *testing.T) {
	p := startServer(t)
	check := bystander(p)
	w := p.open("/ws/chat/")
	const pings = 20_000
	go func() {
		flood := strings.Repeat(string(frame(proto.OpPing, true, "ping")), 1000)
		for range pings / 1000 {
			w.conn.Write([]byte(flood))
		}
	}()
	for i := range pings {
		if m := w.next(); m.Op != proto.OpPong || string(m.Payload) != "ping" {
			t.Fatalf("pong %d: %s", i, describe(m))
		}
	}
	check()
}

// What a client that does not read, or a store that does not answer, can make the
// server hold: of answers to one client, in one flush more, and in all for a worker.
const backlogHigh, oneFlush, heldMost = 64 << 10, 64 << 10, 32 << 20

// A client that sends and never reads is no longer read itself once its
// replies pile up, costs a bounded amount of memory, and is closed in time.
func TestClientThatNeverReads(t *testing.T) {
	p := startServer(t, "-write-timeout", "1s", "-heartbeat", "1h")
	check := bystander(p)
	w := p.open("/ws/chat/")
	flood := []byte(strings.Repeat(string(text("x")), 10_000))
	sent := 0
	for {
		n, err := w.conn.Write(flood)
		sent += n
		if err != nil {
			break // the server has closed, for what else would end a write without a deadline
		}
		if held := p.metric("websocket_backlog_bytes"); held > backlogHigh+oneFlush+1000 {
			t.Fatalf("%v bytes held", held)
		}
	}
	check()
	eventually(t, "it is closed as slow", func() bool {
		return p.metric(`websocket_closes_total{reason="slow_consumer"}`) == 1
	})
	if held := p.metric("websocket_backlog_bytes"); held != 0 {
		t.Errorf("%v bytes still held", held)
	}
	// The 70,000 replies to a megabyte would be 7 MB: most was never read.
	if most := 16 << 20; sent > most {
		t.Errorf("%d bytes were taken from it", sent)
	}
}

// A client that reads late gets everything, in order.
func TestSlowReaderGetsAll(t *testing.T) {
	p := startServer(t)
	w := p.open("/ws/chat/")
	const messages = 60_000
	sending := make(chan error, 1)
	go func() {
		batch := []byte(strings.Repeat(string(text("slow")), 1000))
		for range messages / 1000 {
			if _, err := w.conn.Write(batch); err != nil {
				sending <- err
				return
			}
		}
		sending <- nil
	}()
	eventually(t, "the server stops reading", func() bool { return p.metric("websocket_backlog_bytes") > backlogHigh })
	for i := range uint64(messages) {
		w.wantCount(i+1, "slow")
	}
	if err := <-sending; err != nil {
		t.Fatal(err)
	}
}

// A client that is still sending gets the close frame, and not a reset.
func TestMessageTooBigByFar(t *testing.T) {
	p := startServer(t)
	check := bystander(p)
	message := text(strings.Repeat("x", 10<<20))
	times := 50
	if raceEnabled {
		times = 10
	}
	for range times {
		w := p.open("/ws/chat/")
		w.send(message)
		w.wantClose(1009)
	}
	check()
	eventually(t, "all are gone", func() bool { return p.metric(`websocket_closes_total{reason="message_too_big"}`) == float64(times) })
}

// shutdownWrite is a client's half-close.
func (w *wire) shutdownWrite() {
	if err := w.conn.(*net.TCPConn).CloseWrite(); err != nil {
		w.t.Fatal(err)
	}
}

func TestHalfCloseIsAnswered(t *testing.T) {
	p := startServer(t)
	w := p.open("/ws/chat/")
	w.send(text("last words"))
	w.shutdownWrite()
	w.wantCount(1, "last words")
	w.wantEnd()

	// The same with more replies than the socket takes.
	w = p.open("/ws/chat/")
	const messages = 3000
	big := strings.Repeat("b", 1000)
	w.send([]byte(strings.Repeat(string(text(big)), messages)))
	w.shutdownWrite()
	for i := range uint64(messages) {
		w.wantCount(i+1, big)
	}
	w.wantEnd()
	eventually(t, "nothing is left", func() bool { return p.sockets() == 0 })
}

// reset ends a client's connection with a RST.
func (w *wire) reset() {
	w.conn.(*net.TCPConn).SetLinger(0)
	w.conn.Close()
}

func TestResetWithinAFrame(t *testing.T) {
	p := startServer(t)
	check := bystander(p)
	for i := range 50 {
		w := p.open("/ws/chat/")
		w.send(text("whole"), text("half of a frame")[:3+i%10])
		w.wantCount(1, "whole")
		w.reset()
	}
	eventually(t, "all are gone", func() bool { return p.sockets() == 1 })
	check()
}

// File descriptor numbers are used again at once: an event for the old owner
// of a number must never reach the new one.
func TestFDReuse(t *testing.T) {
	p := startServer(t, "-workers", "2")
	check := bystander(p)
	for round := range 200 {
		dying, living := p.open("/ws/chat/"), p.open("/ws/chat/")
		dying.send(text("a"), frame(proto.OpClose, true, ""), text("b"))
		dying.reset()
		born := p.open("/ws/chat/")
		for _, w := range []*wire{living, born} {
			message := fmt.Sprint("round ", round)
			w.send(text(message))
			w.wantCount(1, message)
			w.reset()
		}
	}
	check()
}

func TestMessageRate(t *testing.T) {
	p := startServer(t, "-message-rate", "5")
	check := bystander(p)
	w := p.open("/ws/chat/")
	w.send([]byte(strings.Repeat(string(text("m")), 50)))
	for i := range uint64(5) {
		w.wantCount(i+1, "m")
	}
	w.wantClose(proto.StatusPolicyViolation)
	check()
}

// Frames that are no message have a budget too. An honest client stays within it.
func TestFrameRate(t *testing.T) {
	p := startServer(t, "-message-rate", "5")
	check := bystander(p)
	f := func(name string, flood []byte) {
		w := p.open("/ws/chat/")
		w.send([]byte(strings.Repeat(string(flood), 101)))
		for m := w.next(); m.Op != proto.OpClose; m = w.next() {
			if m.Op != proto.OpPong {
				t.Fatalf("%s: got %s", name, describe(m))
			}
		}
		w.send(frame(proto.OpClose, true, "\x03\xf0"))
		w.wantEnd()
	}
	f("pings", frame(proto.OpPing, true, "?"))
	f("pongs", frame(proto.OpPong, true, ""))
	honest := p.open("/ws/chat/")
	honest.send(frame(proto.OpText, false, "a"))
	f("empty fragments", bytes.Join([][]byte{frame(proto.OpText, false, ""), frame(proto.OpContinuation, true, "")}, nil))
	honest.send([]byte(strings.Repeat(string(frame(proto.OpContinuation, false, "b")), 50)), frame(proto.OpContinuation, true, "c"))
	honest.wantCount(1, "a"+strings.Repeat("b", 50)+"c")
	check()
	if n := p.metric(`websocket_closes_total{reason="rate_limited"}`); n != 3 {
		t.Errorf("%v are closed", n)
	}
}

// Messages that nobody ends are held for a while only, however alive their clients are.
func TestMessageTimeout(t *testing.T) {
	p := startServer(t, "-message-timeout", "300ms")
	check := bystander(p)
	for _, front := range [][]byte{frame(proto.OpText, false, "x"), text("cut")[:7], {0x81}} {
		w := p.open("/ws/chat/")
		w.send(front)
		w.wantClose(proto.StatusPolicyViolation)
	}
	check()
	if n := p.metric(`websocket_closes_total{reason="message_timeout"}`); n != 3 {
		t.Errorf("%v are closed", n)
	}
}

// When they hold all that a worker has for them, others wait until those that stand still
// have gone, and then end in peace.
func TestMessagesThatNobodyEnds(t *testing.T) {
	if raceEnabled {
		t.Skip("only the plain run has it: so many bytes take a minute under the race detector")
	}
	const clients, length = 200, 119 << 10 // more than a half of 32 MiB
	p := startServer(t, "-workers", "1", "-message-timeout", "1h", "-max-message", "1000000", "-heartbeat", "1h")
	check := bystander(p)
	front := frame(proto.OpText, false, strings.Repeat("x", length))
	var wires []*wire
	for range clients {
		w := p.open("/ws/chat/")
		w.send(front, frame(proto.OpPing, true, "all?"))
		wires = append(wires, w)
	}
	check()
	for i, w := range wires { // the last ones wait until others have stood still for too long
		if m := w.next(); m.Op != proto.OpPong {
			t.Fatalf("client %d got %s, want the pong", i, describe(m))
		}
	}
	check()
	wires[0].wantClose(proto.StatusTryAgainLater)
	last := wires[clients-1]
	last.send(frame(proto.OpContinuation, true, ""))
	last.wantCount(1, strings.Repeat("x", length))
	if n := p.metric(`websocket_closes_total{reason="message_memory"}`); n < 1 || n >= clients {
		t.Errorf("%v of %d closed for their memory", n, clients)
	}
}

// peakMemory is the most memory that the process has had in RAM.
func (p *process) peakMemory() (bytes int) {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		p.t.Fatal(err)
	}
	return bytes << 10
}

// One long message takes at most three times its memory and its answer's.
func TestMemoryOfLongMessages(t *testing.T) {
	size := 16 << 20
	if raceEnabled {
		size >>= 2 // the race detector has memory of its own: this run only shows that messages pass
	}
	f := func(name, letter, escaped string) {
		t.Run(name, func(t *testing.T) {
			p := startServer(t, "-max-message", fmt.Sprint(size), "-write-timeout", "10m", "-message-timeout", "10m")
			bystander(p)()
			before := p.peakMemory()
			w := p.open("/ws/chat/")
			w.send(text(strings.Repeat(letter, size)))
			answer := size * len(escaped)
			if got, err := io.CopyN(io.Discard, w.reader, int64(answer)); err != nil {
				t.Fatalf("after %d bytes: %v", got, err)
			}
			took := p.peakMemory() - before
			t.Logf("%d MiB for %d", took>>20, (size+answer)>>20)
			if most := 3 * (size + answer); took > most && !raceEnabled {
				t.Errorf("%d bytes for a message and an answer of %d", took, size+answer)
			}
		})
	}
	f("text", "x", "x")
	f("control characters", "\x01", `\u0001`)
}

func TestMaxConnections(t *testing.T) {
	p := startServer(t, "-max-connections", "2")
	first, _ := p.open("/ws/chat/"), p.open("/ws/chat/")
	w := newWire(t, p.dial())
	response := w.request(upgradeRequest("/ws/chat/"))
	if response.StatusCode != 503 || response.Header.Get("Retry-After") == "" {
		t.Errorf("the third gets %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	if status, _, _ := p.get("/healthz"); status != 200 {
		t.Errorf("health check at the limit: %d", status)
	}
	first.reset()
	eventually(t, "the place is free again", func() bool {
		w := newWire(t, p.dial())
		return w.request(upgradeRequest("/ws/chat/")).StatusCode == 101
	})
}

func TestMaxConnectionsPerIP(t *testing.T) {
	p := startServer(t, "-max-connections-per-ip", "2", "-trusted-proxies", "127.0.0.1")
	status := func(headers ...string) int {
		return newWire(t, p.dial()).request(upgradeRequest("/ws/chat/", headers...)).StatusCode
	}
	const client = "X-Forwarded-For: 10.9.9.9, 192.0.2.1" // what a client invents stands on the left
	first := p.open("/ws/chat/", client)
	for i, want := range []int{101, 429} {
		if got := status(client); got != want {
			t.Errorf("connection %d of one client: %d, want %d", i+2, got, want)
		}
	}
	if got := status("X-Forwarded-For: 192.0.2.2"); got != 101 {
		t.Errorf("another client: %d", got)
	}
	first.reset()
	eventually(t, "the place is free again", func() bool { return status(client) == 101 })
}

// Without a trusted proxy the header is worth nothing: the peer counts, from
// its accept on.
func TestForwardedForIsNotBelieved(t *testing.T) {
	p := startServer(t, "-max-connections-per-ip", "1")
	w := p.open("/ws/chat/", "X-Forwarded-For: 192.0.2.1")
	if response := newWire(t, p.dial()).request(upgradeRequest("/ws/chat/")); response.StatusCode != 429 {
		t.Fatal(response.Status)
	}
	w.reset()
	eventually(t, "the place is free again", func() bool {
		response := newWire(t, p.dial()).request(upgradeRequest("/ws/chat/"))
		return response.StatusCode == 101
	})
}

// Who is refused for its address takes no place from the others.
func TestMaxConnectionsPerIPTakesNoPlaces(t *testing.T) {
	p := startServer(t, "-max-connections", "3", "-max-connections-per-ip", "1", "-handshake-timeout", "1m")
	p.open("/ws/chat/")
	for range 9 { // from the same address; they stay for a while
		if response := newWire(t, p.dial()).request(upgradeRequest("/ws/chat/")); response.StatusCode != 429 {
			t.Fatal(response.Status)
		}
	}
	w := newWire(t, p.dialFrom("127.0.0.5"))
	if response := w.request(upgradeRequest("/ws/chat/")); response.StatusCode != 101 {
		t.Errorf("another client gets %s", response.Status)
	}
}

// Silent clients beyond the limit keep nobody from an answer: the oldest of them goes.
func TestManyBeyondTheLimit(t *testing.T) {
	p := startServer(t, "-max-connections", "1", "-handshake-timeout", "1m")
	check := bystander(p)
	var silent []*wire
	for range mostBeyondLimit + 2 {
		silent = append(silent, newWire(t, p.dial()))
	}
	for _, w := range silent[:2] {
		w.wantEnd()
	}
	wantAnswers(p, 503)
	if n := p.metric("websocket_accept_dropped_total"); n < 2 {
		t.Errorf("%v were dropped, want 2 or more", n)
	}
	check()
}

// wantAnswers asks for the probes' pages and for an upgrade, which gets this status.
func wantAnswers(p *process, upgrade int) {
	p.t.Helper()
	for _, path := range []string{"/healthz/", "/readyz/"} {
		if status, body, _ := p.get(path); status != 200 {
			p.t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if response := newWire(p.t, p.dial()).request(upgradeRequest("/ws/chat/")); response.StatusCode != upgrade {
		p.t.Errorf("an upgrade: %s, want %d", response.Status, upgrade)
	}
}

// An address that is nobody's is not counted for ever.
func TestForwardedForNobody(t *testing.T) {
	const most = 5 // some pages may still count, too
	p := startServer(t, "-max-connections-per-ip", fmt.Sprint(most), "-trusted-proxies", "127.0.0.1")
	for range 2 * most {
		p.open("/ws/chat/", "X-Forwarded-For: ::").reset()
		eventually(t, "it is gone", func() bool { return p.metric("websocket_active_connections") == 0 })
	}
}

// A request without its body must not hold one of the places for plain HTTP.
func TestBodiesAreRefused(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1m")
	for _, header := range []string{"Content-Length: 100", "content-length:1", "Transfer-Encoding: chunked"} {
		w := newWire(t, p.dial())
		if response := w.request("GET /healthz/ HTTP/1.1\r\nHost: x\r\n" + header + "\r\n\r\n"); response.StatusCode != 413 {
			t.Errorf("%s: %s", header, response.Status)
		}
	}
	w := newWire(t, p.dial())
	if response := w.request("GET /healthz/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); response.StatusCode != 200 {
		t.Errorf("no body: %s", response.Status)
	}
}

func TestTLSOnThePlainPort(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1m")
	conn := p.dial()
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil ||
		!strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("got %v, want an answer at once", err)
	}
}

func TestUnixPeerIsTrusted(t *testing.T) {
	path := t.TempDir() + "/s"
	p := startServer(t, "-max-connections-per-ip", "1", "-listen", "unix:"+path)
	status := func(header string) int {
		return newWire(t, p.dial()).request(upgradeRequest("/ws/chat/", header)).StatusCode
	}
	for i, f := range []struct {
		header string
		want   int
	}{{"X-Real-IP: 192.0.2.1", 101}, {"X-Real-IP: 192.0.2.1", 429}, {"X-Real-IP: 192.0.2.2", 101}, {"X-Other: 1", 101}, {"X-Other: 1", 101}} {
		if got := status(f.header); got != f.want {
			t.Errorf("connection %d, %s: %d, want %d", i, f.header, got, f.want)
		}
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's file is left: %v", err)
	}
}

// When file descriptors run out, who is connected is served, who waits is
// served later, and it is said once.
func TestOutOfFileDescriptors(t *testing.T) {
	p := startServer(t, "-handshake-timeout", "1m")
	check := bystander(p)
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(len(open) + 10), Max: uint64(len(open) + 10)}
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	var greedy []*wire
	for range 50 {
		greedy = append(greedy, newWire(t, p.dial()))
	}
	p.waitLog("accept_paused")
	check()
	waiting := newWire(t, p.dial())
	waiting.write([]byte(upgradeRequest("/ws/chat/")))
	user0, system0 := cpuTime(t, p.cmd.Process.Pid)
	check()
	for _, w := range greedy {
		w.reset()
	}
	response, err := http.ReadResponse(waiting.reader, nil)
	if err != nil || response.StatusCode != 101 {
		t.Fatalf("who waited: %v, %v", response, err)
	}
	check()
	user, system := cpuTime(t, p.cmd.Process.Pid)
	if spent := user - user0 + system - system0; spent > time.Second { // an accept that is tried again and again takes all of a processor
		t.Errorf("%v of CPU while it waited", spent)
	}
	if n := len(p.logged("accept_paused")); n != 1 {
		t.Errorf("said %d times", n)
	}
}
