// Command nbio is the counter job on github.com/lesismal/nbio in its
// non-blocking mode: pollers on epoll, no goroutine for a connection. Messages
// are handled on the poller that read them, which is quicker here than the
// default pool of goroutines; so there is a poller for each core, where the
// default of a quarter of them counts on that pool.
package main

import (
	"log"
	"net/http"
	"runtime"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"

	"turnstile/bench/peers/counter"
)

func main() {
	logging.SetLevel(logging.LevelError)
	upgrader := newUpgrader()
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{counter.Address()},
		IOMod:                   nbhttp.IOModNonBlocking,
		NPoller:                 runtime.NumCPU(),
		ServerExecutor:          func(f func()) { f() },
		ReleaseWebsocketPayload: true,
		SupportServerOnly:       true,
		Handler: counter.Handler(func(w http.ResponseWriter, r *http.Request, s *counter.Session) {
			conn, err := upgrader.Upgrade(w, r, nil)
			if err != nil {
				return // Upgrade has answered.
			}
			conn.SetSession(s)
		}),
	})
	if err := engine.Start(); err != nil {
		log.Fatalf("cannot listen: %v", err)
	}
	select {}
}

func newUpgrader() *websocket.Upgrader {
	u := websocket.NewUpgrader()
	u.MessageLengthLimit = counter.MaxMessageBytes
	// By default a connection is cut after two silent minutes, with a timer
	// for each; no other peer does that.
	u.KeepaliveTime = 0
	u.OnMessage(func(conn *websocket.Conn, kind websocket.MessageType, text []byte) {
		if err := answer(conn, kind, text); err != nil {
			conn.CloseWithError(err)
		}
	})
	return u
}

func answer(conn *websocket.Conn, kind websocket.MessageType, text []byte) error {
	if kind != websocket.TextMessage {
		return counter.ErrBinary
	}
	buf := counter.GetBuffer()
	defer counter.PutBuffer(buf)
	reply, err := conn.Session().(*counter.Session).Reply(buf, text)
	if err != nil || len(reply) == 0 {
		return err
	}
	return conn.WriteMessage(websocket.TextMessage, reply)
}
