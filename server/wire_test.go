package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"turnstile/proto"
)

// A wire is one WebSocket client that can say anything, right or wrong, byte
// for byte.
type wire struct {
	t      testing.TB
	conn   net.Conn
	reader *bufio.Reader
	parser proto.Parser
	unread []byte
	closed bool // it has sent a close frame
}

// upgradeRequest is a valid request for target, with further header lines.
func upgradeRequest(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		strings.Join(append(slices.Clone(headers), "", ""), "\r\n")
}

const deflateHeader = "Sec-WebSocket-Extensions: permessage-deflate"

// deflated is a frame of a client with a piece of a message that compress has made; the
// first piece says so.
func deflated(op proto.OpCode, fin bool, payload string) []byte {
	f := frame(op, fin, payload)
	if op != proto.OpContinuation {
		f[0] |= 0x40 // RSV1: RFC 7692 §6
	}
	return f
}

// compress is the payload of a compressed message (RFC 7692 §7.2.1).
func compress(message string) string {
	var out strings.Builder
	w, _ := flate.NewWriter(&out, flate.BestCompression)
	io.WriteString(w, message)
	w.Flush()
	return strings.TrimSuffix(out.String(), "\x00\x00\xff\xff")
}

const v2Header = "Sec-WebSocket-Protocol: message-counter.v2"

// open connects a client to target and expects the upgrade.
func (p *process) open(target string, headers ...string) *wire {
	p.t.Helper()
	w := newWire(p.t, p.dial())
	response := w.request(upgradeRequest(target, headers...))
	if response.StatusCode != http.StatusSwitchingProtocols {
		p.t.Fatalf("%s: %s", target, response.Status)
	}
	if response.Header.Get("Sec-WebSocket-Extensions") != "" {
		w.parser.Rules = &proto.Rules{MaxMessage: clientRules.MaxMessage, Inflater: &proto.Inflater{}}
	}
	return w
}

func newWire(t testing.TB, conn net.Conn) *wire {
	return &wire{t: t, conn: conn, reader: bufio.NewReader(conn), parser: proto.Parser{Rules: &clientRules}}
}

// request sends a request and reads the header of the answer.
func (w *wire) request(text string) *http.Response {
	w.t.Helper()
	w.write([]byte(text))
	return w.response()
}

// response reads the header of an answer.
func (w *wire) response() *http.Response {
	w.t.Helper()
	response, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		w.t.Fatalf("no answer to the request: %v", err)
	}
	return response
}

func (w *wire) write(b []byte) {
	w.t.Helper()
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// frame is a client's frame.
func frame(op proto.OpCode, fin bool, payload string) []byte {
	return proto.AppendMaskedFrame(nil, op, fin, clientMask, []byte(payload))
}

func text(payload string) []byte { return frame(proto.OpText, true, payload) }

func (w *wire) send(frames ...[]byte) {
	w.t.Helper()
	w.closed = w.closed || slices.ContainsFunc(frames, func(f []byte) bool { return proto.OpCode(f[0]&0x0f) == proto.OpClose })
	w.write(bytes.Join(frames, nil))
}

// next reads the next frame; its Op is OpContinuation at the end of the stream.
func (w *wire) next() proto.Message {
	w.t.Helper()
	for {
		m, n, err := w.parser.Next(w.unread)
		if err != nil {
			w.t.Fatalf("the server sent what is no frame: %v", err)
		}
		m.Payload = bytes.Clone(m.Payload)
		w.unread = w.unread[n:]
		if m.Op != proto.OpContinuation {
			return m
		}
		chunk := make([]byte, 64<<10)
		n, err = w.reader.Read(chunk)
		if err == io.EOF {
			return m
		}
		if err != nil {
			w.t.Fatalf("reading from the server: %v", err)
		}
		w.unread = append(w.unread, chunk[:n]...)
	}
}

// A reply is any JSON frame of the server's.
type reply struct {
	Count     uint64 `json:"count"`
	SessionID string `json:"session_id"`
	Message   string `json:"message"`
	Type      string `json:"type"`
	TS        string `json:"ts"`
	Resumed   *bool  `json:"resumed"`
	Error     string `json:"error"`
	Bye       bool   `json:"bye"`
	Total     uint64 `json:"total"`
	Reason    string `json:"reason"`
	Inflight  bool   `json:"inflight_completed"`
	RetryMS   *int64 `json:"retry_after_ms"`
}

func (w *wire) reply() (r reply) {
	w.t.Helper()
	m := w.next()
	if m.Op != proto.OpText {
		w.t.Fatalf("got %s, want a text frame", describe(m))
	}
	if err := json.Unmarshal(m.Payload, &r); err != nil {
		w.t.Fatalf("%q: %v", m.Payload, err)
	}
	return r
}

// answer is the next reply that is no heartbeat: a slow machine may come to one.
func (w *wire) answer() reply {
	w.t.Helper()
	r := w.reply()
	for r.Type == "heartbeat" {
		w.next() // its ping
		r = w.reply()
	}
	return r
}

func describe(m proto.Message) string {
	switch m.Op {
	case proto.OpContinuation:
		return "the end of the stream"
	case proto.OpClose:
		return "a close frame: " + string(m.Payload)
	}
	return "a frame: " + string(m.Payload)
}

// wantCount expects the reply to a message.
func (w *wire) wantCount(count uint64, message string) reply {
	w.t.Helper()
	r := w.answer()
	if r.Count != count || r.Message != message {
		w.t.Fatalf("got count %d of %.50q, want %d of %.50q", r.Count, r.Message, count, message)
	}
	return r
}

// wantClose expects a close frame with a code (0: none), answers it as a client does
// (RFC 6455 §5.5.1), and then expects the end of the stream.
func (w *wire) wantClose(code proto.StatusCode) {
	w.t.Helper()
	m := w.next()
	if m.Op != proto.OpClose || proto.CloseCode(m.Payload) != code {
		w.t.Fatalf("got %s, want close %d", describe(m), code)
	}
	if !w.closed {
		w.send(frame(proto.OpClose, true, string(m.Payload[:min(2, len(m.Payload))])))
	}
	if m := w.next(); m.Op != proto.OpContinuation {
		w.t.Fatalf("%s behind the close frame", describe(m))
	}
}

// wantEnd expects the connection to end, whether by FIN or by RST.
func (w *wire) wantEnd() {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	for {
		_, err := w.reader.Read(buf)
		if err, ok := err.(net.Error); ok && err.Timeout() {
			w.t.Fatal("the connection does not end")
		}
		if err != nil {
			return
		}
	}
}
