package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asServer, in the environment, makes the test binary be the server, so that
// signals and exits are tested with real processes, under -race too.
const asServer = "TURNSTILE_TEST_AS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		os.Unsetenv(asServer)
		breakAtStep()
		shortenPrepared()
		os.Exit(run(os.Args[1:]))
	}
	if addr := os.Getenv(asAttackers); addr != "" {
		os.Exit(attackUntilEOF(addr))
	}
	if signal.Ignored(syscall.SIGHUP) { // by nohup, say: the servers that tests start would inherit it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	os.Exit(m.Run())
}

// patience bounds every wait of the tests. Only what does not work takes so long.
const patience = 2 * time.Minute

// testHost is a loopback address of the tests' own: a port there is never the
// source port of somebody's connection to 127.0.0.1.
const testHost = "127.0.0.77"

// A process is a server that runs as a child.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	addr   string   // the first address it listens on
	flags  []string // of startServer
	exited chan struct{}
	stdout *gate

	mu    sync.Mutex
	lines []map[string]any // of its log
	more  *sync.Cond

	stderr output
}

// A gate is a pipe whose reader can stand still.
type gate struct {
	sync.Mutex // Held by whoever wants nothing to be read.
	pipe       io.ReadCloser
}

// Read implements io.Reader.
func (g *gate) Read(p []byte) (int, error) {
	g.Lock()
	g.Unlock()
	return g.pipe.Read(p)
}

// An output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slowStart.ReplaceAllString(o.text.String(), "")
}

// slowStart is what a library prints before main begins, when the machine is so busy that
// a file of the kernel's takes longer than a second.
var slowStart = regexp.MustCompile(`(?m)^.* INFO: metrics: disable exposing PSI metrics .*\n`)

// startServer starts a server on a free port and waits until it is ready.
func startServer(t testing.TB, flags ...string) *process {
	t.Helper()
	return startServerAt(t, testHost+":0", flags...)
}

func startServerAt(t testing.TB, addr string, flags ...string) *process {
	t.Helper()
	p := startProcess(t, nil, append(append(patientFlags(), "-listen", addr), flags...)...)
	p.flags = flags
	p.waitListening()
	return p
}

// patientFlags are of a server that logs to a test, and gives a slow machine its time:
// clients for their requests, their messages and the answers, and the test until it would come
// to a heartbeat.
func patientFlags() []string {
	return []string{"-log-format", "json", "-handshake-timeout", "1m", "-message-timeout", "1m", "-write-timeout", "1m", "-heartbeat", "1h"}
}

// startAgain starts a server of startServer's that has exited, at the address that
// it had.
func (p *process) startAgain() *process {
	p.t.Helper()
	return startServerAt(p.t, p.addr, p.flags...)
}

// waitListening waits until the server is ready, and learns its address.
func (p *process) waitListening() {
	p.t.Helper()
	started := p.waitLog("server_started")
	p.addr = started["listen"].([]any)[0].(string)
}

func startProcess(t testing.TB, env []string, flags ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], flags...)
	cmd.Env = append(append(os.Environ(), asServer+"=1"), env...)
	return launch(t, cmd)
}

// launch starts a command that is, or becomes, a server.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, exited: make(chan struct{})}
	p.more = sync.NewCond(&p.mu)
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = &gate{pipe: stdout}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(p.stdout)
	t.Cleanup(p.end)
	return p
}

func (p *process) read(stdout io.Reader) {
	scanner := bufio.NewScanner(stdout)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line map[string]any
		if json.Unmarshal(scanner.Bytes(), &line) != nil {
			line = map[string]any{"event": "not_json", "text": scanner.Text()}
		}
		p.mu.Lock()
		p.lines = append(p.lines, line)
		p.mu.Unlock()
		p.more.Broadcast()
	}
	p.cmd.Wait()
	close(p.exited)
	p.more.Broadcast()
}

// waitLog waits for a log line of the given event and returns it.
func (p *process) waitLog(event string) map[string]any {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	timer := time.AfterFunc(patience, p.more.Broadcast)
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for _, line := range p.lines {
			if line["event"] == event {
				return line
			}
		}
		if p.hasExited() || !time.Now().Before(deadline) {
			p.t.Fatalf("no log line %q; stderr: %s", event, p.stderr.String())
		}
		p.more.Wait()
	}
}

// logged returns the log lines of an event so far.
func (p *process) logged(event string) (lines []map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if line["event"] == event {
			lines = append(lines, line)
		}
	}
	return lines
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits for the process to exit and returns its exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.signal(syscall.SIGQUIT) // it says where it hangs
		<-p.exited
		p.t.Fatalf("the server does not exit: %s", p.stderr.String())
	}
	return p.cmd.ProcessState.ExitCode()
}

// end kills the process if a test has left it running; a report of the race
// detector fails the test.
func (p *process) end() {
	p.cmd.Process.Kill()
	<-p.exited
	if text := p.stderr.String(); strings.Contains(text, "DATA RACE") ||
		strings.Contains(text, "panic:") || strings.Contains(text, "fatal error:") {
		p.t.Errorf("the server's stderr:\n%s", text)
	}
}

// dial connects to the server's first address.
func (p *process) dial() net.Conn {
	p.t.Helper()
	return dialAddress(p.t, p.addr)
}

// dialFrom connects from another loopback address.
func (p *process) dialFrom(ip string) net.Conn {
	p.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := dialer.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

func dialAddress(t testing.TB, addr string) net.Conn {
	t.Helper()
	network, address := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// get does a plain HTTP request to the server. A page of metrics is no older than the
// request.
func (p *process) get(path string) (status int, body string, header http.Header) {
	p.t.Helper()
	return p.getOver(p.dial(), path)
}

func (p *process) getOver(conn net.Conn, path string) (status int, body string, header http.Header) {
	p.t.Helper()
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nCache-Control: no-cache\r\n\r\n", path, p.addr)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		p.t.Fatalf("GET %s: %v", path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if response.Close { // ReadResponse takes the header out
		response.Header.Set("Connection", "close")
	}
	return response.StatusCode, string(text), response.Header
}

// metric reads one value off /metrics/; name includes the labels.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	return p.metricOf(p.metrics(), name)
}

// metrics is the page of metrics. It may be refused while the page before still counts
// for its address.
func (p *process) metrics() (page string) {
	p.t.Helper()
	eventually(p.t, "the metrics are served", func() bool {
		status, body, _ := p.getOver(p.dial(), "/metrics/")
		page = body
		return status == http.StatusOK
	})
	return page
}

func (p *process) metricOf(body, name string) float64 {
	p.t.Helper()
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return value
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

// eventually waits until condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	looks := time.NewTicker(5 * time.Millisecond)
	defer looks.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-looks.C {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come true: %s", what)
		}
	}
}
