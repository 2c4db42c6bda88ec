package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/netpoll"
	"turnstile/proto"
	"turnstile/server/doctest"
	"turnstile/server/redistest"
)

// The documents' commands that start servers run in a shell as they stand there,
// but for addresses that are not this machine's or may be somebody else's.

// shell is a command line of a document, to be run in a folder.
func shell(folder, line string, env ...string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", line)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "TURNSTILE_LOG_FORMAT=json", "TURNSTILE_LISTEN="+testHost+":0")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// startDocumented runs a command that is a server: "bin/server …".
func startDocumented(t *testing.T, folder, line string, env ...string) *process {
	t.Helper()
	return launch(t, shell(folder, "exec "+line, append(env, asServer+"=1")...))
}

// folderWithServer is a new folder in which bin/server is this test binary.
func folderWithServer(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.Args[0], filepath.Join(folder, "bin", "server")); err != nil {
		t.Fatal(err)
	}
	return folder
}

// The frames of README.md are those that the server writes.
func TestReadmeFrames(t *testing.T) {
	const id = "…"
	frames := [][]byte{
		proto.AppendCount(nil, 3, []byte(id), []byte("the text as sent")), proto.AppendGoodbye(nil, 3),
		proto.AppendHeartbeat(nil, time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)),
		proto.AppendTakenOver(nil, 3), proto.AppendShutdown(nil, 3, -1), proto.AppendShuttingDown(nil, []byte(id)),
		proto.AppendSession(nil, []byte(id), 3, true),
	}
	want := []string{`{"error":"…"}`} // of a refused request, whose text depends
	for _, f := range frames {
		want = append(want, string(f[bytes.IndexByte(f, '{'):]))
	}
	var got []string
	for _, span := range doctest.Spans(t, "README.md") {
		if strings.HasPrefix(span, "{") && !slices.Contains(got, span) {
			got = append(got, span)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("README.md has, and should have:\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The first commands of README.md, on a clone of what is committed. Each line
// that starts a server goes on until it is interrupted.
func TestReadmeStart(t *testing.T) {
	if raceEnabled {
		t.Skip("only the plain run has it: make builds the server without the race detector there, too")
	}
	clone, flags := t.TempDir(), regexp.MustCompile(`-workers 4 -echo`)
	for _, block := range doctest.Blocks(t, "README.md") {
		for _, line := range block.Commands() {
			if strings.HasPrefix(line, "git clone ") {
				line = strings.Replace(line, "<this repository>", doctest.Root(t), 1)
				// It is built here: on a busy machine that takes longer than a start may.
				line += " && pwd -P >" + filepath.Join(clone, "where") + " && make build"
				if out, err := shell(clone, line, "CGO_ENABLED=0", "MAKEFLAGS=", "MAKELEVEL=").CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", line, err, out)
				}
				continue
			}
			where, err := os.ReadFile(filepath.Join(clone, "where"))
			if err != nil {
				t.Fatal(err)
			}
			tryStart(t, strings.TrimSpace(string(where)), line, flags.MatchString(line))
		}
	}
}

// tryStart runs a command that starts a server, asks for its pages, and ends it
// as ^C does: all processes of the terminal get the signal.
func tryStart(t *testing.T, folder, line string, echoes bool) {
	t.Helper()
	cmd := shell(folder, line, "CGO_ENABLED=0", "MAKEFLAGS=", "MAKELEVEL=", "FLAGS=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := launch(t, cmd)
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	p.waitListening()
	if status, body, _ := p.get("/"); status != http.StatusOK || !strings.Contains(body, "<title>") {
		t.Errorf("%s: the page at /: %d %.100s", line, status, body)
	}
	if status, _, _ := p.get("/ws/echo/"); (status != http.StatusNotFound) != echoes {
		t.Errorf("%s: /ws/echo/ answers %d", line, status)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.wait() // make has an exit code of its own for that
	if len(p.logged("server_stopped")) != 1 {
		t.Errorf("%s: the server has not stopped by itself", line)
	}
}

// Two processes, one after the other, at one port and one control socket.
func TestHandOverCommands(t *testing.T) {
	var lines []string
	for _, block := range doctest.Blocks(t, "deploy/README.md") {
		lines = append(lines, block.Commands()...)
	}
	if len(lines) != 4 {
		t.Fatalf("the document has %q: this test knows what to expect of the first process, the next one, status and drain", lines)
	}
	folder := folderWithServer(t)
	address, release, err := netpoll.ReservePort(testHost)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	start := func(line string) *process {
		return startDocumented(t, folder, strings.Replace(line, " :8000 ", " "+address+" ", 1))
	}
	first := start(lines[0])
	first.waitListening()
	client := first.open("/ws/chat/")
	client.send(text("a"))
	client.wantCount(1, "a")

	second := start(lines[1])
	if finished := second.waitLog("takeover_finished"); finished["error"] != nil {
		t.Fatalf("the takeover failed: %v", finished)
	}
	if code := first.wait(); code != exitOK {
		t.Errorf("the first process ends with exit code %d", code)
	}
	client.send(text("b"))
	client.wantCount(2, "b")

	for _, line := range lines[2:] {
		if out, err := shell(folder, line, asServer+"=1").CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
	client.wantShutdown(2)
	client.conn.Close()
	if code := second.wait(); code != exitOK {
		t.Errorf("the second process ends with exit code %d", code)
	}
}

// Each address of Redis in deploy/README.md, with a real Redis of that kind in
// place of the hosts.
func TestRedisCommands(t *testing.T) {
	t.Parallel()
	address := regexp.MustCompile(`(\w+)://(\w+:\w+@)?(/[^'? ]+|[^'?/ ]+)`)
	for _, block := range doctest.Blocks(t, "deploy/README.md") {
		for _, line := range block.Commands() {
			t.Run(line, func(t *testing.T) {
				m := address.FindStringSubmatch(line)
				if m == nil {
					t.Fatalf("%s: no address of Redis", line)
				}
				place, nodes, env := startRedisOf(t, m[1], m[2], m[3], strings.Contains(line, "master_name="))
				p := startDocumented(t, folderWithServer(t), strings.Replace(line, "://"+m[2]+m[3], "://"+m[2]+place, 1), env...)
				p.waitListening()
				p.waitReady()
				w := p.open("/ws/chat/")
				w.send(text("a"))
				w.wantCount(1, "a")
				keys := 0
				for _, node := range nodes {
					keys += len(node.Keys("turnstile:*"))
				}
				if keys == 0 {
					t.Error("no key begins with turnstile:")
				}
			})
		}
	}
}

// startRedisOf starts what an address with such a scheme, user and hosts means.
// It returns what stands for the hosts, the masters, and what the server needs in
// its environment.
func startRedisOf(t *testing.T, scheme, user, hosts string, sentinels bool) (place string, masters []*redistest.Server, env []string) {
	t.Helper()
	switch {
	case scheme == "unix" && hosts[0] == '/':
		s := redistest.Start(t)
		return s.Socket, []*redistest.Server{s}, nil
	case scheme == "rediss":
		s, address := redistest.StartTLS(t)
		name, password, _ := strings.Cut(strings.TrimSuffix(user, "@"), ":")
		s.Do("ACL", "SETUSER", name, "on", ">"+password, "~turnstile:*", "&turnstile:*", "+@all")
		return address, []*redistest.Server{s}, []string{"SSL_CERT_FILE=" + certificateOf(t, address)}
	case sentinels:
		g := redistest.StartGuarded(t, 0)
		return strings.TrimPrefix(strings.Split(g.URL, "?")[0], "redis://"), []*redistest.Server{g.Master}, nil
	case strings.Contains(hosts, ","):
		c := redistest.StartCluster(t, 1+strings.Count(hosts, ","))
		return strings.ReplaceAll(strings.TrimPrefix(c.URL, "redis://"), "redis://", ""), c.Nodes, nil
	default:
		s := redistest.Start(t)
		return s.Addr, []*redistest.Server{s}, nil
	}
}

// certificateOf writes a server's own certificate to a file, to be trusted.
func certificateOf(t *testing.T, address string) (path string) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	path = filepath.Join(t.TempDir(), "trusted.pem")
	der := conn.ConnectionState().PeerCertificates[0].Raw
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The recipe of DESIGN.md for a further application: its files and its line are
// laid over the package, and its command runs its test.
func TestDesignRecipe(t *testing.T) {
	if raceEnabled {
		t.Skip("only the plain run has it: go test runs without the race detector there, too")
	}
	blocks := doctest.Blocks(t, "DESIGN.md")
	if len(blocks) != 4 {
		t.Fatalf("the document has %v: this test knows what to do with the application, its line, its test and the command", blocks)
	}
	source, err := os.ReadFile("server.go")
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := strings.Cut(string(source), "\treturn endpoints\n")
	if !ok {
		t.Fatal("newEndpoints does not return endpoints any more")
	}
	cmd := shell(doctest.Root(t), blocks[3].Text, "CGO_ENABLED=0", "GOFLAGS=-count=1 -overlay="+overlay(t, map[string]string{
		"server/server.go": before + blocks[1].Text + "\treturn endpoints\n" + after,
		"server/room.go":   blocks[0].Text, "server/room_test.go": blocks[2].Text,
	}))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ok") || strings.Contains(string(out), "no tests to run") {
		t.Errorf("%s: %v: %s", blocks[3].Text, err, out)
	}
}

// overlay makes the file of go's -overlay that has it see these files, by their
// paths from the project's root.
func overlay(t *testing.T, files map[string]string) string {
	t.Helper()
	replace := make(map[string]string)
	for name, content := range files {
		aside := filepath.Join(t.TempDir(), filepath.Base(name))
		if err := os.WriteFile(aside, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(doctest.Root(t), name)] = aside
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
