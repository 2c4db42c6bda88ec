package deploy

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"turnstile/proto"
)

var helloFrame = proto.AppendMaskedFrame(nil, proto.OpText, true, [4]byte{1, 2, 3, 4}, []byte("hello"))

// A webSocket is a client's connection.
type webSocket struct {
	conn net.Conn
	read []byte
}

func dialWebSocket(t testing.TB, addr string) *webSocket {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	w := &webSocket{conn: conn}
	w.send(t, proto.AppendRequest(nil, addr, "/ws/chat/", ""))
	w.await(t, "\r\n\r\n")
	if err := proto.CheckUpgrade(w.read); err != nil {
		t.Fatal(err)
	}
	return w
}

// count sends n messages and waits for the answer to the last one.
func (w *webSocket) count(t testing.TB, n int) {
	t.Helper()
	for range n {
		w.send(t, helloFrame)
	}
	w.await(t, fmt.Sprintf(`{"count":%d,`, n))
}

func (w *webSocket) send(t testing.TB, data []byte) {
	t.Helper()
	if _, err := w.conn.Write(data); err != nil {
		t.Fatal(err)
	}
}

func (w *webSocket) await(t testing.TB, text string) {
	t.Helper()
	for buffer := make([]byte, 4096); !strings.Contains(string(w.read), text); {
		n, err := w.conn.Read(buffer)
		if err != nil {
			t.Fatalf("%v before %q, after %q", err, text, w.read)
		}
		w.read = append(w.read, buffer[:n]...)
	}
}
