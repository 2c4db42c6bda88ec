package deploy

import (
	"fmt"
	"io"
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
	for !strings.Contains(string(w.read), text) {
		w.awaitBytes(t, len(w.read)+1)
	}
}

// awaitBytes reads until so many bytes have come in all.
func (w *webSocket) awaitBytes(t testing.TB, n int) {
	t.Helper()
	for buffer := make([]byte, 4096); len(w.read) < n; {
		got, err := w.conn.Read(buffer)
		if err != nil {
			t.Fatalf("%v after %q", err, w.read)
		}
		w.read = append(w.read, buffer[:got]...)
	}
}

// wantClose waits for a close frame with a code, as two bytes, answers it, and expects
// the connection to end.
func (w *webSocket) wantClose(t testing.TB, code string) {
	t.Helper()
	w.await(t, code)
	at := strings.LastIndex(string(w.read), code)
	if at < 2 || w.read[at-2] != 0x80|byte(proto.OpClose) {
		t.Fatalf("got %q, want a close frame with %q", w.read, code)
	}
	w.awaitBytes(t, at+int(w.read[at-1]))
	w.send(t, proto.AppendMaskedFrame(nil, proto.OpClose, true, [4]byte{}, []byte(code)))
	if n, err := w.conn.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("behind the close frame: %d bytes, %v", n, err)
	}
}
