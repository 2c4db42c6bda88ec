// Command gws is the counter job on github.com/lxzan/gws, with its own server
// (README, "Quick Start"), which upgrades without net/http. No compression. No
// ParallelEnabled, which its README shows: it runs the messages of a connection
// side by side, and the counter's replies keep the order of the messages.
package main

import (
	"log"
	"net"
	"net/http"

	"github.com/lxzan/gws"

	"turnstile/bench/peers/counter"
)

// storage is what gws keeps for a connection: the session, instead of the map
// behind a mutex that is the default.
type storage struct {
	gws.SessionStorage
	session *counter.Session
}

func main() {
	server := gws.NewServer(handler{}, &gws.ServerOption{
		// Held for life by each connection: the size of usual messages.
		ReadBufferSize:     1024,
		ReadMaxPayloadSize: counter.MaxMessageBytes,
		NewSession:         func() gws.SessionStorage { return new(storage) },
		Authorize:          authorize,
	})
	server.OnError = func(conn net.Conn, _ error) {
		if conn != nil {
			conn.Close()
		}
	}
	log.Fatal(server.RunListener(counter.Listener()))
}

// authorize refuses an upgrade by answering false.
func authorize(r *http.Request, store gws.SessionStorage) bool {
	if r.URL.Path != counter.Path {
		return false
	}
	s, err := counter.Open(r.URL.RawQuery)
	store.(*storage).session = s
	return err == nil
}

type handler struct{ gws.BuiltinEventHandler }

// OnPing echoes the payload (RFC 6455 §5.5.3); the built-in handler drops it.
func (handler) OnPing(conn *gws.Conn, payload []byte) {
	_ = conn.WritePong(payload)
}

func (handler) OnMessage(conn *gws.Conn, message *gws.Message) {
	defer message.Close()
	if err := answer(conn, message); err != nil {
		_ = conn.WriteClose(1003, []byte(err.Error()))
	}
}

func answer(conn *gws.Conn, message *gws.Message) error {
	if message.Opcode != gws.OpcodeText {
		return counter.ErrBinary
	}
	buf := counter.GetBuffer()
	defer counter.PutBuffer(buf)
	reply, err := conn.Session().(*storage).session.Reply(buf, message.Bytes())
	if err != nil || len(reply) == 0 {
		return err
	}
	return conn.WriteMessage(gws.OpcodeText, reply)
}
