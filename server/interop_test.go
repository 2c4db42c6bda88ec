package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"turnstile/proto"
	"turnstile/server/session"
)

// Clients that this project did not write play one scenario. Each says what it
// saw, as JSON, and all have to have seen the same.

// A scene is a part of the scenario.
type scene struct {
	Scene string  `json:"scene"`
	Saw   []event `json:"saw"`
}

// An event is a frame of the server's, decoded by the client, or an object of
// ours: see openEvent and below.
type event = map[string]any

func openEvent(subprotocol string) event { return event{"open": subprotocol} }
func closeEvent(code int) event          { return event{"close": code} }
func pongEvent() event                   { return event{"pong": true} }

func replyEvent(count int, session, text string) event {
	return event{"count": count, "session_id": session, "message": text}
}

func sessionEvent(session string, count int, resumed bool) event {
	return event{"type": "session", "session_id": session, "count": count, "resumed": resumed}
}

// The texts stand in each client's source, so that a slip of one client's
// encoder is not undone by its decoder.
var (
	hostileText = "\ufeff \"quotes\" \\ back/slash \x00\x01\b\f\n\r\t\x1f\x7f\u0085 \u2028\u2029 \U0001f600\U0010ffff " +
		"\u202e\u05e9\u05dc\u05d5\u05dd <img onerror=alert(1)> \\u0041 %s "
	longText       = strings.Repeat("0123456789ab\"\u00e9\n", 4000) // its reply needs a length of 64 bits
	fragmentedText = "in \U0001f600 fragments"
)

// wantedScenes is what every client has to see. Sessions are named in the order
// in which they come: see inScenes.
func wantedScenes() []scene {
	const a, b, c = "session-1", "session-2", "session-3"
	return []scene{
		{"first version", []event{
			openEvent(""), replyEvent(1, a, "hello"), replyEvent(2, a, hostileText), replyEvent(3, a, longText),
			pongEvent(), replyEvent(4, a, fragmentedText), pongEvent(),
			{"bye": true, "total": 4}, {"close": 1000, "reason": "Normal closure"},
		}},
		{"resume", []event{openEvent(""), replyEvent(5, a, "again"), closeEvent(1000)}},
		{"second version", []event{
			{"asked": b},
			openEvent(proto.Subprotocol), sessionEvent(b, 0, false), replyEvent(1, b, "one"), closeEvent(1000),
			openEvent(proto.Subprotocol), sessionEvent(b, 1, true), replyEvent(2, b, "two"), closeEvent(1000),
		}},
		{"takeover", []event{
			openEvent(""), replyEvent(1, c, "mine"), openEvent(""),
			{"bye": true, "total": 1, "reason": "session_taken_over"}, closeEvent(4001),
			replyEvent(2, c, "yours"), closeEvent(1000),
		}},
		{"binary", []event{openEvent(""), closeEvent(1003)}},
		{"too big", []event{openEvent(""), closeEvent(1009)}},
		{"bad session", []event{{"status": 400, "body": event{
			"error": "invalid session_id: it must be the 36 characters of a UUID, hexadecimal digits in groups of 8-4-4-4-12; " +
				"leave it out to get a new one"}}}},
		{"foreign origin", []event{{"status": 403}}},
		{"client closes", []event{openEvent(""), closeEvent(3456)}},
	}
}

func TestClients(t *testing.T) {
	for name, compress := range map[string]string{"plain": "-compress=false", "compressed": "-compress=1"} {
		t.Run(name, func(t *testing.T) { testClients(t, compress) })
	}
}

// testClients runs all clients. Each of them offers compression.
func testClients(t *testing.T, compress string) {
	socket := filepath.Join(t.TempDir(), "server.sock")
	p := startServer(t, "-listen", testHost+":0,unix:"+socket, compress)
	clients := []struct {
		name string
		play func(t *testing.T, address string) []byte
	}{{"node", playNode}, {"python", playPython}, {"coder", playCoder}}
	for _, client := range clients {
		t.Run(client.name, func(t *testing.T) {
			for name, address := range map[string]string{"tcp": p.addr, "unix": "unix:" + socket} {
				t.Run(name, func(t *testing.T) {
					before := p.metric("websocket_compress_saved_bytes_total")
					checkScenes(t, client.play(t, address))
					saved := p.metric("websocket_compress_saved_bytes_total") - before
					if should := compress != "-compress=false"; saved > float64(len(longText)) != should {
						t.Errorf("compression has saved %v bytes; is it on: %v", saved, should)
					}
				})
			}
		})
	}
	eventually(t, "no connection is left", func() bool { return p.metric("websocket_active_connections") == 0 })
}

// idPattern is a random version-4 UUID in lower case, as the server writes it.
var idPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// inScenes decodes what a client has printed, with session-1, session-2, … for
// the ids, in the order in which they come.
func inScenes(t *testing.T, line []byte) (scenes []scene) {
	t.Helper()
	names := map[string]string{}
	line = idPattern.ReplaceAllFunc(line, func(id []byte) []byte {
		if names[string(id)] == "" {
			names[string(id)] = fmt.Sprintf("session-%d", len(names)+1)
		}
		return []byte(names[string(id)])
	})
	if err := json.Unmarshal(line, &scenes); err != nil {
		t.Fatalf("%v in what the client printed: %.300s", err, line)
	}
	return scenes
}

func checkScenes(t *testing.T, line []byte) {
	t.Helper()
	if n := bytes.Count(line, []byte("\n")); n > 1 {
		t.Errorf("%d lines instead of one", n)
	}
	wanted, saw := wantedScenes(), inScenes(t, line)
	if len(saw) != len(wanted) {
		t.Fatalf("%d scenes instead of %d", len(saw), len(wanted))
	}
	for i := range wanted {
		if a, b := asText(t, saw[i]), asText(t, wanted[i]); a != b {
			t.Errorf("saw, and should have seen:\n%s\n%s", a, b)
		}
	}
}

// asText makes what a client printed comparable with what a test wants: JSON
// with the keys in order, and with nothing too long to be read.
func asText(t *testing.T, s scene) string {
	t.Helper()
	for _, e := range s.Saw {
		if text, _ := e["message"].(string); text == longText {
			e["message"] = "the long text"
		} else if len(text) > 300 {
			e["message"] = fmt.Sprintf("%.300s… (%d bytes)", text, len(text))
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// missingClient ends a test for want of a client, which CI has to have.
func missingClient(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s: run scripts/test-deps.sh", what)
	}
	t.Skipf("missing: %s: run scripts/test-deps.sh", what)
}

func playNode(t *testing.T, address string) []byte {
	wanted, err := os.ReadFile("testdata/clients/package.json")
	if err != nil {
		t.Fatal(err)
	}
	installed, _ := os.ReadFile("../.cache/clients/package.json")
	if _, err := exec.LookPath("node"); err != nil || !bytes.Equal(installed, wanted) {
		missingClient(t, "node, or the npm packages of server/testdata/clients/package.json")
	}
	return runClient(t, "node", "testdata/clients/client.mjs", address)
}

// playPython uses Debian's interpreter and modules, whatever PATH and the
// environment say (-I).
func playPython(t *testing.T, address string) []byte {
	const python = "/usr/bin/python3"
	if exec.CommandContext(t.Context(), python, "-I", "-c", "import websockets.legacy.client").Run() != nil {
		missingClient(t, "Debian's python3-websockets")
	}
	return runClient(t, python, "-I", "testdata/clients/client.py", address)
}

// runClient returns what a client prints.
func runClient(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	return out
}

// A coderClient plays the scenario with github.com/coder/websocket.
type coderClient struct {
	t       *testing.T
	address string
	scenes  []scene
	session string // of the first scene
}

func playCoder(t *testing.T, address string) []byte {
	c := &coderClient{t: t, address: address}
	for _, s := range []struct {
		name string
		play func()
	}{
		{"first version", c.firstVersion},
		{"resume", c.resume},
		{"second version", c.secondVersion},
		{"takeover", c.takeover},
		{"binary", func() { c.refused(websocket.MessageBinary, []byte("bytes")) }},
		{"too big", func() { c.refused(websocket.MessageText, make([]byte, 64<<10+1)) }},
		{"bad session", c.badSession},
		{"foreign origin", c.foreignOrigin},
		{"client closes", func() { c.see(c.open("", nil).close(3456)) }},
	} {
		c.scenes = append(c.scenes, scene{Scene: s.name})
		s.play()
	}
	line, err := json.Marshal(c.scenes)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func (c *coderClient) see(e event) {
	s := &c.scenes[len(c.scenes)-1]
	s.Saw = append(s.Saw, e)
}

func (c *coderClient) firstVersion() {
	conn := c.open("", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"http://" + hostOf(c.address)}}})
	for _, text := range []string{"hello", "", "   ", hostileText, longText} {
		conn.send(text)
	}
	for range 3 {
		e := conn.next()
		c.session, _ = e["session_id"].(string)
		c.see(e)
	}
	conn.sendFragments(fragmentedText[:5], fragmentedText[5:]) // cut within a character
	c.see(conn.next())
	conn.ping()
	conn.send(" GoodBye ")
	c.see(conn.next())
	end := conn.end()
	c.see(event{"close": end.Code, "reason": end.Reason})
}

func (c *coderClient) resume() {
	conn := c.open("?session_id="+strings.ToUpper(c.session), nil)
	conn.send("again")
	c.see(conn.next())
	c.see(conn.close(websocket.StatusNormalClosure))
}

func (c *coderClient) secondVersion() {
	id := session.NewID().Text()
	c.see(event{"asked": string(id[:])})
	for _, text := range []string{"one", "two"} {
		conn := c.open("?session_id="+string(id[:]), &websocket.DialOptions{Subprotocols: []string{"another.v1", proto.Subprotocol}})
		c.see(conn.next())
		conn.send(text)
		c.see(conn.next())
		c.see(conn.close(websocket.StatusNormalClosure))
	}
}

func (c *coderClient) takeover() {
	first := c.open("", nil)
	first.send("mine")
	e := first.next()
	c.see(e)
	second := c.open(fmt.Sprint("?session_id=", e["session_id"]), nil)
	c.see(first.next())
	c.see(closeEvent(int(first.end().Code)))
	second.send("yours")
	c.see(second.next())
	c.see(second.close(websocket.StatusNormalClosure))
}

// refused sends a message for which the server closes.
func (c *coderClient) refused(kind websocket.MessageType, message []byte) {
	conn := c.open("", nil)
	if err := conn.ws.Write(conn.ctx, kind, message); err != nil {
		c.t.Fatal(err)
	}
	c.see(closeEvent(int(conn.end().Code)))
}

func (c *coderClient) badSession() {
	response := c.refusal("?session_id=nonsense", nil)
	var body event
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		c.t.Fatal(err)
	}
	c.see(event{"status": response.StatusCode, "body": body})
}

func (c *coderClient) foreignOrigin() {
	response := c.refusal("", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"http://elsewhere.example"}}})
	c.see(event{"status": response.StatusCode})
}

// refusal is the answer to a request that the server does not upgrade.
func (c *coderClient) refusal(query string, options *websocket.DialOptions) *http.Response {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	_, response, err := dialCoder(ctx, c.address, query, options)
	if err == nil || response == nil {
		c.t.Fatalf("%s was not refused: %v", query, err)
	}
	return response
}

// A coderConn is one connection of a coderClient; no wait on it is longer than
// patience.
type coderConn struct {
	client *coderClient
	ws     *websocket.Conn
	ctx    context.Context
	texts  chan []byte
	err    error // why there are no more texts, once that is closed
}

func (c *coderClient) open(query string, options *websocket.DialOptions) *coderConn {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	c.t.Cleanup(cancel)
	ws, _, err := dialCoder(ctx, c.address, query, options)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { ws.CloseNow() })
	conn := &coderConn{client: c, ws: ws, ctx: ctx, texts: make(chan []byte)}
	go conn.read()
	c.see(openEvent(ws.Subprotocol()))
	return conn
}

// dialCoder offers compression as well, which a server without -compress has to pass over.
func dialCoder(ctx context.Context, address, query string, options *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	if options == nil {
		options = &websocket.DialOptions{}
	}
	options.CompressionMode = websocket.CompressionContextTakeover
	options.HTTPClient = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(address, "unix:"); ok {
				network, to = "unix", path
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	}}
	ws, response, err := websocket.Dial(ctx, "ws://"+hostOf(address)+"/ws/chat/"+query, options)
	if err == nil {
		ws.SetReadLimit(1 << 20)
	}
	return ws, response, err
}

// hostOf is the Host of requests to a server.
func hostOf(address string) string {
	if strings.HasPrefix(address, "unix:") {
		return "localhost"
	}
	return address
}

// read runs beside the scenes, since the library sees control frames only while
// it reads.
func (c *coderConn) read() {
	defer close(c.texts)
	for {
		kind, text, err := c.ws.Read(c.ctx)
		if err == nil && kind != websocket.MessageText {
			err = errors.New("a binary message")
		}
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.texts <- text:
		case <-c.ctx.Done():
		}
	}
}

// next waits for the next frame.
func (c *coderConn) next() (e event) {
	c.client.t.Helper()
	text, ok := <-c.texts
	if !ok {
		c.client.t.Fatalf("no frame: %v", c.err)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		c.client.t.Fatalf("%v in %.300q", err, text)
	}
	return e
}

// end waits for the server's close frame.
func (c *coderConn) end() (end websocket.CloseError) {
	c.client.t.Helper()
	if text, ok := <-c.texts; ok {
		c.client.t.Fatalf("instead of a close came %.300q", text)
	}
	if !errors.As(c.err, &end) {
		c.client.t.Fatalf("no close frame: %v", c.err)
	}
	return end
}

func (c *coderConn) send(text string) {
	c.client.t.Helper()
	if err := c.ws.Write(c.ctx, websocket.MessageText, []byte(text)); err != nil {
		c.client.t.Fatal(err)
	}
}

// sendFragments sends a message of several frames, with a ping behind the first.
func (c *coderConn) sendFragments(first string, others ...string) {
	c.client.t.Helper()
	w, err := c.ws.Writer(c.ctx, websocket.MessageText)
	if err != nil {
		c.client.t.Fatal(err)
	}
	_, err = w.Write([]byte(first))
	c.ping()
	for _, other := range others {
		_, failed := w.Write([]byte(other))
		err = errors.Join(err, failed)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		c.client.t.Fatal(err)
	}
}

func (c *coderConn) ping() {
	c.client.t.Helper()
	if err := c.ws.Ping(c.ctx); err != nil {
		c.client.t.Fatal(err)
	}
	c.client.see(pongEvent())
}

// close closes from this side; the library tells apart only whether the server
// has sent the same code back.
func (c *coderConn) close(code websocket.StatusCode) event {
	c.client.t.Helper()
	if err := c.ws.Close(code, "that is all"); err != nil {
		c.client.t.Fatal(err)
	}
	return closeEvent(int(code))
}

// TestManyClients counts for many clients at once, each of which sends without
// waiting for the replies.
func TestManyClients(t *testing.T) {
	const clients, messages = 50, 100
	p := startServer(t, "-workers", "4")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range clients {
		name := fmt.Sprintf("client %d", i)
		all.Go(func() {
			if err := countTo(ctx, p.addr, name, messages); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if n := p.metric("websocket_messages_total"); n != clients*messages {
		t.Errorf("websocket_messages_total is %v instead of %d", n, clients*messages)
	}
}

// countTo sends n messages and checks their replies.
func countTo(ctx context.Context, address, name string, n int) error {
	ws, _, err := dialCoder(ctx, address, "", nil)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	text := func(i int) string { return fmt.Sprintf("%s: message %d", name, i) }
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := 1; i <= n && err == nil; i++ {
			err = ws.Write(ctx, websocket.MessageText, []byte(text(i)))
		}
		sent <- err
	}()
	for i := 1; i <= n; i++ {
		if err := checkReply(ctx, ws, i, text(i)); err != nil {
			return err
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	return ws.Close(websocket.StatusNormalClosure, "")
}

func checkReply(ctx context.Context, ws *websocket.Conn, count int, text string) error {
	_, frame, err := ws.Read(ctx)
	if err != nil {
		return err
	}
	var reply struct {
		Count   int
		Message string
	}
	if err := json.Unmarshal(frame, &reply); err != nil {
		return fmt.Errorf("%w in %q", err, frame)
	}
	if reply.Count != count || reply.Message != text {
		return fmt.Errorf("%s instead of count %d of %q", frame, count, text)
	}
	return nil
}
