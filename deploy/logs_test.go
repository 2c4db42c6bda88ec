package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// arguments reads a file of arguments, as dev-up.sh does: those lines that
// begin with a dash.
func arguments(t testing.TB, path string) (args []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "-") {
			args = append(args, strings.TrimSuffix(line, "\n"))
		}
	}
	return args
}

// A logStack is VictoriaLogs, and vlagent that tails the colours' logs into it.
type logStack struct {
	dir, addr string
	vlagent   *child
}

func startLogStack(t testing.TB) *logStack {
	t.Helper()
	s := &logStack{dir: t.TempDir(), addr: freeAddr(t)}
	if err := os.Mkdir(filepath.Join(s.dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"TURNSTILE_RUN_DIR=" + s.dir, "TURNSTILE_VICTORIALOGS=" + s.addr, "TURNSTILE_VLAGENT=" + freeAddr(t)}
	startChild(t, s.dir, env, tool(t, "victoria-logs"), arguments(t, "loki/victoria-logs.args")...)
	eventually(t, "VictoriaLogs answers", answers("http://"+s.addr+"/health"))
	s.vlagent = startChild(t, s.dir, env, tool(t, "vlagent"), arguments(t, "loki/vlagent.args")...)
	return s
}

func (s *logStack) logPath(colour string) string { return filepath.Join(s.dir, "log", colour+".log") }

// query returns the lines that LogsQL finds.
func (s *logStack) query(t testing.TB, query string) (lines []map[string]string) {
	t.Helper()
	body, err := fetch("http://" + s.addr + "/select/logsql/query?query=" + url.QueryEscape(query))
	if err != nil {
		t.Fatal(err)
	}
	for scanner := bufio.NewScanner(bytes.NewReader(body)); scanner.Scan(); {
		var line map[string]string
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatalf("%q: %v", scanner.Text(), err)
		}
		lines = append(lines, line)
	}
	return lines
}

// runTestLoki runs scripts/test_loki.sh against a server.
func (s *logStack) runTestLoki(addr, seconds string) (string, error) {
	cmd := exec.Command("../scripts/test_loki.sh", seconds)
	cmd.Env = append(os.Environ(), "TURNSTILE_URL=http://"+addr, "LOKI_URL=http://"+stackHost+":1", "VICTORIALOGS_URL=http://"+s.addr)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestLogsArrive: what servers write is found by its labels and by session_id.
func TestLogsArrive(t *testing.T) {
	t.Parallel()
	s := startLogStack(t)
	addrs := make(map[string]string)
	for _, colour := range []string{"blue", "green"} {
		addrs[colour] = freeAddr(t)
		startServer(t, s.logPath(colour), addrs[colour])
	}
	sessions := make(map[string]string)
	for colour, addr := range addrs {
		out, err := s.runTestLoki(addr, "60")
		sessions[colour] = regexp.MustCompile(`[0-9a-f-]{36}`).FindString(out)
		if err != nil || !strings.Contains(out, "from "+colour) {
			t.Errorf("%s: %v: %s", colour, err, out)
		}
	}
	for colour := range addrs {
		ofSession := `session_id:="` + sessions[colour] + `"`
		lines := s.query(t, `{service="websocket-message-counter",level="INFO",colour="`+colour+`"} `+ofSession+` websocket_disconnected`)
		if len(lines) != 1 {
			t.Fatalf("%s: %v", colour, lines)
		}
		line := lines[0]
		if line["reason"] != "peer_gone" || line["close_code"] != "1006" || line["session_id"] == "" {
			t.Errorf("%s: fields are missing: %v", colour, line)
		}
		at, err := time.Parse(time.RFC3339Nano, line["_time"])
		if age := time.Since(at); err != nil || age < 0 || age > 2*patience {
			t.Errorf("%s: at %q, which is not the line's own time", colour, line["_time"])
		}
		if strings.Contains(line["_stream"], "session_id") {
			t.Errorf("session_id is a label: %s", line["_stream"])
		}
	}
}

// TestLogsThatAreNoJSON: the text of a panic is what one most wants to find.
func TestLogsThatAreNoJSON(t *testing.T) {
	t.Parallel()
	s := startLogStack(t)
	if err := os.WriteFile(s.logPath("green"), []byte("panic: BUG: the sky fell\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the panic is found", func() bool { return len(s.query(t, `{colour="green"} "the sky fell"`)) == 1 })
}

// TestTestLokiFails: the script is only worth what it refuses.
func TestTestLokiFails(t *testing.T) {
	t.Parallel()
	s := startLogStack(t)
	addr := freeAddr(t)
	f := func(want, addr, seconds string) {
		t.Helper()
		if out, err := s.runTestLoki(addr, seconds); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: %s\nwant %q", err, out, want)
		}
	}
	f("did not upgrade: status 000", addr, "1")
	startServer(t, s.logPath("elsewhere"), addr) // where nobody tails it
	f("are not in victorialogs", addr, "3")
	f(`unexpected argument "soon": the time must be whole seconds`, addr, "soon")
	s.addr = addr
	f("neither Loki answers", addr, "1")
}

// TestLokiPushAPI: what Grafana Alloy sends to Loki, VictoriaLogs takes too, so
// that the same shipper can be pointed at it.
func TestLokiPushAPI(t *testing.T) {
	t.Parallel()
	s := startLogStack(t)
	line, _ := json.Marshal(`{"level":"WARN","service":"websocket-message-counter","session_id":"1df8902a","event":"connection_dropped"}`)
	body := fmt.Sprintf(
		`{"streams":[{"stream":{"service":"websocket-message-counter","level":"WARN","colour":"green"},"values":[["%d",%s]]}]}`,
		time.Now().UnixNano(), line)
	response, err := client.Post("http://"+s.addr+"/insert/loki/api/v1/push?_msg_field=event", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNoContent {
		t.Fatal(response.Status)
	}
	eventually(t, "the line is found", func() bool {
		lines := s.query(t, `{service="websocket-message-counter",level="WARN",colour="green"} session_id:="1df8902a"`)
		return len(lines) == 1 && lines[0]["_msg"] == "connection_dropped"
	})
}

// TestLogQueries holds the selectors of the logs' dashboard and of the document
// to the labels that the shippers set.
func TestLogQueries(t *testing.T) {
	_, logs, _ := strings.Cut(document(t), "\n## Logs\n")
	texts := map[string]string{documentPath: logs}
	for _, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				if target.Datasource.UID == "loki" {
					texts[d.file+" "+p.Title] = target.Expr
				}
			}
		}
	}
	if len(texts) < 4 {
		t.Fatalf("only %d texts", len(texts))
	}
	values := map[string][]string{
		"service": {"websocket-message-counter"}, "level": {"DEBUG", "INFO", "WARN", "ERROR"}, "colour": {"blue", "green", "$colour"},
	}
	for where, text := range texts {
		selectors := logSelector.FindAllString(text, -1)
		if len(selectors) == 0 {
			t.Errorf("%s: no selector in %s", where, text)
		}
		for _, s := range selectors {
			for _, m := range labelMatcher.FindAllStringSubmatch(s, -1) {
				for _, value := range strings.Split(strings.ReplaceAll(m[2], `\`, ""), "|") {
					if !slices.Contains(values[m[1]], value) {
						t.Errorf("%s: %s: no line has %s %q", where, s, m[1], value)
					}
				}
			}
		}
	}
}

var (
	logSelector  = regexp.MustCompile(`{[^}]*}`)
	labelMatcher = regexp.MustCompile(`([a-z_]+)=~?"([^"]*)"`)
)
