// Command gobwas is the counter job on github.com/gobwas/ws with a goroutine
// for each connection: the zero-copy upgrade on the accepted connection
// (README, "Zero-copy upgrade"), and wsutil.Reader.
//
// A small bufio.Reader stands between: without one wsutil reads each message
// with three system calls.
package main

import (
	"bufio"
	"log"
	"net"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"turnstile/bench/peers/counter"
)

const readBufferBytes = 1024

func main() {
	listener := counter.Listener()
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatalf("cannot accept: %v", err)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	s, err := counter.Upgrade(conn)
	if err != nil {
		return
	}
	control := wsutil.ControlFrameHandler(conn, ws.StateServerSide)
	r := &wsutil.Reader{
		Source:         bufio.NewReaderSize(conn, readBufferBytes),
		State:          ws.StateServerSide,
		MaxMessageSize: counter.MaxMessageBytes,
		OnIntermediate: control,
	}
	for answer(conn, r, control, s) == nil {
	}
}

// answer reads one frame: a control frame is handled, a message replied to. It
// takes a buffer only when the message is there.
func answer(conn net.Conn, r *wsutil.Reader, control wsutil.FrameHandlerFunc, s *counter.Session) error {
	header, err := r.NextFrame()
	if err != nil {
		return err
	}
	if header.OpCode.IsControl() {
		return control(header, r)
	}
	if header.OpCode != ws.OpText {
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
	return write(conn, reply)
}

// write sends one text frame with one system call: wsutil.WriteServerMessage
// would send the header by itself.
func write(conn net.Conn, reply []byte) error {
	frame := counter.GetBuffer()
	defer counter.PutBuffer(frame)
	header := ws.Header{Fin: true, OpCode: ws.OpText, Length: int64(len(reply))}
	if err := ws.WriteHeader(frame, header); err != nil {
		return err
	}
	frame.Write(reply)
	_, err := conn.Write(frame.Bytes())
	return err
}
