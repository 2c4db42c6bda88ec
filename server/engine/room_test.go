package engine_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rs/zerolog"

	"turnstile/metrics"
	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/engine"
)

// room is an application that the engine knows nothing of: what one says, all
// others on the same worker hear. It is written with what the package exports.
type room struct {
	engine.Silent
	members map[*engine.Conn]bool
}

func newRoom() engine.Handler { return &room{members: make(map[*engine.Conn]bool)} }

func (r *room) OnOpen(c *engine.Conn, _ bool, out []byte) []byte {
	r.members[c] = true
	return proto.AppendFrame(out, proto.OpText, []byte("welcome"))
}

func (r *room) OnAdopt(c *engine.Conn)  { r.members[c] = true }
func (r *room) OnClosed(c *engine.Conn) { delete(r.members, c) }

func (r *room) OnMessage(c *engine.Conn, m proto.Message, out []byte) []byte {
	heard := 0
	for member := range r.members {
		if member != c && member.Send(m.Op, m.Payload) {
			heard++
		}
	}
	return proto.AppendFrame(out, proto.OpText, fmt.Append(nil, heard))
}

// startRoom starts an engine with a room at /room, and returns it with the room's
// URL.
func startRoom(t *testing.T) (*engine.Engine, string) {
	t.Helper()
	var labels metrics.Labels
	labels.Handshakes, labels.Closes = engine.Labels()
	e, err := engine.New(engine.Config{
		Workers: 1, Endpoints: []engine.Endpoint{{Path: "/room", New: newRoom}},
		MaxConnections: 100, MaxMessage: 1 << 10, Heartbeat: time.Minute,
		HandshakeTimeout: time.Minute, WriteTimeout: time.Minute, MessageTimeout: time.Minute,
		Metrics: metrics.New(1, labels, metrics.Sources{}), Log: zerolog.Nop(), Fatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.Listen("127.0.0.74:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.CloseListeners()
		e.Cut()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Listen(l); err != nil {
		t.Fatal(err)
	}
	return e, "ws://" + l.Addr + "/room"
}

// join connects a client that has been welcomed; hear is the next thing it hears.
func join(ctx context.Context, t *testing.T, url string) (client *websocket.Conn, hear func() string) {
	t.Helper()
	client, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.CloseNow() })
	hear = func() string {
		t.Helper()
		_, text, err := client.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := hear(); got != "welcome" {
		t.Fatalf("a client that comes hears %q", got)
	}
	return client, hear
}

// TestRoom: an answer to other connections than the one that asks.
func TestRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e, url := startRoom(t)
	speaker, hear := join(ctx, t, url)
	var others []func() string
	for range 3 {
		_, other := join(ctx, t, url)
		others = append(others, other)
	}
	leaver, _ := join(ctx, t, url)
	say := func(text string) {
		t.Helper()
		if err := speaker.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(heard string, texts ...string) {
		t.Helper()
		for range texts {
			if got := hear(); got != heard {
				t.Errorf("the speaker is told that %s have heard it, want %s", got, heard)
			}
		}
		for i, other := range others {
			for _, text := range texts {
				if got := other(); got != text {
					t.Errorf("client %d hears %q, want %q", i, got, text)
				}
			}
		}
	}
	leaver.Close(websocket.StatusNormalClosure, "")
	for tick := time.NewTicker(time.Millisecond); e.Connections() > 4; <-tick.C {
		if ctx.Err() != nil {
			t.Fatal("the client that has left is still there")
		}
	}
	say("one")
	want("3", "one")
	say("two")
	say("three")
	want("3", "two", "three")
}
