package interoptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"turnstile/proto"
	"turnstile/server/session"
)

// patience bounds every wait; nothing waits for so long that works.
const patience = time.Minute

// A coderClient plays the scenario.
type coderClient struct {
	t       *testing.T
	address string
	scenes  []scene
	session string // of the first Scene
}

// PlayCoder plays the scenario at an address, which is host:port or unix:/path, and returns
// what a program would print.
func PlayCoder(t *testing.T, address string) []byte {
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
	_, response, err := DialCoder(ctx, c.address, query, options)
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
	ws, _, err := DialCoder(ctx, c.address, query, options)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { ws.CloseNow() })
	conn := &coderConn{client: c, ws: ws, ctx: ctx, texts: make(chan []byte)}
	go conn.read()
	c.see(openEvent(ws.Subprotocol()))
	return conn
}

// DialCoder connects to an address. It offers compression as well, which a server without
// -compress has to pass over.
func DialCoder(ctx context.Context, address, query string, options *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
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
