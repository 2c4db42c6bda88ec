package main

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/oracle"
	"turnstile/server/revisiontest"
)

// startOther starts a server of another version, which takes over if somebody is there.
func (s *serverChain) startOther(binary string) *process {
	s.t.Helper()
	flags := append([]string{"-take-over-from", s.control}, s.flags...)
	if i := slices.Index(flags, "-message-timeout"); i >= 0 { // the first version has none
		flags = slices.Delete(flags, i, i+2)
	}
	p := launch(s.t, exec.Command(binary, flags...))
	p.addr = s.addr
	return p
}

// TestHandoverBetweenVersions deploys over a server of the first version, goes back to it,
// and deploys again. All clients send, and none sees anything of it.
func TestHandoverBetweenVersions(t *testing.T) {
	if raceEnabled {
		t.Skip("the other version is built without the race detector: once is enough")
	}
	old := revisiontest.Build(t, revisiontest.HandoverVersion1)
	stores(t, func(t *testing.T, flags ...string) {
		chain := newChain(t, flags...)
		chain.current = chain.startOther(old)
		chain.current.waitLog("server_started")
		chain.current.waitReady()
		half := chain.open("/ws/chat/")
		message := frame(proto.OpText, true, "héllo")
		half.write(message[:len(message)-4])
		c := oracle.StartCrowd(t, chain.addr, 50, 0)
		for _, next := range []func() *process{
			func() *process { return chain.startSuccessor() },
			func() *process { return chain.startOther(old) },
			func() *process { return chain.startSuccessor() },
		} {
			c.WaitRounds(2)
			chain.awaitTakeover(next())
		}
		c.WaitRounds(2)
		c.Settle()
		half.write(message[len(message)-4:])
		half.wantCount(1, "héllo")
		if ends := c.Ends(); len(ends) > 0 {
			t.Errorf("connections ended: %v", ends)
		}
	})
}

// wantMoved checks how many connections went, and how many stayed to be drained.
func (s *serverChain) wantMoved(successor *process, moved, left float64) {
	s.t.Helper()
	old := s.current
	s.awaitTakeover(successor)
	if got := old.waitLog("handover_finished"); got["moved"] != moved || got["left"] != left {
		s.t.Errorf("%v connections moved and %v were left, want %v and %v", got["moved"], got["left"], moved, left)
	}
}

// unread is how many bytes wait in a client's socket.
func unread(t *testing.T, conn net.Conn) (n int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n = netpoll.Unread(int(fd)) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestHandoverOfAPart: those for whom the new process has no room say goodbye and come
// back, and the others go. No count is lost.
func TestHandoverOfAPart(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		const clients, room = 30, 20
		var wires []*wire
		var ids []string
		for range clients {
			w := chain.open("/ws/chat/")
			w.send(text("one"))
			wires, ids = append(wires, w), append(ids, w.wantCount(1, "one").SessionID)
		}
		chain.flags = append(chain.flags, "-max-connections", fmt.Sprint(room))
		chain.wantMoved(chain.startSuccessor(), room, clients-room)
		var told []string
		for i, w := range wires {
			if unread(t, w.conn) > 0 {
				w.wantShutdown(1)
				told = append(told, ids[i])
				continue
			}
			w.send(text("two"))
			w.wantCount(2, "two")
			w.conn.Close()
		}
		if len(told) != clients-room {
			t.Fatalf("%d clients were told to leave, want %d", len(told), clients-room)
		}
		eventually(t, "there is room again", func() bool { return chain.current.metric("websocket_active_connections") == 0 })
		for _, id := range told {
			w := chain.open("/ws/chat/?session_id=" + id)
			w.send(text("two"))
			w.wantCount(2, "two")
		}
	})
}

// TestHandoverToShorterMessages: who is in the middle of a message that is too long for the
// new process is told, and the others go.
func TestHandoverToShorterMessages(t *testing.T) {
	chain := startChain(t)
	long, short, idle := chain.open("/ws/chat/"), chain.open("/ws/chat/"), chain.open("/ws/chat/")
	message, brief := text(strings.Repeat("m", 1000)), text("brief")
	before := int(chain.current.metric("websocket_bytes_in_total"))
	long.write(message[:20])
	short.write(brief[:len(brief)-1])
	eventually(t, "all of it is read", func() bool {
		return chain.current.metric("websocket_bytes_in_total") >= float64(before+20+len(brief)-1)
	})
	chain.flags = append(chain.flags, "-max-message", "100")
	successor := chain.startSuccessor()
	long.wantShutdown(0)
	long.conn.Close()
	chain.wantMoved(successor, 2, 1)
	short.write(brief[len(brief)-1:])
	short.wantCount(1, "brief")
	idle.send(text("idle"))
	idle.wantCount(1, "idle")
}

// TestHandoverToNoCompression: clients with compression are told, and the others go. They
// do come back: the new process answers them without it.
func TestHandoverToNoCompression(t *testing.T) {
	chain := startChain(t, "-compress")
	compressing, half, plain := chain.open("/ws/chat/", deflateHeader), chain.open("/ws/chat/", deflateHeader), chain.open("/ws/chat/")
	compressing.send(deflated(proto.OpText, true, compress("one")))
	id := compressing.wantCount(1, "one").SessionID
	half.write(deflated(proto.OpText, false, compress("two")))
	plain.send(text("three"))
	plain.wantCount(1, "three")
	chain.flags = append(chain.flags[:len(chain.flags)-1], "-compress=false")
	successor := chain.startSuccessor()
	compressing.wantShutdown(1)
	compressing.conn.Close()
	half.wantShutdown(0)
	half.conn.Close()
	chain.wantMoved(successor, 1, 2)
	plain.send(text("four"))
	plain.wantCount(2, "four")
	again := chain.open("/ws/chat/?session_id="+id, deflateHeader)
	again.send(text("five"))
	again.wantCount(2, "five")
}

// TestHandoverOfCompressedToShorterMessages: nobody knows yet how long a compressed message
// becomes that is cut, so its client stays when the new process takes only shorter ones.
func TestHandoverOfCompressedToShorterMessages(t *testing.T) {
	chain := startChain(t, "-compress")
	cut, idle := chain.open("/ws/chat/", deflateHeader), chain.open("/ws/chat/", deflateHeader)
	message := deflated(proto.OpText, true, compress(strings.Repeat("m", 1000)))
	before := int(chain.current.metric("websocket_bytes_in_total"))
	cut.write(message[:len(message)-1])
	eventually(t, "all of it is read", func() bool {
		return chain.current.metric("websocket_bytes_in_total") >= float64(before+len(message)-1)
	})
	chain.flags = append(chain.flags, "-max-message", "500")
	successor := chain.startSuccessor()
	cut.wantShutdown(0)
	cut.conn.Close()
	chain.wantMoved(successor, 1, 1)
	idle.send(message)
	idle.wantClose(proto.ErrTooBig.Code)
}

// TestHandoverToFewerEndpoints: likewise with clients of an endpoint that is not there.
func TestHandoverToFewerEndpoints(t *testing.T) {
	chain := startChain(t, "-echo")
	gone, stays := chain.open("/ws/echo/"), chain.open("/ws/chat/")
	chain.flags = append(chain.flags[:len(chain.flags)-1], "-heartbeat", "1h")
	successor := chain.startSuccessor()
	gone.wantClose(proto.StatusGoingAway)
	gone.conn.Close()
	chain.wantMoved(successor, 1, 1)
	stays.send(text("on"))
	stays.wantCount(1, "on")
}
