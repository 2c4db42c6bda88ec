// Command gorilla is the counter job on github.com/gorilla/websocket, tuned as
// its documentation says: small read buffers and pooled write buffers (package
// documentation, "Buffers"), and the connection served on a goroutine of its
// own, so that the request can be collected (its chat example).
package main

import (
	"net/http"
	"sync"

	"github.com/gorilla/websocket"

	"turnstile/bench/peers/counter"
)

// Pooled, a large write buffer costs nothing for each connection; the read
// buffer is held for life, so it has the size of usual messages, not of the
// longest one.
var upgrader = websocket.Upgrader{
	ReadBufferSize:  1024,
	WriteBufferSize: 4096,
	WriteBufferPool: &sync.Pool{},
}

func main() {
	counter.Serve(func(w http.ResponseWriter, r *http.Request, s *counter.Session) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // Upgrade has answered.
		}
		go serve(conn, s)
	})
}

func serve(conn *websocket.Conn, s *counter.Session) {
	defer conn.Close()
	conn.SetReadLimit(counter.MaxMessageBytes)
	for answer(conn, s) == nil {
	}
}

// answer reads one message and replies to it. It takes a buffer only when the
// message is there.
func answer(conn *websocket.Conn, s *counter.Session) error {
	kind, r, err := conn.NextReader()
	if err != nil {
		return err
	}
	if kind != websocket.TextMessage {
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
	return conn.WriteMessage(websocket.TextMessage, reply)
}
