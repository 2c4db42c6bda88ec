package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"turnstile/server/handover"
)

// wantRefused checks that a takeover is refused, and that nobody notices.
func (s *serverChain) wantRefused(reason handover.Refusal, refused string) {
	s.t.Helper()
	if !strings.Contains(refused, "refused ("+string(reason)+")") {
		s.t.Errorf("got %q, want a refusal for %s", refused, reason)
	}
	if got := s.current.metric(fmt.Sprintf("websocket_handover_refusals_total{reason=%q}", reason)); got != 1 {
		s.t.Errorf("%v refusals for %s are counted, want 1", got, reason)
	}
}

func TestHandoverRefused(t *testing.T) {
	chain := startChain(t)
	var wires []*wire
	for range 30 {
		wires = append(wires, chain.open("/ws/chat/"))
	}
	successorSays := func(flags ...string) string {
		chain.flags = append(chain.flags, flags...)
		defer func() { chain.flags = chain.flags[:len(chain.flags)-len(flags)] }()
		p := chain.startSuccessor()
		if code := p.wait(); code != exitFailure {
			t.Errorf("the refused server ends with exit code %d", code)
		}
		return p.stderr.String()
	}
	hello := handover.Hello{Version: handover.Newest, Store: "embedded", Endpoints: []string{"/ws/chat"}, Connections: 1, FileDescriptors: 1}
	less := func(change func(h *handover.Hello)) string {
		h := hello
		change(&h)
		return chain.greet(h)
	}
	chain.wantRefused(handover.RefusedStore, successorSays("-redis", "redis://user:secret@"+testHost+":1"))
	chain.wantRefused(handover.RefusedVersion, less(func(h *handover.Hello) { h.Version++ }))
	chain.wantRefused(handover.RefusedEndpoints, less(func(h *handover.Hello) { h.Endpoints = []string{"/ws/other"} }))
	chain.wantRefused(handover.RefusedConnections, less(func(h *handover.Hello) { h.Connections = 0 }))
	chain.wantRefused(handover.RefusedFileDescriptors, less(func(h *handover.Hello) { h.FileDescriptors = -1 }))

	for _, word := range []string{"prepare ", "take-over "} {
		if answer := command(t, chain.control, word+chain.control); !strings.Contains(fmt.Sprint(answer["error"]), errItself.Error()) {
			t.Errorf("%sitself answers %v", word, answer)
		}
	}

	prepared := startServer(t, "-control", chain.control+".2")
	if answer := command(t, chain.control+".2", "prepare "+chain.control); answer["connections"] != 30.0 {
		t.Errorf("prepare answers %v", answer)
	}
	chain.wantRefused(handover.RefusedBusy, successorSays())
	prepared.signal(syscall.SIGKILL)
	prepared.wait()
	for _, w := range wires {
		w.send(text("still there"))
		w.wantCount(1, "still there")
	}
	eventually(t, "the next one may take over", func() bool { return !chain.current.isHandingOver(chain.control) })
	chain.handOver()
}

// TestHandoverOfADrain: what says goodbye to its clients does not give them away.
func TestHandoverOfADrain(t *testing.T) {
	chain := startChain(t, "-drain-timeout", "10m", "-write-timeout", "10m")
	chain.current.openDeaf() // the drain waits for it
	command(t, chain.control, commandDrain)
	chain.current.waitLog("drain_started")
	chain.wantRefused(handover.RefusedDraining, chain.greet(handover.Hello{Version: handover.Newest}))
}

// isHandingOver asks whether a greeting is refused for that reason.
func (p *process) isHandingOver(control string) bool {
	conn, err := net.Dial("unix", control)
	if err != nil {
		return true
	}
	x := handover.NewExchange(conn.(*net.UnixConn))
	defer x.Close()
	io.WriteString(conn, commandHandover+"\n")
	_, err = x.Greet(handover.Hello{Version: -1})
	refused, ok := errors.AsType[*handover.RefusedError](err)
	return !ok || refused.Reason == handover.RefusedBusy
}

// greet says hello in the place of a new server, and returns the refusal.
func (s *serverChain) greet(h handover.Hello) string {
	conn, err := net.Dial("unix", s.control)
	if err != nil {
		s.t.Fatal(err)
	}
	x := handover.NewExchange(conn.(*net.UnixConn))
	defer x.Close()
	io.WriteString(conn, commandHandover+"\n")
	_, err = x.Greet(h)
	return fmt.Sprint(err)
}

// command sends a command to a control socket.
func command(t testing.TB, path, line string) (answer map[string]any) {
	t.Helper()
	var out bytes.Buffer
	if err := tell(path, line, &out); err != nil {
		return map[string]any{"error": err.Error()}
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}
