package engine

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
)

// A client hangs up before its request is looked at. Another connection has the session
// by then, and keeps it.
func TestClientHasHungUpBeforeItsClaim(t *testing.T) {
	h := startEngine(t)
	request := "GET /count?session_id=" + someSession + " HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	front, end, _ := strings.Cut(request, "Sec-WebSocket-Key")
	gone := h.ask(front)
	live := h.connect("/count?session_id=" + someSession)
	eventually(t, "the front of the request is read", func() (read bool) {
		h.onLoop(func(w *worker) { read = netpoll.Unread(int(w.connOf(gone).fd)) == 0 })
		return read
	})
	h.onLoop(func(w *worker) {
		c := w.connOf(gone)
		c.arrive(t, gone, append([]byte("Sec-WebSocket-Key"+end), text("more")...)) // more hides the end, until it is read
		unix.Shutdown(gone, unix.SHUT_WR)
		c.endArrives(t)
	})
	eventually(t, "the server has noticed", func() bool { return h.metrics().Handshakes[handshakeAbandoned].Load() == 1 })
	exchange(t, live, text("one"), []byte(`"message":"one"}`), make([]byte, 4096))
}
