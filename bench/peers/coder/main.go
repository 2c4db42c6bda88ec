// Command coder is the counter job on github.com/coder/websocket: no
// compression (its default, said here), its own context and not the request's
// (its README), and Reader into a pooled buffer instead of Read, which
// allocates one.
package main

import (
	"context"
	"net/http"

	"github.com/coder/websocket"

	"turnstile/bench/peers/counter"
)

func main() {
	options := &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled}
	counter.Serve(func(w http.ResponseWriter, r *http.Request, s *counter.Session) {
		conn, err := websocket.Accept(w, r, options)
		if err != nil {
			return // Accept has answered.
		}
		// On a goroutine of its own, so that the request can be collected.
		go serve(conn, s)
	})
}

func serve(conn *websocket.Conn, s *counter.Session) {
	defer conn.CloseNow()
	conn.SetReadLimit(counter.MaxMessageBytes)
	for answer(conn, s) == nil {
	}
}

// answer reads one message and replies to it. It takes a buffer only when the
// message is there. A context that cannot end costs nothing for each message.
func answer(conn *websocket.Conn, s *counter.Session) error {
	kind, r, err := conn.Reader(context.Background())
	if err != nil {
		return err
	}
	if kind != websocket.MessageText {
		return counter.ErrBinary
	}
	buf := counter.GetBuffer()
	defer counter.PutBuffer(buf)
	if _, err := buf.ReadFrom(r); err != nil {
		return err
	}
	reply, err := s.Reply(buf, buf.Bytes())
	if err != nil || len(reply) == 0 {
		return err
	}
	return conn.Write(context.Background(), websocket.MessageText, reply)
}
