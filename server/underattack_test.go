package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"turnstile/netpoll"
)

// All attacks at once against one server, while honest clients measure how long they
// wait, and probes are asked.

const (
	honestClients = 100
	honestRate    = 20 // messages a second of each

	longestWait = 20 * time.Second // of an honest client, at the worst: a loop that hangs takes longer, a busy machine does not
	mostMemory  = 128 << 20        // that the server has in RAM at any time

	standstill, betweenStandstills = time.Second, 10 * time.Second
)

var probePaths = []string{"/healthz/", "/readyz/"}

// abuseSetting, in the environment, makes TestAbuse longer, and has it hold the waits of
// honest clients to those of a server that nobody attacks: on a machine that has nothing else to do.
const abuseSetting = "TURNSTILE_ABUSE_SECONDS"

// TestAbuse: whatever others do, an honest client stays connected and is answered, its
// counts are right, each probe gets 200, memory stays within a bound; and when the
// attackers have gone, nothing of theirs is left.
func TestAbuse(t *testing.T) {
	if raceEnabled {
		t.Skip("only the plain run has it: under the race detector the server cannot keep up with so much")
	}
	p := startServer(t, abusedFlags()...)
	h := startHonest(p)
	var beside *honest
	if os.Getenv(abuseSetting) != "" {
		beside = startHonest(startServer(t, abusedFlags()...))
	}
	length := secondsOf(t, abuseSetting, 25*time.Second)
	time.Sleep(length / 5) // in which honest clients measure
	quiet := h.figures()
	before := p.footprint()
	t.Logf("quiet:        %v\n%v", quiet, before)
	if beside != nil {
		t.Logf("beside:       %v", beside.figures())
	}

	abused := h.attack(length)
	t.Logf("under attack: %v\nmost memory %d MiB", abused, p.peakMemory()>>20)
	h.wantAllAnswered()
	p.wantBack(before)
	h.wantBounds(abused)
	if beside != nil {
		h.wantFewWaits(max(quiet.p99, beside.figures().p99), abused.p99)
	}
}

// abusedFlags are such that attackers reach the limits soon. Without a -message-rate
// floods go on for longer, but nothing keeps them from using all of the processors:
// where waits are measured there is one, as where somebody expects attackers.
func abusedFlags() []string {
	flags := []string{"-workers", "2", "-max-connections", fmt.Sprint(attackedPlaces), "-max-message", fmt.Sprint(attackedMessage),
		"-handshake-timeout", "2s", "-message-timeout", "2s", "-write-timeout", "2s", "-heartbeat", "5s", "-session-ttl", "1m"}
	if os.Getenv(abuseSetting) != "" {
		flags = append(flags, "-message-rate", fmt.Sprint(10*honestRate))
	}
	return flags
}

// wantFewWaits holds the waits of honest clients to those at a server beside, which nobody
// attacks and which has as many clients: the attackers are on the same machine, and what
// they take of its processors and of its kernel is not the attacked server's doing.
func (h *honest) wantFewWaits(others, abused time.Duration) {
	h.p.t.Helper()
	h.p.t.Logf("p99 %v under attack, %v of a server that nobody attacks", abused, others)
	if abused > 2*others {
		h.p.t.Errorf("honest clients wait %v (p99) under attack, more than twice the %v of a server that nobody attacks", abused, others)
	}
}

func (h *honest) wantBounds(abused figures) {
	t := h.p.t
	t.Helper()
	if abused.worst > longestWait {
		t.Errorf("an honest client waited %v, want %v at the most", abused.worst, longestWait)
	}
	if most := h.p.peakMemory(); most > mostMemory {
		t.Errorf("%d bytes in RAM, want at most %d", most, mostMemory)
	}
}

// secondsOf is a length in seconds from the environment, or else byDefault.
func secondsOf(t *testing.T, variable string, byDefault time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return byDefault
	}
	seconds, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return time.Duration(seconds) * time.Second
}

// honest is clients that send at a steady rate, whether or not they are answered.
type honest struct {
	// Fixed after startHonest.
	p     *process
	swarm *swarm
	loop  *netpoll.Loop

	// Owned by the loop.
	ended   bool
	next    int                          // client that sends
	sent    map[*swarmClient]uint64      // messages
	waiting map[*swarmClient][]time.Time // when what has no answer was sent
	waits   []time.Duration              // for the answers since the last figures
	worst   time.Duration                // of all waits
	excused time.Time                    // what was sent before does not count for waits
}

// startHonest connects the clients, which send until the end of the test.
func startHonest(p *process) *honest {
	h := &honest{p: p, swarm: newSwarm(p.t, 1), sent: make(map[*swarmClient]uint64), waiting: make(map[*swarmClient][]time.Time)}
	h.loop = h.swarm.pool.Loops[0]
	h.swarm.connectAll(p, honestClients, onCount(h.onAnswer))
	for _, c := range h.swarm.clients {
		h.loop.Call(func() {
			c.onClose = func(*swarmClient) { h.swarm.fail("an honest client was disconnected, close code %d", c.code) }
		})
	}
	over := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() { h.sendUntil(over) })
	p.t.Cleanup(func() { close(over); sending.Wait() })
	return h
}

// sendUntil sends for one client after the other, so that they are not all due at once.
func (h *honest) sendUntil(over chan struct{}) {
	ticks := time.NewTicker(time.Second / honestRate / honestClients)
	defer ticks.Stop()
	for {
		select {
		case <-over:
			return
		case <-ticks.C:
			h.loop.Post(h.send)
		}
	}
}

func (h *honest) send() {
	if h.ended {
		return
	}
	c := h.swarm.clients[h.next]
	h.next = (h.next + 1) % honestClients
	h.sent[c]++
	h.waiting[c] = append(h.waiting[c], time.Now())
	c.write(text("an honest message"))
}

func (h *honest) onAnswer(c *swarmClient) {
	if len(h.waiting[c]) == 0 {
		h.swarm.fail("count %d answers nothing", c.count)
		return
	}
	sent := h.waiting[c][0]
	h.waiting[c] = h.waiting[c][1:]
	wait := time.Since(sent)
	h.worst = max(h.worst, wait)
	if sent.After(h.excused) {
		h.waits = append(h.waits, wait)
	}
}

// figures are of how long honest clients wait.
type figures struct {
	answers         int
	p50, p99, worst time.Duration
}

func (f figures) String() string {
	return fmt.Sprintf("%d answers, p50 %v, p99 %v, worst %v", f.answers,
		f.p50.Round(time.Microsecond), f.p99.Round(time.Microsecond), f.worst.Round(time.Microsecond))
}

// figures are of the time since they were asked for the last time.
func (h *honest) figures() (f figures) {
	var waits []time.Duration
	h.loop.Call(func() {
		waits, f.worst = h.waits, h.worst
		h.waits, h.worst = nil, 0
	})
	h.swarm.check()
	if len(waits) < 100 {
		h.p.t.Fatalf("%d answers: the run shows nothing", len(waits))
	}
	slices.Sort(waits)
	f.answers, f.p50, f.p99 = len(waits), waits[len(waits)/2], waits[len(waits)*99/100]
	return f
}

// attack attacks the server for a while.
func (h *honest) attack(length time.Duration) figures {
	over := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() { h.p.probeUntil(over) })
	beside.Go(func() { h.p.stdout.readSlowlyUntil(over) })
	beside.Go(func() { h.standStillUntil(over) })
	end := h.p.startAttackers()
	time.Sleep(length) // in which honest clients measure, and the attackers attack
	end()
	close(over)
	beside.Wait()
	return h.figures()
}

// startAttackers starts the other process. The func that it returns ends it, and fails
// the test if the server has broken a promise to an attacker.
func (p *process) startAttackers() (end func()) {
	p.t.Helper()
	cmd := exec.Command("nice", "-n", "19", os.Args[0])
	cmd.Env = append(os.Environ(), asAttackers+"="+p.addr)
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	input, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { cmd.Process.Kill() })
	return func() {
		p.t.Helper()
		input.Close()
		// Each attack is done at least once, which may take a slow machine minutes.
		bound := time.AfterFunc(3*patience, func() { cmd.Process.Kill() })
		defer bound.Stop()
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("the attackers: %v", err)
		}
		p.t.Logf("the attackers' rounds:\n%s", said.String())
	}
}

// failedInARow is how many probes one after the other make a supervisor kill a server. One
// alone may fail: if its request comes late, its socket may have had to make room.
const failedInARow = 3

// probeUntil asks the probes' pages, each of which has to answer 200.
func (p *process) probeUntil(over chan struct{}) {
	client := http.Client{Timeout: longestWait, Transport: &http.Transport{DisableKeepAlives: true}}
	asked, failed, worst := 0, 0, time.Duration(0)
	for ; !isClosed(over); asked++ {
		start := time.Now()
		response, err := client.Get("http://" + p.addr + probePaths[asked%len(probePaths)])
		if err != nil {
			if failed++; failed == failedInARow {
				p.t.Errorf("%d probes in a row failed, the last with %v", failed, err)
			}
			continue
		}
		failed = 0
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			p.t.Errorf("probe %d: %s", asked, response.Status)
		}
		worst = max(worst, time.Since(start))
		time.Sleep(20 * time.Millisecond) // as a supervisor does between probes
	}
	p.t.Logf("%d probes, the longest took %v", asked, worst.Round(time.Millisecond))
}

// readSlowlyUntil lets the pipe be read a few times a second only.
func (g *gate) readSlowlyUntil(over chan struct{}) {
	for !isClosed(over) {
		g.Lock()
		select {
		case <-over:
		case <-time.After(200 * time.Millisecond):
		}
		g.Unlock()
	}
}

// standStillUntil stops the server's process for a while, and lets it go on, now and
// then. What is under way meanwhile does not count for the percentiles, since no server
// answers then, but it counts for the longest wait.
func (h *honest) standStillUntil(over chan struct{}) {
	for {
		select {
		case <-over:
			return
		case <-time.After(betweenStandstills):
		}
		h.loop.Call(func() { h.excused = time.Now().Add(time.Hour) })
		h.p.signal(syscall.SIGSTOP)
		time.Sleep(standstill) // this is the attack
		h.p.signal(syscall.SIGCONT)
		h.loop.Call(func() { h.excused = time.Now().Add(standstill / 2) })
	}
}

// wantAllAnswered ends the sending, and expects all answers that are still due.
func (h *honest) wantAllAnswered() {
	h.p.t.Helper()
	h.loop.Call(func() { h.ended = true })
	h.swarm.until("all honest messages are answered", func() (all bool) {
		h.loop.Call(func() {
			all = !slices.ContainsFunc(h.swarm.clients, func(c *swarmClient) bool { return c.count != h.sent[c] })
		})
		return all
	})
}

// A footprint is what a process has and holds.
type footprint struct {
	connections, goroutines float64
	files, threads          int
	resident                int64
}

func (f footprint) String() string {
	return fmt.Sprintf("%v connections, %v goroutines, %d threads, %d files, %.1f MiB resident",
		f.connections, f.goroutines, f.threads, f.files, float64(f.resident)/(1<<20))
}

func (p *process) footprint() (f footprint) {
	p.t.Helper()
	_, page, _ := p.get("/metrics/")
	f.connections, f.goroutines = p.metricOf(page, "websocket_active_connections"), p.metricOf(page, "go_goroutines")
	f.files, f.threads = p.count("fd"), p.count("task")
	f.resident = residentBytes(p.t, p.cmd.Process.Pid)
	return f
}

// count is how many entries a folder of the process has: see proc(5).
func (p *process) count(folder string) int {
	p.t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid), folder))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(entries)
}

// Of what Go's runtime has once needed it keeps some: threads, stacks, and the memory of
// its own that goes with a larger heap.
const keptThreads, keptMemory = 8, 12 << 20

// wantBack waits until the server has no more than before, and beside what the runtime
// keeps a quarter more memory at the most.
func (p *process) wantBack(before footprint) {
	p.t.Helper()
	now := before
	defer func() { p.t.Logf("afterwards:   %v", now) }()
	eventually(p.t, "the server has what it had before", func() bool {
		if status, _, _ := p.get("/metrics/"); status != http.StatusOK {
			return false // the places of plain HTTP are not free yet
		}
		now = p.footprint()
		return now.connections <= before.connections && now.goroutines <= before.goroutines && now.files <= before.files &&
			now.threads <= before.threads+keptThreads && now.resident <= before.resident*5/4+keptMemory
	})
}
