package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"turnstile/proto"
	"turnstile/server/oracle"
	"turnstile/server/session"
)

// asAttackers, in the environment, is the address of a server. The test binary then
// attacks it in all ways at once until its standard input ends. The attackers are a
// process of their own, so that they can have the lowest priority: they stand for
// other machines, and shall take no processor from the server and its honest clients.
const asAttackers = "TURNSTILE_TEST_AS_ATTACKERS"

// abuseOnly, in the environment, is a part of the names of those attacks that are done
// without the others: to find out what each costs.
const abuseOnly = "TURNSTILE_ABUSE_ONLY"

// abuseSides, in the environment, is how many do each attack at once, instead of its own
// number.
const abuseSides = "TURNSTILE_ABUSE_SIDES"

const (
	attackPatience  = 10 * time.Second // bounds every wait of an attacker
	attackedPlaces  = 1000             // -max-connections of the server
	attackedMessage = 64 << 10         // its -max-message
)

// An attack is done again and again. A round of it takes a few seconds at most, and
// leaves nothing open.
type attack struct {
	name   string
	sides  int  // how many do it at once
	isLast bool // it goes on until all others have ended
	round  func(*attackers)
	rounds atomic.Int64
}

func allAttacks() []*attack {
	return []*attack{
		{name: "pages that are not read", sides: 1, round: (*attackers).leavePagesUnread},
		{name: "bursts of probes", sides: 1, round: (*attackers).probeInBursts},
		{name: "silent sockets beyond the limit", sides: 1, round: (*attackers).takeAllPlaces},
		{name: "bytes that are not HTTP", sides: 2, round: (*attackers).speakAnotherProtocol},
		{name: "half requests", sides: 1, round: (*attackers).stopWithinRequests},
		{name: "malformed upgrades", sides: 1, round: (*attackers).malformUpgrades},
		{name: "one-byte messages in big writes", sides: 2, round: (*attackers).hog},
		{name: "answers that are not read", sides: 4, round: (*attackers).neverRead},
		{name: "messages that nobody ends", sides: 1, round: (*attackers).endNoMessage},
		{name: "floods of pings", sides: 1, round: (*attackers).floodPings},
		{name: "floods of empty fragments", sides: 1, round: (*attackers).floodFragments},
		{name: "messages that are too big", sides: 2, round: (*attackers).sendTooMuch},
		{name: "resets within a frame", sides: 1, round: (*attackers).resetWithinFrames},
		{name: "clients that come and go", sides: 1, round: (*attackers).comeAndGo},
		{name: "takeovers of one session", sides: 2, isLast: true, round: (*attackers).takeOver},
	}
}

type attackers struct {
	addr string
	over chan struct{} // closed at the end

	addresses  atomic.Uint32 // of clients, that were used
	unanswered atomic.Int64  // probes of bursts
	duel       *oracle.Session
	findings   oracle.Findings

	mu         sync.Mutex
	complaints []string
}

// attackUntilEOF attacks until standard input ends and until each attack was done at
// least once. It prints what it has done. The exit code is 1 if the server has broken a
// promise to one of them.
func attackUntilEOF(addr string) (code int) {
	a := &attackers{addr: addr, over: make(chan struct{})}
	a.duel = a.findings.NewSession(session.NewID().String())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(a.over)
	}()
	attacks := slices.DeleteFunc(allAttacks(), func(what *attack) bool { return !strings.Contains(what.name, os.Getenv(abuseOnly)) })
	a.attack(attacks)
	a.endDuel()
	for _, what := range attacks {
		fmt.Printf("%8d × %s\n", what.rounds.Load(), what.name)
	}
	answers, resumes := a.findings.Totals()
	fmt.Printf("%d probes of bursts without an answer; %d takeovers, %d answers between them\n", a.unanswered.Load(), resumes, answers)
	complaints := append(a.complaints, a.findings.Violations()...)
	fmt.Print(strings.Join(append(complaints, ""), "\n"))
	return min(len(complaints), 1)
}

// attack does all attacks until the end. Those that are the last go on until then, so that
// no session of theirs is forgotten.
func (a *attackers) attack(attacks []*attack) {
	othersOver := make(chan struct{})
	var others, last sync.WaitGroup
	for _, what := range attacks {
		running, over := &others, a.over
		if what.isLast {
			running, over = &last, othersOver
		}
		for range sidesOf(what) {
			running.Go(func() { a.repeat(what, over) })
		}
	}
	others.Wait()
	close(othersOver)
	last.Wait()
}

func sidesOf(what *attack) int {
	if sides, err := strconv.Atoi(os.Getenv(abuseSides)); err == nil {
		return sides
	}
	return what.sides
}

func (a *attackers) repeat(what *attack, over chan struct{}) {
	for done := false; !done; done = isClosed(over) {
		what.round(a)
		what.rounds.Add(1)
	}
}

func (a *attackers) complain(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.complaints = append(a.complaints, fmt.Sprintf(format, args...))
}

// hold keeps things as they are for a while, or until the end.
func (a *attackers) hold(d time.Duration) {
	select {
	case <-a.over:
	case <-time.After(d):
	}
}

// nextIP is a loopback address that differs from client to client.
func (a *attackers) nextIP() string {
	n := a.addresses.Add(1)
	return net.IPv4(127, 3, byte(n>>8), byte(n)).String()
}

func (a *attackers) dial() (net.Conn, error) {
	return a.dialWith(net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(a.nextIP())}})
}

func (a *attackers) dialSlowly() (net.Conn, error) { return a.dialWith(slowDialer(a.nextIP())) }

func (a *attackers) dialWith(dialer net.Dialer) (net.Conn, error) {
	dialer.Timeout = attackPatience
	conn, err := dialer.Dial("tcp", a.addr)
	if err == nil {
		conn.SetDeadline(time.Now().Add(attackPatience))
	}
	return conn, err
}

func (a *attackers) open() (net.Conn, error) { return upgraded(a.dial()) }

func (a *attackers) openSlowly() (net.Conn, error) { return upgraded(a.dialSlowly()) }

// upgraded makes a new connection a WebSocket, if the server wants it.
func upgraded(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	io.WriteString(conn, upgradeRequest("/ws/chat/"))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && response.StatusCode != http.StatusSwitchingProtocols {
		err = errors.New(response.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// A mob is clients that do the same. What the server does to single ones is no
// matter of theirs.
type mob []net.Conn

// gather connects n clients. Those that the server does not want are left out.
func (a *attackers) gather(n int, dial func() (net.Conn, error)) (m mob) {
	for range n {
		if conn, err := dial(); err == nil {
			m = append(m, conn)
		}
	}
	return m
}

func (m mob) say(text string) {
	for _, conn := range m {
		io.WriteString(conn, text)
	}
}

func (m mob) leave() {
	for _, conn := range m {
		conn.Close()
	}
}

// waitForEnds reads until the server has closed each.
func (m mob) waitForEnds() {
	for _, conn := range m {
		io.Copy(io.Discard, conn)
	}
}

func (m mob) reset() {
	for _, conn := range m {
		conn.(*net.TCPConn).SetLinger(0)
	}
	m.leave()
}

func (a *attackers) leavePagesUnread() {
	m := a.gather(mostPlainHTTP+50, a.dialSlowly)
	defer m.reset()
	m.say("GET /uplot.js HTTP/1.1\r\nHost: x\r\n\r\n")
	a.hold(time.Second)
}

// probeInBursts sends a thousand probes before it reads the first answer.
func (a *attackers) probeInBursts() {
	var m mob
	defer func() { m.leave() }()
	for i := range 1000 {
		if conn, err := a.dial(); err == nil {
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", probePaths[i%len(probePaths)])
			m = append(m, conn)
		}
	}
	for _, conn := range m {
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			a.unanswered.Add(1)
		} else if response.StatusCode != http.StatusOK {
			a.complain("a probe of a burst gets %s", response.Status)
		}
	}
}

func (a *attackers) takeAllPlaces() {
	m := a.gather(attackedPlaces+mostBeyondLimit+50, a.dial)
	a.hold(time.Second)
	m.leave()
	a.hold(3 * time.Second) // the other attacks need places
}

func (a *attackers) speakAnotherProtocol() {
	for _, greeting := range []string{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "SSH-2.0-OpenSSH_9.2\r\n",
		"\x00\x00\x00", "\r\n\r\n\r\n"} {
		m := a.gather(10, a.dial)
		m.say(greeting)
		m.waitForEnds()
		m.leave()
	}
}

func (a *attackers) stopWithinRequests() {
	m := a.gather(50, a.dial)
	m.say(upgradeRequest("/ws/chat/")[:100])
	m.waitForEnds()
	m.leave()
}

func (a *attackers) malformUpgrades() {
	for _, header := range []string{"Host: other.example", "X-Nothing: \x00", "Content-Length: 5", "Transfer-Encoding: chunked", " folded",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Space : before", "X-Long: " + strings.Repeat("x", 9000)} {
		m := a.gather(5, a.dial)
		m.say(upgradeRequest("/ws/chat/", header) + "12345")
		a.hold(50 * time.Millisecond)
		m.leave()
	}
}

// flood sends the same bytes over and over for a few seconds.
func (a *attackers) flood(dial func() (net.Conn, error), reads bool, bytes string) {
	conn, err := dial()
	if err != nil {
		a.hold(50 * time.Millisecond)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(attackPatience / 4))
	if reads {
		go io.Copy(io.Discard, conn)
	}
	for err == nil && !isClosed(a.over) {
		_, err = io.WriteString(conn, bytes)
	}
}

func (a *attackers) hog() { a.flood(a.open, true, strings.Repeat(string(text("x")), 10_000)) }

func (a *attackers) neverRead() {
	a.flood(a.openSlowly, false, strings.Repeat(string(text("x")), 10_000))
}

func (a *attackers) floodPings() {
	a.flood(a.open, true, strings.Repeat(string(frame(proto.OpPing, true, "?")), 10_000))
}

func (a *attackers) floodFragments() {
	begun := string(frame(proto.OpText, false, "x"))
	empty, end := string(frame(proto.OpContinuation, false, "")), string(frame(proto.OpContinuation, true, ""))
	a.flood(a.open, true, begun+strings.Repeat(empty, 10_000)+end)
}

func (a *attackers) endNoMessage() {
	m := a.gather(50, a.open)
	m.say(string(frame(proto.OpText, false, strings.Repeat("x", attackedMessage-1))))
	for range 25 {
		m.say(string(frame(proto.OpPong, true, "")))
		a.hold(100 * time.Millisecond)
	}
	m.reset()
}

func (a *attackers) sendTooMuch() {
	m := a.gather(10, a.open)
	m.say(string(text(strings.Repeat("x", 1<<20))))
	m.leave()
}

func (a *attackers) resetWithinFrames() {
	m := a.gather(50, a.open)
	m.say(string(text("whole")) + string(text("half of a frame")[:9]))
	m.reset()
}

func (a *attackers) comeAndGo() {
	a.gather(50, a.dial).leave()
	a.gather(50, a.dial).reset()
}

// takeOver resumes the session that another one has just resumed, and counts a little.
func (a *attackers) takeOver() {
	conn, err := a.duel.Dial(a.addr, attackPatience)
	if err != nil {
		a.hold(20 * time.Millisecond)
		return
	}
	defer conn.Close()
	random := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for range 5 {
		if conn.Round(random, false) != nil {
			return
		}
	}
}

// endDuel holds the session that was fought for to the count at which it ends.
func (a *attackers) endDuel() {
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := a.duel.Dial(a.addr, attackPatience)
		if err == nil {
			a.duel.CheckEnd(conn.Start)
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			a.complain("the session that was fought for cannot be resumed: %v", err)
			return
		}
	}
}
