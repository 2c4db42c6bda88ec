package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"turnstile/proto"
)

// A smokeTest asks a running server once for each thing that its clients need.
// It goes on to the next only where the last one held.
type smokeTest struct {
	site    *site
	reaches *site // the server that the site must lead to, or nil
	session string
}

// smoke is the mode of the same name. Exit code 0: all of it holds.
func smoke(args []string) int {
	f := flag.NewFlagSet("bench smoke", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	timeout := f.Duration("timeout", 5*time.Second, "how long each of the steps may take")
	reaches := f.String("reaches", "", "the `url` of the one server that must be what answers, past any proxy; it must show its /metrics/")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print("bench smoke: asks a server for its health, its readiness, a WebSocket, a count and a resume\n\n" +
			"Usage: bench smoke [flags] URL\n\nURL is http://HOST:PORT, https://HOST:PORT or unix:SOCKET\n\nFlags:\n")
		f.SetOutput(os.Stdout)
		f.PrintDefaults()
		return exitOK
	case err != nil:
		return complain(plain(err, f), exitUsage)
	case f.NArg() != 1 || *timeout <= 0:
		return complain(errors.New("usage: bench smoke [-timeout 5s] [-reaches URL] URL"), exitUsage)
	}
	var s smokeTest
	if s.site, err = parseSite(f.Arg(0), *timeout); err == nil && *reaches != "" {
		s.reaches, err = parseSite(*reaches, *timeout)
	}
	if err != nil {
		return complain(err, exitUsage)
	}
	return s.run()
}

func (s *smokeTest) run() int {
	fmt.Printf("smoke test of %s\n", s.site.url)
	var upgrades uint64
	steps := []struct {
		name string
		do   func() (string, error)
	}{
		{"health", func() (string, error) { return s.page("/healthz/", `"status":"healthy"`) }},
		{"readiness", func() (string, error) { return s.page("/readyz/", `"ready":true`) }},
		{"identity", func() (_ string, err error) { upgrades, err = s.upgrades(); return "", err }},
		{"count", s.count},
		{"resume", s.resume},
		{"identity", func() (string, error) { return s.seen(upgrades) }},
	}
	for _, step := range steps {
		if step.name == "identity" && s.reaches == nil {
			continue
		}
		began := time.Now()
		text, err := step.do()
		if err != nil {
			fmt.Printf("  %-10s FAILED: %v\n", step.name, err)
			return exitFellShort
		}
		if text != "" {
			fmt.Printf("  %-10s ok %6.1f ms  %s\n", step.name, time.Since(began).Seconds()*1000, text)
		}
	}
	return exitOK
}

// page wants 200 and a text in the body.
func (s *smokeTest) page(path, want string) (string, error) {
	status, body, err := s.site.get(path)
	if err != nil {
		return "", err
	}
	if status != 200 || !strings.Contains(body, want) {
		return "", fmt.Errorf("%s answers %d %s, and not 200 with %s", path, status, strings.TrimSpace(body), want)
	}
	return path + " is 200", nil
}

// count opens a session, sends two messages, and leaves without a word, as a
// client whose network fails.
func (s *smokeTest) count() (string, error) {
	c, err := s.site.chat("")
	if err != nil {
		return "", err
	}
	defer c.close()
	for want := range uint64(2) {
		if s.session, err = c.ask(want + 1); err != nil {
			return "", err
		}
	}
	return "1, 2 in session " + s.session, nil
}

// resume comes back, and ends as a client should.
func (s *smokeTest) resume() (string, error) {
	c, err := s.site.chat(s.session)
	if err != nil {
		return "", err
	}
	defer c.close()
	session, err := c.ask(3)
	if err != nil {
		return "", err
	}
	if session != s.session {
		return "", fmt.Errorf("asked for session %s, got %s", s.session, session)
	}
	if err := c.leave(`{"bye":true,"total":3}`); err != nil {
		return "", err
	}
	return "3, and a goodbye", nil
}

// upgrades is how many WebSockets the reached server has opened.
func (s *smokeTest) upgrades() (uint64, error) {
	const metric = `websocket_handshakes_total{result="upgraded"} `
	_, body, err := s.reaches.get("/metrics/")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, metric); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s does not show the metric %s", s.reaches.url, metric)
}

// seen wants the reached server to have opened the two WebSockets of the test.
func (s *smokeTest) seen(before uint64) (string, error) {
	now, err := s.upgrades()
	if err == nil && now < before+2 {
		err = fmt.Errorf("%s answers by another server than %s, which has opened %d WebSockets more and not 2",
			s.site.url, s.reaches.url, now-before)
	}
	return "it leads to " + s.reaches.url, err
}

// A chat is one WebSocket of a smoke test.
type chat struct {
	conn   net.Conn
	parser proto.Parser
	buf    []byte
}

// ask sends a message and wants the answer with the given count; it returns the
// session's ID.
func (c *chat) ask(count uint64) (session string, err error) {
	text := fmt.Sprintf("smoke test %d", count)
	if err := c.send(proto.OpText, text); err != nil {
		return "", err
	}
	answer, err := c.next(proto.OpText)
	if err != nil {
		return "", fmt.Errorf("no answer to message %d: %w", count, err)
	}
	got, id, ok := proto.ReadCount(answer)
	if !ok || got != count || !strings.Contains(string(answer), `"message":"`+text+`"`) {
		return "", fmt.Errorf("message %d is answered %s, and not with its text and count %d", count, answer, count)
	}
	return string(id), nil
}

// leave says goodbye, and wants the bye and close 1000.
func (c *chat) leave(want string) error {
	if err := c.send(proto.OpText, "goodbye"); err != nil {
		return err
	}
	bye, err := c.next(proto.OpText)
	if err != nil {
		return fmt.Errorf("no answer to goodbye: %w", err)
	}
	if string(bye) != want {
		return fmt.Errorf("goodbye is answered %s, and not %s", bye, want)
	}
	payload, err := c.next(proto.OpClose)
	if err != nil {
		return fmt.Errorf("no close frame after goodbye: %w", err)
	}
	if code := proto.CloseCode(payload); code != proto.StatusNormalClosure {
		return fmt.Errorf("close %d after goodbye, and not 1000", code)
	}
	return nil
}

func (c *chat) send(op proto.OpCode, text string) error {
	_, err := c.conn.Write(proto.AppendMaskedFrame(nil, op, true, clientMask, []byte(text)))
	return err
}

// next is the payload of the next frame that is no heartbeat and no ping; a
// close frame, where that is not what is wanted, is an error.
func (c *chat) next(want proto.OpCode) ([]byte, error) {
	for {
		m, n, err := c.parser.Next(c.buf)
		if err != nil {
			return nil, err
		}
		payload := append([]byte(nil), m.Payload...)
		c.buf = c.buf[n:]
		switch {
		case m.Op == proto.OpContinuation:
			if c.buf, err = readMore(c.conn, c.buf); err != nil {
				return nil, err
			}
		case m.Op == proto.OpPing:
			if err := c.send(proto.OpPong, string(payload)); err != nil {
				return nil, err
			}
		case m.Op == proto.OpText && proto.IsHeartbeat(payload):
		case m.Op == want:
			return payload, nil
		case m.Op == proto.OpClose:
			return nil, fmt.Errorf("close %d", proto.CloseCode(payload))
		default:
			return nil, fmt.Errorf("a frame of opcode %d: %q", m.Op, payload)
		}
	}
}

func (c *chat) close() { c.conn.Close() }
