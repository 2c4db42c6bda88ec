package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// stop keeps the process from running until goOn is called, as a pause of the whole
// machine does.
func (p *process) stop() (goOn func()) {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	eventually(p.t, "the process stands still", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
	return func() { p.signal(syscall.SIGCONT) }
}

// TestStandstillIsNotTheClients: a process that stood still for longer than all of its
// deadlines closes nobody who is there when it goes on. A client that is gone is found
// out later, as ever.
func TestStandstillIsNotTheClients(t *testing.T) {
	t.Parallel() // most of it is waiting
	const heartbeat, timeout = 2 * time.Second, 5500 * time.Millisecond
	p := startServer(t, "-workers", "1",
		"-heartbeat", heartbeat.String(), "-handshake-timeout", timeout.String(), "-write-timeout", timeout.String())
	var ended, answers atomic.Int64
	s := newSwarm(t, 1)
	const clients = 20
	for range clients {
		s.dial(p.addr, "/ws/chat/", func(c *swarmClient) {
			c.onOpen = func(c *swarmClient) { c.write(text("before")) }
			c.onMessage = onCount(func(*swarmClient) { answers.Add(1) })
			c.onClose = func(*swarmClient) { ended.Add(1) }
		})
	}
	s.until("all are answered", func() bool { return answers.Load() == clients })
	slow, full := p.open("/ws/chat/"), make(chan struct{})
	go func() {
		for flood := []byte(strings.Repeat(string(text("x")), 1000)); !isClosed(full); {
			slow.conn.Write(flood)
		}
	}()
	eventually(t, "its replies pile up", func() bool { return p.metric("websocket_backlog_bytes") > backlogHigh })
	close(full)
	dead := p.open("/ws/chat/")
	half := newWire(t, p.dial())
	request := upgradeRequest("/ws/chat/")
	half.write([]byte(request[:100]))
	p.metric("websocket_accepted_total") // the one worker has the half request when it comes to this one

	goOn := p.stop()
	go io.Copy(io.Discard, slow.conn) // it catches up
	<-time.After(3 * heartbeat)       // longer than 2.5 heartbeats, and than each timeout
	goOn()

	if response := half.request(request[100:]); response.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("half a request before, half after: %s", response.Status)
	}
	dead.wantEnd()
	if n := p.metric(`websocket_closes_total{reason="idle_timeout"}`); n == 0 {
		t.Error("the dead client was not closed for its silence")
	}
	if n := ended.Load(); n > 0 {
		t.Errorf("%d of %d clients that answer pings were closed", n, clients)
	}
	if n := p.metric(`websocket_closes_total{reason="slow_consumer"}`); n != 0 {
		t.Errorf("%v clients were closed as slow", n)
	}
	for _, c := range s.clients {
		c.loop.Post(func() { c.write(text("after")) })
	}
	s.until("all are answered again", func() bool { return answers.Load() == 2*clients })
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
