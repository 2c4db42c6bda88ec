// Command gnet is the counter job on github.com/panjf2000/gnet, with the
// upgrader and the frames of github.com/gobwas/ws: event loops on epoll, no
// goroutine for a connection. There is a loop for each core, each with its own
// listening socket, and all replies to what one read brought are one write.
//
// A message in fragments ends its connection: no load here sends one.
package main

import (
	"bytes"
	"errors"
	"io"
	"log"
	"runtime"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"

	"turnstile/bench/peers/counter"
)

const maxRequestBytes = 8 << 10

var (
	errFragment = errors.New("message in fragments")
	errLength   = errors.New("message over the limit")
	errRequest  = errors.New("request over the limit")
)

func main() {
	err := gnet.Run(&server{}, "tcp://"+counter.Address(),
		gnet.WithNumEventLoop(runtime.NumCPU()), gnet.WithReusePort(true), gnet.WithReuseAddr(true),
		gnet.WithLogLevel(logging.ErrorLevel))
	log.Fatalf("cannot listen: %v", err)
}

type server struct{ gnet.BuiltinEventEngine }

// OnTraffic implements gnet.EventHandler: what has come is read, and may be a
// part of a request or a frame.
func (*server) OnTraffic(c gnet.Conn) gnet.Action {
	if c.Context() == nil {
		if err := upgrade(c); err != nil || c.Context() == nil {
			return action(err)
		}
	}
	return action(answer(c, c.Context().(*counter.Session)))
}

func action(err error) gnet.Action {
	if err != nil {
		return gnet.Close
	}
	return gnet.None
}

// upgrade answers the request, once it is there as a whole, and gives c its
// session.
func upgrade(c gnet.Conn) error {
	buf, _ := c.Peek(-1)
	end := bytes.Index(buf, []byte("\r\n\r\n"))
	switch {
	case end < 0 && len(buf) > maxRequestBytes:
		return errRequest
	case end < 0:
		return nil
	}
	request := struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(buf[:end+4]), c}
	s, err := counter.Upgrade(request)
	if err != nil {
		return err
	}
	c.SetContext(s)
	_, err = c.Discard(end + 4)
	return err
}

// answer handles the frames that are there as a whole, and writes once.
func answer(c gnet.Conn, s *counter.Session) error {
	buf, _ := c.Peek(-1)
	out := counter.GetBuffer()
	defer counter.PutBuffer(out)
	used, failed := 0, error(nil)
	for failed == nil {
		op, payload, n, err := next(buf[used:])
		if n == 0 && err == nil {
			break
		}
		used += n
		if failed = err; failed == nil {
			failed = handle(out, op, payload, s)
		}
	}
	if used > 0 { // Discard(0) discards everything.
		if _, err := c.Discard(used); err != nil {
			return err
		}
	}
	if out.Len() == 0 {
		return failed
	}
	_, err := c.Write(out.Bytes())
	return errors.Join(err, failed)
}

// next returns the frame at the front of buf, and its length: 0 if it is not
// there as a whole.
func next(buf []byte) (op ws.OpCode, payload []byte, n int, err error) {
	in := bytes.NewReader(buf)
	header, err := ws.ReadHeader(in)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return 0, nil, 0, nil
	case err != nil:
		return 0, nil, 0, err
	}
	if err := check(header); err != nil {
		return 0, nil, 0, err
	}
	if int64(in.Len()) < header.Length {
		return 0, nil, 0, nil
	}
	n = len(buf) - in.Len() + int(header.Length)
	payload = buf[len(buf)-in.Len() : n]
	ws.Cipher(payload, header.Mask, 0)
	return header.OpCode, payload, n, nil
}

func check(header ws.Header) error {
	switch {
	case !header.Fin || header.OpCode == ws.OpContinuation:
		return errFragment
	case header.Length > counter.MaxMessageBytes:
		return errLength
	}
	return ws.CheckHeader(header, ws.StateServerSide)
}

// handle appends the reply to a frame.
func handle(out *bytes.Buffer, op ws.OpCode, payload []byte, s *counter.Session) error {
	switch op {
	case ws.OpText:
		return count(out, payload, s)
	case ws.OpPing:
		return ws.WriteFrame(out, ws.NewPongFrame(payload))
	case ws.OpPong:
		return nil
	case ws.OpClose:
		return errors.Join(ws.WriteFrame(out, ws.NewCloseFrame(payload)), io.EOF)
	}
	return counter.ErrBinary
}

func count(out *bytes.Buffer, text []byte, s *counter.Session) error {
	buf := counter.GetBuffer()
	defer counter.PutBuffer(buf)
	reply, err := s.Reply(buf, text)
	if err != nil || len(reply) == 0 {
		return err
	}
	if err := ws.WriteHeader(out, ws.Header{Fin: true, OpCode: ws.OpText, Length: int64(len(reply))}); err != nil {
		return err
	}
	out.Write(reply)
	return nil
}
