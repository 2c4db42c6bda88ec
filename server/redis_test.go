package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"turnstile/proto"
	"turnstile/server/redistest"
	"turnstile/server/session"
)

const someSession = "1df8902a-2987-496f-a19a-937f834b88d1"

// startWithRedis starts a server with its sessions in Redis, and waits until it
// is ready. Redis may stand still for as long as a test takes.
func startWithRedis(t testing.TB, url string, flags ...string) *process {
	t.Helper()
	p := startServer(t, append([]string{"-redis", url, "-store-timeout", "1m"}, flags...)...)
	p.waitReady()
	return p
}

func (p *process) isReady() bool {
	status, _, _ := p.get("/readyz/")
	return status == http.StatusOK
}

func (p *process) waitReady() {
	p.t.Helper()
	eventually(p.t, "the server is ready", p.isReady)
}

// wantUpgraded expects the answer to a request that was written before.
func (w *wire) wantUpgraded() {
	w.t.Helper()
	if response := w.response(); response.StatusCode != http.StatusSwitchingProtocols {
		w.t.Fatalf("got %s", response.Status)
	}
}

// wantSession expects the first frame of the second version.
func (w *wire) wantSession(count uint64, resumed bool) (id string) {
	w.t.Helper()
	r := w.reply()
	if r.Type != "session" || r.Count != count || r.Resumed == nil || *r.Resumed != resumed {
		w.t.Fatalf("got %+v, want a session with count %d, resumed %v", r, count, resumed)
	}
	return r.SessionID
}

// wantTakenOver expects the goodbye of a takeover.
func (w *wire) wantTakenOver(total uint64) {
	w.t.Helper()
	if r := w.reply(); !r.Bye || r.Total != total || r.Reason != "session_taken_over" {
		w.t.Fatalf("got %+v, want the bye of a takeover with total %d", r, total)
	}
	w.wantClose(proto.StatusTakenOver)
}

func TestSessionOutlivesTheServer(t *testing.T) {
	redis := redistest.Start(t)
	first, second := startWithRedis(t, redis.URL()), startWithRedis(t, redis.URL())
	w := first.open("/ws/chat/", v2Header)
	id := w.wantSession(0, false)
	w.send(text("a"), text("b"))
	w.wantCount(1, "a")
	w.wantCount(2, "b")
	first.signal(syscall.SIGKILL)
	w.wantEnd()
	again := second.open("/ws/chat/?session_id="+strings.ToUpper(id), v2Header)
	again.wantSession(2, true)
	again.send(text("c"))
	again.wantCount(3, "c")
}

// takeSession counts to 1 on one server, and resumes the session on another one.
func takeSession(from, to *process) *wire {
	from.t.Helper()
	first := from.open("/ws/chat/?session_id=" + someSession)
	first.send(text("one"))
	first.wantCount(1, "one")
	second := to.open("/ws/chat/?session_id="+someSession, v2Header)
	second.wantSession(1, true)
	first.wantTakenOver(1)
	return second
}

func TestTakeoverByAnotherInstance(t *testing.T) {
	redis := redistest.Start(t)
	a, b := startWithRedis(t, redis.URL()), startWithRedis(t, redis.URL())
	second := takeSession(a, b)
	first := a.open("/ws/chat/?session_id="+someSession, v2Header)
	first.wantSession(1, true)
	second.wantTakenOver(1)
	first.send(text("two"))
	first.wantCount(2, "two")
}

// What comes right behind the request waits for the session like the 101, and
// everything keeps its order.
func TestFramesBehindARequestThatWaits(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	redis.Pause()
	w := newWire(t, p.dial())
	request := upgradeRequest("/ws/chat/?session_id=" + someSession)
	all := append([]byte(request), text("one")...)
	all = append(all, frame(proto.OpPing, true, "p")...)
	all = append(all, text("two")...)
	w.write(append(all, text("goodbye")...))
	eventually(t, "the claim is on its way", func() bool { return p.metric("websocket_store_queue_sessions") == 1 })
	redis.Continue()
	w.wantUpgraded()
	w.wantCount(1, "one")
	if m := w.next(); m.Op != proto.OpPong || string(m.Payload) != "p" {
		t.Fatalf("got %s, want the pong", describe(m))
	}
	w.wantCount(2, "two")
	if r := w.reply(); !r.Bye || r.Total != 2 {
		t.Fatalf("got %+v, want the bye", r)
	}
	w.wantClose(proto.StatusNormalClosure)
}

// A claim that waits holds up nobody else on its worker, and takes no goroutine.
func TestClaimsBlockNobody(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL(), "-workers", "1")
	other := p.open("/ws/chat/")
	redis.Pause()
	goroutines := p.metric("go_goroutines")
	const clients = 200
	var wires []*wire
	for range clients {
		w := newWire(t, p.dial())
		w.write([]byte(upgradeRequest("/ws/chat/?session_id=" + session.NewID().String())))
		wires = append(wires, w)
	}
	eventually(t, "the claims are on their way", func() bool { return p.metric("websocket_store_queue_sessions") >= clients })
	other.send(frame(proto.OpPing, true, "p"))
	if m := other.next(); m.Op != proto.OpPong {
		t.Errorf("got %s, want the pong", describe(m))
	}
	if now := p.metric("go_goroutines"); now > goroutines+20 {
		t.Errorf("%v goroutines with %d claims, %v without", now, clients, goroutines)
	}
	redis.Continue()
	for _, w := range wires {
		w.wantUpgraded()
	}
}

// What an operator watches says what happened.
func TestStoreMetrics(t *testing.T) {
	redis := redistest.Start(t)
	a, b := startWithRedis(t, redis.URL()), startWithRedis(t, redis.URL(), "-store-timeout", "2s")
	second := takeSession(a, b)
	redis.Kill()
	second.send(text("two"))
	second.wantClose(proto.StatusTryAgainLater)
	eventually(t, "b is not ready", func() bool { return !b.isReady() })
	newWire(t, b.dial()).request(upgradeRequest("/ws/chat/?session_id=" + someSession))
	want := func(p *process, name string, least, most float64) {
		t.Helper()
		if got := p.metric(name); got < least || got > most {
			t.Errorf("%s is %v, want %v to %v", name, got, least, most)
		}
	}
	want(a, `websocket_store_claims_total{result="started"}`, 1, 1)
	want(a, `websocket_store_commits_total{result="committed"}`, 1, 1)
	want(a, `websocket_store_commit_latency_seconds_count`, 1, 1)
	want(a, `websocket_store_batch_sessions_sum`, 4, 6) // find, take, commit, look at what was taken
	want(a, `websocket_store_batch_sessions_count`, 4, 6)
	want(a, `websocket_store_takeovers_total{result="told"}`, 1, 1)
	want(b, `websocket_store_claims_total{result="resumed"}`, 1, 1)
	want(b, `websocket_store_claims_total{result="unavailable"}`, 1, 1)
	want(b, `websocket_store_commits_total{result="unavailable"}`, 1, 1)
	want(b, `websocket_store_errors_total{kind="unreachable"}`, 1, 1e3)
	want(b, `websocket_store_queue_sessions`, 1, 1) // what was in doubt
	want(b, `websocket_store_last_success_seconds`, 0.5, 60)
	redis.Restart()
	b.waitReady()
	eventually(t, "the queue is empty", func() bool { return b.metric("websocket_store_queue_sessions") == 0 })
	eventually(t, "it has answered just now", func() bool { return b.metric("websocket_store_last_success_seconds") < 0.5 })
}

// Messages that come while a commit is on its way are answered behind it, in
// order; and what needs no store, too.
func TestRepliesKeepTheirOrder(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	w := p.open("/ws/chat/")
	redis.Pause()
	w.send(text("1"))
	eventually(t, "a commit is on its way", func() bool { return p.metric("websocket_backlog_bytes") > 0 })
	w.send(text("2"), frame(proto.OpPing, true, "p"), text("3"))
	redis.Continue()
	w.wantCount(1, "1")
	w.wantCount(2, "2")
	if m := w.next(); m.Op != proto.OpPong {
		t.Fatalf("got %s, want the pong", describe(m))
	}
	w.wantCount(3, "3")
	w.send(frame(proto.OpClose, true, "\x03\xe8"))
	w.wantClose(proto.StatusNormalClosure)
}

// A client that has said its last word still gets its answers.
func TestHalfCloseWaitsForTheStore(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	w := p.open("/ws/chat/")
	redis.Pause()
	w.send(text("last"))
	w.shutdownWrite()
	eventually(t, "it is on its way", func() bool { return p.metric("websocket_backlog_bytes") > 0 })
	redis.Continue()
	w.wantCount(1, "last")
	w.wantEnd()
}

func TestRedisGoneForShort(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	p := startWithRedis(t, redis.URL())
	w := p.open("/ws/chat/?session_id=" + someSession)
	w.send(text("one"))
	w.wantCount(1, "one")
	redis.Kill()
	w.send(text("two"), text("three"))
	other := newWire(t, p.dial())
	request := upgradeRequest("/ws/chat/?session_id=" + someSession)
	p.waitLog("store_unavailable")
	redis.Restart()
	w.wantCount(2, "two")
	w.wantCount(3, "three")
	other.write([]byte(request))
	other.wantUpgraded()
	w.wantTakenOver(3)
	other.send(text("four"))
	other.wantCount(4, "four")
}

func TestRedisGoneForLong(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	p := startWithRedis(t, redis.URL(), "-store-timeout", "2s")
	idle, busy := p.open("/ws/chat/"), p.open("/ws/chat/")
	for _, w := range []*wire{idle, busy} {
		w.send(text("one"))
		w.wantCount(1, "one")
	}
	redis.Kill()
	busy.send(text("two"))
	waiting := newWire(t, p.dial())
	waiting.write([]byte(upgradeRequest("/ws/chat/?session_id=" + someSession)))
	busy.wantClose(proto.StatusTryAgainLater)
	if response := waiting.response(); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("the resume that waited: %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	eventually(t, "the server is not ready", func() bool { return !p.isReady() })
	if response := newWire(t, p.dial()).request(upgradeRequest("/ws/chat/")); response.StatusCode != http.StatusServiceUnavailable ||
		response.Header.Get("Retry-After") == "" {
		t.Errorf("a new session: %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	if status, _, _ := p.get("/healthz/"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	redis.Restart()
	p.waitReady()
	idle.send(text("two"))
	idle.wantCount(2, "two")
	eventually(t, "one connection was closed for it", func() bool {
		return p.metric(`websocket_closes_total{reason="store_unavailable"}`) == 1
	})
	kinds := map[string]int{}
	for _, line := range p.logged("store_unavailable") {
		kinds[fmt.Sprint(line["kind"])]++
	}
	for kind, lines := range kinds {
		if lines != 1 || kind == "<nil>" {
			t.Errorf("the trouble of kind %s is told in %d lines, want 1", kind, lines)
		}
	}
	p.waitLog("store_available")
}

func TestStartWithoutRedis(t *testing.T) {
	redis := redistest.Start(t)
	redis.Kill()
	p := startServer(t, "-redis", redis.URL())
	line := p.waitLog("store_unavailable")
	if line["level"] != "ERROR" || !strings.Contains(line["redis"].(string), redis.Socket) {
		t.Errorf("the line is %v", line)
	}
	if _, body, _ := p.get("/readyz/"); !strings.Contains(body, "unix://"+redis.Socket+": unreachable") {
		t.Errorf("readyz does not say which node and why: %s", body)
	}
	sample := `websocket_store_node_available{node="unix://` + redis.Socket + `",kind="unreachable"} 0`
	if _, page, _ := p.get("/metrics/"); !strings.Contains(page, sample) {
		t.Error("the metrics do not say which node and why")
	}
	if p.isReady() || p.metric("websocket_ready") != 0 {
		t.Error("it is ready without its store")
	}
	redis.Restart()
	p.waitReady()
	w := p.open("/ws/chat/")
	w.send(text("x"))
	w.wantCount(1, "x")
}

// Clients that send on and on while Redis stands still cost a bounded amount.
func TestRedisStandsStill(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	redis.Pause()
	const clients = 50
	flood := []byte(strings.Repeat(string(text("x")), 10_000))
	for range clients {
		w := p.open("/ws/chat/")
		go func() {
			for {
				if _, err := w.conn.Write(flood); err != nil {
					return
				}
			}
		}()
	}
	held := func() float64 { return p.metric("websocket_backlog_bytes") }
	eventually(t, "all are held up", func() bool { return held() > clients*backlogHigh })
	reads := p.metric("websocket_read_calls_total")
	eventually(t, "they are no longer read", func() bool {
		before := reads
		reads = p.metric("websocket_read_calls_total")
		return reads-before <= 2 // which are the scrape's own
	})
	if most := float64(clients * (backlogHigh + oneFlush + 4096)); held() > most {
		t.Errorf("%v bytes are held, want at most %v", held(), most)
	}
	redis.Continue()
	eventually(t, "they are counted", func() bool { return p.metric("websocket_messages_total") > clients*10_000 })
}

// More replies than may be held: nobody is forgotten when there is room again.
func TestHeldBudget(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL(), "-workers", "1", "-max-message", "100000")
	const clients = 800
	var wires []*wire
	for range clients {
		wires = append(wires, p.open("/ws/chat/"))
	}
	// Three messages each: a reader may stand in the middle of one for every client at
	// once, and their unfinished parts have a budget too.
	const each = 3
	big := strings.Repeat("b", 24<<10)
	burst := bytes.Repeat(text(big), each)
	redis.Pause()
	for _, w := range wires {
		go w.conn.Write(burst)
	}
	eventually(t, "the budget is used up", func() bool { return p.metric("websocket_backlog_bytes") > heldMost })
	reads := p.metric("websocket_read_calls_total")
	eventually(t, "nobody is read", func() bool {
		before := reads
		reads = p.metric("websocket_read_calls_total")
		return reads-before <= 2 // which are the scrape's own
	})
	if held := p.metric("websocket_backlog_bytes"); held > heldMost+1<<20 {
		t.Errorf("%v bytes are held", held)
	}
	redis.Continue()
	for _, w := range wires {
		for n := range each {
			w.wantCount(uint64(n+1), big)
		}
	}
}

func TestDrainWaitsForTheStore(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	w := p.open("/ws/chat/?session_id=" + someSession)
	redis.Pause()
	w.send(text("one"))
	eventually(t, "a commit is on its way", func() bool { return p.metric("websocket_backlog_bytes") > 0 })
	claiming := newWire(t, p.dial())
	claiming.write([]byte(upgradeRequest("/ws/chat/?session_id=" + someSession)))
	eventually(t, "a claim is on its way", func() bool { return p.metric("websocket_store_queue_sessions") == 2 })
	p.signal(syscall.SIGTERM)
	if response := claiming.response(); response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("the claim gets %s", response.Status)
	}
	redis.Continue()
	w.wantCount(1, "one")
	w.wantShutdown(1)
	w.conn.Close()
	if code := p.wait(); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
	again := startWithRedis(t, redis.URL()).open("/ws/chat/?session_id="+someSession, v2Header)
	again.wantSession(1, true)
}

// A client that goes away in the middle of its claim leaves nothing behind.
func TestClientLeavesDuringItsClaim(t *testing.T) {
	redis := redistest.Start(t)
	p := startWithRedis(t, redis.URL())
	redis.Pause()
	w := newWire(t, p.dial())
	w.write([]byte(upgradeRequest("/ws/chat/?session_id=" + someSession)))
	eventually(t, "the claim is on its way", func() bool { return p.metric("websocket_store_queue_sessions") == 1 })
	w.reset()
	eventually(t, "the server has noticed", func() bool { return p.metric(`websocket_handshakes_total{result="abandoned"}`) == 1 })
	redis.Continue()
	eventually(t, "the claim is counted as abandoned, and nothing is left", func() bool {
		return p.metric(`websocket_store_claims_total{result="abandoned"}`) == 1 &&
			p.metric("websocket_store_queue_sessions") == 0 && p.metric("websocket_sessions") == 0
	})
	if p.metric("websocket_active_connections") != 0 {
		t.Error("a connection is counted")
	}
}

// A client's request waits for its claim, the client hangs up, and resumes at another
// server. It keeps the session there when the first server gets an answer.
func TestClientThatHasLeftTakesNothing(t *testing.T) {
	redis := redistest.Start(t)
	proxy := redistest.StartProxy(t, redis)
	a, b := startWithRedis(t, proxy.URL), startWithRedis(t, redis.URL())
	proxy.Set(redistest.Delay)
	gone := newWire(t, a.dial())
	gone.write([]byte(upgradeRequest("/ws/chat/?session_id=" + someSession)))
	eventually(t, "the claim is on its way", func() bool { return a.metric("websocket_store_queue_sessions") >= 1 })
	gone.shutdownWrite()
	eventually(t, "the server has noticed", func() bool { return a.metric(`websocket_handshakes_total{result="abandoned"}`) == 1 })
	live := b.open("/ws/chat/?session_id="+someSession, v2Header)
	live.wantSession(0, false)
	live.send(text("one"))
	live.wantCount(1, "one")
	proxy.Set(redistest.Pass)
	eventually(t, "nothing is left of the claim", func() bool { return a.metric("websocket_store_queue_sessions") == 0 })
	live.send(text("two"))
	live.wantCount(2, "two")
}

func TestCredentialsAreNotTold(t *testing.T) {
	t.Parallel()
	const secret = "sesame-open"
	redis := redistest.Start(t)
	redis.Do("CONFIG", "SET", "requirepass", "another")
	redis.Do("ACL", "SETUSER", secret, "on", ">"+secret, "~*", "-@all")
	sentinel := redistest.StartGuarded(t, 0).Sentinels[0]
	sentinel.Do("ACL", "SETUSER", secret, "on", ">"+secret, "~*", "-@all")
	for _, url := range []string{
		"redis://" + secret + ":" + secret + "@" + redis.Addr,
		"redis://" + secret + ":" + secret + "@" + redis.Addr + "," + redis.Addr,
		"redis://" + sentinel.Addr + "?master_name=sessions&sentinel_username=" + secret + "&sentinel_password=" + secret,
		"redis://user:" + secret + "@" + sentinel.Addr + "?master_name=sessions&sentinel_password=" + secret,
		"redis://user:" + secret + "@" + redis.Addr,
		"redis://:" + secret + "@" + redis.Addr + "?sentinel_password=" + secret + "&wait_replicas=0",
		"unix://user:" + secret + "@" + redis.Socket,
	} {
		p := startServer(t, "-redis", url)
		p.waitLog("store_unavailable")
		_, metrics, _ := p.get("/metrics/")
		p.signal(syscall.SIGTERM)
		p.wait()
		p.mu.Lock()
		for _, line := range p.lines {
			for field, value := range line {
				if s, ok := value.(string); ok && strings.Contains(s, secret) {
					t.Errorf("%s is in the log: %s: %s", secret, field, s)
				}
			}
		}
		p.mu.Unlock()
		if strings.Contains(metrics, secret) || strings.Contains(p.stderr.String(), secret) {
			t.Errorf("%s is in the metrics, or on standard error: %s", secret, p.stderr.String())
		}
	}
	for _, bad := range []string{
		secret, "http://" + secret, "redis://:" + secret + ":@", "redis://:" + secret + "%zz@host", "redis://a:" + secret + "@h,redis://b:x@h2",
		"redis://:" + secret + "@host?" + "what=1", "redis://:" + secret + "@host/" + "x", "redis://:" + secret,
	} {
		for _, args := range [][]string{{"-redis", bad}, nil} {
			env := []string{"TURNSTILE_REDIS=" + bad}
			if args != nil {
				env = nil
			}
			p := startProcess(t, env, args...)
			if code := p.wait(); code != exitUsage || strings.Contains(p.stderr.String(), secret) || strings.Count(p.stderr.String(), "\n") != 1 {
				t.Errorf("%q: exit code %d: %s", bad, code, p.stderr.String())
			}
			t.Logf("%s", p.stderr.String())
		}
	}
}
