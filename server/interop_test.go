package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"turnstile/server/interoptest"
)

// TestClients: clients that this project did not write see what they have to, with
// compression and without.
func TestClients(t *testing.T) {
	for name, compress := range map[string]string{"plain": "-compress=false", "compressed": "-compress=1"} {
		t.Run(name, func(t *testing.T) { testClients(t, compress) })
	}
}

// testClients runs all clients. Each of them offers compression.
func testClients(t *testing.T, compress string) {
	socket := filepath.Join(t.TempDir(), "server.sock")
	p := startServer(t, "-listen", testHost+":0,unix:"+socket, compress)
	clients := []struct {
		name string
		play func(t *testing.T, address string) []byte
	}{{"node", playNode}, {"python", playPython}, {"coder", interoptest.PlayCoder}}
	for _, client := range clients {
		t.Run(client.name, func(t *testing.T) {
			for name, address := range map[string]string{"tcp": p.addr, "unix": "unix:" + socket} {
				t.Run(name, func(t *testing.T) {
					before := p.metric("websocket_compress_saved_bytes_total")
					interoptest.Check(t, client.play(t, address))
					saved := p.metric("websocket_compress_saved_bytes_total") - before
					if should := compress != "-compress=false"; interoptest.WasCompressed(saved) != should {
						t.Errorf("compression has saved %v bytes; is it on: %v", saved, should)
					}
				})
			}
		})
	}
	eventually(t, "no connection is left", func() bool { return p.metric("websocket_active_connections") == 0 })
}

// missingClient ends a test for want of a client, which CI has to have.
func missingClient(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s: run scripts/test-deps.sh", what)
	}
	t.Skipf("missing: %s: run scripts/test-deps.sh", what)
}

func playNode(t *testing.T, address string) []byte {
	wanted, err := os.ReadFile("testdata/clients/package.json")
	if err != nil {
		t.Fatal(err)
	}
	installed, _ := os.ReadFile("../.cache/clients/package.json")
	if _, err := exec.LookPath("node"); err != nil || !bytes.Equal(installed, wanted) {
		missingClient(t, "node, or the npm packages of server/testdata/clients/package.json")
	}
	return runClient(t, "node", "testdata/clients/client.mjs", address)
}

// playPython uses Debian's interpreter and modules, whatever PATH and the
// environment say (-I).
func playPython(t *testing.T, address string) []byte {
	const python = "/usr/bin/python3"
	if exec.CommandContext(t.Context(), python, "-I", "-c", "import websockets.legacy.client").Run() != nil {
		missingClient(t, "Debian's python3-websockets")
	}
	return runClient(t, python, "-I", "testdata/clients/client.py", address)
}

// runClient returns what a client prints.
func runClient(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	return out
}

// TestManyClients counts for many clients at once, each of which sends without
// waiting for the replies.
func TestManyClients(t *testing.T) {
	const clients, messages = 50, 100
	p := startServer(t, "-workers", "4")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range clients {
		name := fmt.Sprintf("client %d", i)
		all.Go(func() {
			if err := countTo(ctx, p.addr, name, messages); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if n := p.metric("websocket_messages_total"); n != clients*messages {
		t.Errorf("websocket_messages_total is %v instead of %d", n, clients*messages)
	}
}

// countTo sends n messages and checks their replies.
func countTo(ctx context.Context, address, name string, n int) error {
	ws, _, err := interoptest.DialCoder(ctx, address, "", nil)
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	text := func(i int) string { return fmt.Sprintf("%s: message %d", name, i) }
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := 1; i <= n && err == nil; i++ {
			err = ws.Write(ctx, websocket.MessageText, []byte(text(i)))
		}
		sent <- err
	}()
	for i := 1; i <= n; i++ {
		if err := checkReply(ctx, ws, i, text(i)); err != nil {
			return err
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	return ws.Close(websocket.StatusNormalClosure, "")
}

func checkReply(ctx context.Context, ws *websocket.Conn, count int, text string) error {
	_, frame, err := ws.Read(ctx)
	if err != nil {
		return err
	}
	var reply struct {
		Count   int
		Message string
	}
	if err := json.Unmarshal(frame, &reply); err != nil {
		return fmt.Errorf("%w in %q", err, frame)
	}
	if reply.Count != count || reply.Message != text {
		return fmt.Errorf("%s instead of count %d of %q", frame, count, text)
	}
	return nil
}
