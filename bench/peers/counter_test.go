// Package peers_test does the counter job once with each peer that build.sh has
// built, as a client sees it.
package peers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/gobwas/ws"

	"turnstile/bench/peers/counter"
	"turnstile/netpoll"
)

// host is not 127.0.0.1: a client's source port may sit on the chosen port there.
const host = "127.0.0.79"

const floorIn, floorOut = 70, 140

type peer struct {
	Name  string
	What  string
	Build []string
	Run   []string
	Needs string
}

func readPeers(t *testing.T) []peer {
	t.Helper()
	text, err := os.ReadFile("peers.json")
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var peers []peer
	if err := decoder.Decode(&peers); err != nil {
		t.Fatalf("peers.json: %v", err)
	}
	return peers
}

func TestPeers(t *testing.T) {
	for _, p := range readPeers(t) {
		t.Run(p.Name, func(t *testing.T) {
			skipUnbuilt(t, p)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			address := start(ctx, t, p)
			if p.Name == "floor" {
				checkFloor(t, address)
				return
			}
			checkCounter(ctx, t, address)
			checkRefused(ctx, t, address)
			checkConcurrent(ctx, t, address)
		})
	}
}

// skipUnbuilt skips a peer whose file in .build, which its run names, is not
// there: build.sh has said why.
func skipUnbuilt(t *testing.T, p peer) {
	t.Helper()
	for _, argument := range p.Run {
		if !strings.HasPrefix(argument, ".build/") {
			continue
		}
		if _, err := os.Stat(argument); err != nil {
			t.Skipf("not built: %s", strings.Join(p.Build, " "))
		}
		return
	}
	t.Fatalf("its run names no file in .build: %q", p.Run)
}

// start runs the peer until the test ends, and returns its address when it
// accepts connections.
func start(ctx context.Context, t *testing.T, p peer) string {
	t.Helper()
	address, release, err := netpoll.ReservePort(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	arguments := strings.NewReplacer("{listen}", address,
		"{in}", fmt.Sprint(floorIn), "{out}", fmt.Sprint(floorOut))
	var run []string
	for _, argument := range p.Run {
		run = append(run, arguments.Replace(argument))
	}
	cmd := exec.Command(run[0], run[1:]...)
	// One process, where a peer would have one for each core: a session
	// resumes only in the process that counted it.
	cmd.Env = append(os.Environ(), "WEB_CONCURRENCY=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// A group of its own, so that whatever it has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { stop(t, cmd.Process.Pid, ended) })
	awaitAccept(ctx, t, address, ended)
	return address
}

func awaitAccept(ctx context.Context, t *testing.T, address string, ended <-chan struct{}) {
	t.Helper()
	for tick := time.Tick(20 * time.Millisecond); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick:
		case <-ended:
			t.Fatal("it ended before it accepted a connection")
		case <-ctx.Done():
			t.Fatalf("it accepts no connection: %v", err)
		}
	}
}

// stop ends the group with SIGTERM, and with SIGKILL what is left of it.
func stop(t *testing.T, pid int, ended <-chan struct{}) {
	t.Helper()
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not end on SIGTERM")
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-ended
}

func dial(ctx context.Context, t *testing.T, address, query string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(ctx, "ws://"+address+counter.Path+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func send(ctx context.Context, t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func receive(ctx context.Context, t *testing.T, conn *websocket.Conn) string {
	t.Helper()
	kind, reply, err := conn.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if kind != websocket.MessageText {
		t.Fatalf("got a message of type %v, want text", kind)
	}
	return string(reply)
}

func expect(ctx context.Context, t *testing.T, conn *websocket.Conn, want string) {
	t.Helper()
	if got := receive(ctx, t, conn); got != want {
		t.Errorf("got reply\n%s, want\n%s", got, want)
	}
}

// ping waits for the pong, and reads conn from now on.
func ping(ctx context.Context, t *testing.T, conn *websocket.Conn) {
	t.Helper()
	conn.CloseRead(ctx)
	if err := conn.Ping(ctx); err != nil {
		t.Errorf("a ping is not answered: %v", err)
	}
}

// checkCounter sends three messages, and a blank one, before it reads: replies
// keep the order. Then it resumes the session on another connection.
func checkCounter(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	conn := dial(ctx, t, address, "")
	for _, text := range []string{"hello", " \t\n", "say \"hi\\\",\nthen go\x01", "ünï 🎉 </b>"} {
		send(ctx, t, conn, text)
	}
	first := receive(ctx, t, conn)
	id := sessionID(t, first)
	if want := `{"count":1,"session_id":"` + id + `","message":"hello"}`; first != want {
		t.Errorf("got reply\n%s, want\n%s", first, want)
	}
	expect(ctx, t, conn, `{"count":2,"session_id":"`+id+`","message":"say \"hi\\\",\nthen go\u0001"}`)
	expect(ctx, t, conn, `{"count":3,"session_id":"`+id+`","message":"ünï 🎉 </b>"}`)
	ping(ctx, t, conn)
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("it does not answer the close: %v", err)
	}

	resumed := dial(ctx, t, address, "?session_id="+strings.ToUpper(id))
	long := strings.Repeat("x", counter.MaxMessageBytes)
	resumed.SetReadLimit(2 * counter.MaxMessageBytes)
	send(ctx, t, resumed, long)
	expect(ctx, t, resumed, `{"count":4,"session_id":"`+id+`","message":"`+long+`"}`)
}

func sessionID(t *testing.T, reply string) string {
	t.Helper()
	var fields struct {
		SessionID string `json:"session_id"`
	}
	if err := json.Unmarshal([]byte(reply), &fields); err != nil {
		t.Fatalf("%q: %v", reply, err)
	}
	if len(fields.SessionID) != 36 {
		t.Fatalf("no UUID: %q", fields.SessionID)
	}
	return fields.SessionID
}

// checkRefused sends what a connection does not survive: it may end before all
// of it is written.
func checkRefused(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	for name, text := range map[string]string{
		"a message over the limit": strings.Repeat("x", counter.MaxMessageBytes+1),
		"text that is not UTF-8":   "\xff",
	} {
		conn := dial(ctx, t, address, "")
		_ = conn.Write(ctx, websocket.MessageText, []byte(text))
		if _, _, err := conn.Read(ctx); err == nil {
			t.Errorf("%s is answered", name)
		}
	}
}

// checkConcurrent keeps many messages in flight on several connections: every
// count is one more than the last.
func checkConcurrent(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	const connections, messages = 10, 500
	var conns []*websocket.Conn
	for range connections {
		conns = append(conns, dial(ctx, t, address, ""))
	}
	for _, conn := range conns {
		go func() {
			for range messages {
				_ = conn.Write(ctx, websocket.MessageText, []byte("in flight"))
			}
		}()
	}
	for _, conn := range conns {
		for count := range messages {
			want := fmt.Sprintf(`{"count":%d,`, count+1)
			if got := receive(ctx, t, conn); !strings.HasPrefix(got, want) {
				t.Fatalf("got reply %s, want count %d", got, count+1)
			}
		}
	}
}

// checkFloor asks for the upgrade, then sends the bytes of two messages and a
// half, and of the other half.
func checkFloor(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	upgradeFloor(t, conn)
	for _, halves := range []int{5, 1} {
		if _, err := conn.Write(make([]byte, halves*floorIn/2)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		checkFrame(t, conn)
	}
}

// upgradeFloor reads the 101 and not a byte more.
func upgradeFloor(t *testing.T, conn net.Conn) {
	t.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: floor\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", counter.Path)
	var answer []byte
	for !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			t.Fatal(err)
		}
		answer = append(answer, b[0])
	}
	if !strings.HasPrefix(string(answer), fmt.Sprintf("HTTP/1.1 %d ", http.StatusSwitchingProtocols)) ||
		!strings.Contains(string(answer), "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n") {
		t.Fatalf("got answer %q", answer)
	}
}

func checkFrame(t *testing.T, conn net.Conn) {
	t.Helper()
	text := make([]byte, floorOut)
	if _, err := io.ReadFull(conn, text); err != nil {
		t.Fatal(err)
	}
	frame, err := ws.ReadFrame(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if err := ws.CheckHeader(frame.Header, ws.StateClientSide); err != nil {
		t.Errorf("%+v: %v", frame.Header, err)
	}
	if ws.HeaderSize(frame.Header)+len(frame.Payload) != floorOut || frame.Header.OpCode != ws.OpText || !json.Valid(frame.Payload) {
		t.Errorf("got %+v with %q", frame.Header, frame.Payload)
	}
}
