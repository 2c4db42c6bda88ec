package deploy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/proto"
	"turnstile/server/admin"
	"turnstile/server/certtest"
	"turnstile/server/doctest"
	"turnstile/server/oracle"
	"turnstile/server/redistest"
)

// An nginxConf is a copy of deploy/nginx in a folder of its own, with some
// texts replaced.
type nginxConf struct{ dir string }

func newNginxConf(t testing.TB, replace map[string]string) *nginxConf {
	t.Helper()
	dir, err := os.MkdirTemp("", "nginx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(dir+"/temp", 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("nginx/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no configuration: %v", err)
	}
	used := make(map[string]bool)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		for old, new := range replace {
			used[old] = used[old] || strings.Contains(text, old)
			text = strings.ReplaceAll(text, old, new)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for old := range replace {
		if !used[old] {
			t.Fatalf("%q is in no file of deploy/nginx", old)
		}
	}
	return &nginxConf{dir}
}

// args are those of an nginx in the foreground that serves the configuration.
func (n *nginxConf) args() []string {
	directives := "daemon off;"
	if os.Geteuid() == 0 {
		directives += " user root;" // nobody may not see into the folder
	}
	return []string{"-p", n.dir, "-c", n.dir + "/nginx.conf", "-e", "stderr", "-g", directives}
}

// check is nginx -t.
func (n *nginxConf) check(t testing.TB) {
	t.Helper()
	out, err := exec.Command(wantProgram(t, "nginx"), append(n.args(), "-t")...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "[warn]") {
		t.Errorf("nginx -t: %v: %s", err, out)
	}
}

// start serves the configuration until the end of the test.
func (n *nginxConf) start(t testing.TB) {
	t.Helper()
	c := startChild(t, n.dir, nil, wantProgram(t, "nginx"), n.args()...)
	t.Cleanup(func() { // before the child is killed, which its workers would outlive
		c.cmd.Process.Signal(syscall.SIGTERM)
		<-c.exited
	})
}

// fileLimit keeps nginx from asking for more than this process may have.
func fileLimit(t testing.TB) (old, new string) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return "worker_rlimit_nofile 65536", fmt.Sprintf("worker_rlimit_nofile %d", min(limit.Max, 65536))
}

// The files as they stand are a valid configuration, and so are the variants
// that they name.
func TestNginxConfigurations(t *testing.T) {
	t.Parallel()
	cert, key := certtest.SelfSigned(t, stackHost, "::1")
	limit, allowed := fileLimit(t)
	paths := map[string]string{limit: allowed, "/etc/turnstile/tls/fullchain.pem": cert, "/etc/turnstile/tls/privkey.pem": key}
	with := func(more map[string]string) map[string]string {
		for old, new := range paths {
			more[old] = new
		}
		return more
	}
	newNginxConf(t, with(map[string]string{})).check(t)
	newNginxConf(t, with(map[string]string{"# include tls.conf;": "include tls.conf;", "include server.conf;": ""})).check(t)
	newNginxConf(t, with(map[string]string{"# include tls.conf;": "include tls.conf;"})).check(t)
	newNginxConf(t, with(map[string]string{"include upstream.conf;": "include instances.conf;"})).check(t)
}

// smokeTest is bench smoke, which has to pass.
func smokeTest(t testing.TB, env []string, args ...string) {
	t.Helper()
	path, err := benchBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"smoke"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bench smoke %s: %v:\n%s", args, err, out)
	}
}

// Each port of the configuration, plain and with TLS, as programs use it; and as a
// browser does one of each kind.
func TestNginxPorts(t *testing.T) {
	t.Parallel()
	f := func(name, host, client, listens, others, browsed string) {
		t.Run(name, func(t *testing.T) {
			plain, secure := freeAddrOn(t, host), freeAddrOn(t, host)
			cert, key := certtest.SelfSigned(t, stackHost, "::1")
			blue := startBlue(t, map[string]string{
				"# include tls.conf;": "include tls.conf;", "/etc/turnstile/tls/fullchain.pem": cert, "/etc/turnstile/tls/privkey.pem": key,
				"    listen " + listens + "8080": "    listen " + plain, "    listen " + listens + "443": "    listen " + secure,
				"    listen " + others + "8080": "    # no ", "    listen " + others + "443": "    # no ",
			})
			for scheme, addr := range map[string]string{"http": plain, "https": secure} {
				eventually(t, "nginx listens on "+addr, func() bool { return canConnect(addr) })
				smokeTest(t, []string{"SSL_CERT_FILE=" + cert}, "-reaches", blue.socket, scheme+"://"+addr)
				if scheme == browsed {
					browse(t, scheme+"://"+addr)
					if blue.compressSaved(t) <= 0 {
						t.Error("the browser's answers were not compressed")
					}
				}
			}
			eventually(t, "the client's address is in the log", func() bool {
				text, err := os.ReadFile(blue.log)
				return err == nil && strings.Contains(string(text), `"client_ip":"`+client+`"`)
			})
		})
	}
	f("IPv4", stackHost, "127.0.0.1", "", "[::]:", "http")
	f("IPv6", "::1", "::1", "[::]:", "", "https")
}

// A blue is a server before which nginx stands.
type blue struct {
	*child
	direct string // its address of its own
	socket string // the one that nginx has, as bench writes it
	log    string
}

// startBlue starts a server with -compress=1, and nginx before it.
func startBlue(t testing.TB, replace map[string]string) blue {
	t.Helper()
	dir, err := os.MkdirTemp("", "blue") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := blue{direct: freeAddr(t), socket: "unix:" + dir + "/blue.sock", log: dir + "/server.log"}
	b.child = startServer(t, b.log, b.direct, "-listen", b.direct+","+b.socket, "-compress=1")
	os.Symlink("blue.sock", dir+"/active.sock")
	limit, allowed := fileLimit(t)
	replace[limit], replace["/run/turnstile/"] = allowed, dir+"/"
	newNginxConf(t, replace).start(t)
	return b
}

// startSite is startBlue with nginx at one address.
func startSite(t testing.TB, replace map[string]string) (b blue, site string) {
	t.Helper()
	site = freeAddr(t)
	replace["    listen 8080"], replace["    listen [::]:8080"] = "    listen "+site, "    # no "
	b = startBlue(t, replace)
	eventually(t, "nginx listens", func() bool { return canConnect(site) })
	return b, site
}

// nginx lets a client through whom a view of Django knows, and nobody else.
func TestNginxAsksDjango(t *testing.T) {
	t.Parallel()
	django := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cookie, err := r.Cookie("sessionid"); err != nil || cookie.Value != "known" || r.URL.Path != "/websocket-allowed/" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(django.Close)
	text := strings.Replace(doctest.Blocks(t, "deploy/README.md")[0].Text, "http://127.0.0.1:8001", django.URL, 1)
	within, beside, _ := strings.Cut(text, "\n")
	_, site := startSite(t, map[string]string{"location /ws/ {": beside + "location /ws/ {\n" + within})
	for id, want := range map[string]int{"known": 101, "made-up": 403} {
		response := get(t, site, "/ws/chat/", upgrading("Cookie: sessionid="+id)...)
		if response.StatusCode != want {
			t.Errorf("the session %q gets %s, want %d", id, response.Status, want)
		}
	}
}

// The server's last word reaches the client through nginx: also a client that is still
// sending what is refused, and all clients of a drain.
func TestCloseCodesThroughNginx(t *testing.T) {
	t.Parallel()
	server, site := startSite(t, map[string]string{})
	tooBig := proto.AppendMaskedFrame(nil, proto.OpText, true, [4]byte{1, 2, 3, 4}, make([]byte, 10<<20))
	for range 50 {
		w := dialWebSocket(t, site)
		w.send(t, tooBig)
		w.wantClose(t, "\x03\xf1") // 1009
	}
	var clients []*webSocket
	for range 20 {
		w := dialWebSocket(t, site)
		w.count(t, 1)
		clients = append(clients, w)
	}
	server.cmd.Process.Signal(syscall.SIGTERM)
	for _, w := range clients {
		w.wantClose(t, "\x03\xe9") // 1001
	}
	<-server.exited
	if code := server.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the server ends with exit code %d", code)
	}
}

// browse tries a site's console in a real browser.
func browse(t testing.TB, site string) {
	t.Helper()
	cmd := exec.Command(wantProgram(t, "node"), "--test", "../server/admin/browsertest/site.mjs")
	cmd.Env = append(os.Environ(), "TURNSTILE_SITE="+site)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the console of %s: %v:\n%s", site, err, out)
	}
	if _, what, skipped := strings.Cut(string(out), "# SKIP "); skipped {
		what, _, _ = strings.Cut(what, "\n")
		missing(t, "the console of %s: %s", site, what)
	}
}

func canConnect(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// get asks for a path exactly as it is written, with more header lines.
func get(t testing.TB, addr, path string, headers ...string) *http.Response {
	t.Helper()
	return ask(t, addr, "GET "+path+" HTTP/1.1", append(headers, "Host: "+addr)...)
}

// upgrading is headers and those that ask for a WebSocket.
func upgrading(headers ...string) []string {
	return append(headers, "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
}

// ask sends a request as it is written; the answer's body has been read.
func ask(t testing.TB, addr, requestLine string, headers ...string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "%s\r\n\r\n", strings.Join(append([]string{requestLine}, headers...), "\r\n"))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", requestLine, err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s: %v", requestLine, err)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response
}

// wantSame holds a page's file through nginx to what the server itself gives:
// status, bytes and headers.
func wantSame(t testing.TB, site, direct, path string, headers ...string) {
	t.Helper()
	text := func(addr string) string {
		r := get(t, addr, path, headers...)
		for _, ofTheHop := range []string{"Server", "Date", "Connection"} {
			r.Header.Del(ofTheHop)
		}
		body, _ := io.ReadAll(r.Body)
		return strings.ReplaceAll(fmt.Sprintf("%s, %v, %x", r.Status, r.Header, sha256.Sum256(body)), addr, "ADDR")
	}
	through, itself := text(site), text(direct)
	if through != itself || !strings.HasPrefix(itself, "200 OK") {
		t.Errorf("%s %s: through nginx %s\nthe server gives %s", path, headers, through, itself)
	}
}

// What the public sees of a stack, and what it does not.
func TestNginxShowsThePublicPages(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	direct := s.host + ":8001"
	for _, path := range admin.ConsolePaths() {
		wantSame(t, s.site, direct, path)
		wantSame(t, s.site, direct, path, "Accept-Encoding: gzip")
	}
	for _, path := range []string{"/healthz", "/healthz/", "/readyz", "/readyz/"} {
		if r := get(t, s.site, path); r.StatusCode != 200 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
	for _, path := range []string{"/metrics", "/metrics/", "//metrics/", "/%6detrics/", "/ws/../metrics/", "/healthz/../metrics/",
		"/ws/%2e%2e/metrics/", "/debug/pprof/", "/debug/pprof/cmdline", "/console.js/../metrics", "/healthz/%2e%2e/metrics/",
		"/metrics/%0a.js", "/metrics%0a.js", "/console/console.js", "/nothing", "/nothing.js"} {
		if r := get(t, s.site, path); r.StatusCode != 404 && r.StatusCode != 400 {
			t.Errorf("%s: %s, want 404", path, r.Status)
		}
	}
	if _, err := fetch("http://" + direct + "/metrics/"); err != nil {
		t.Errorf("the machine itself has to see the metrics: %v", err)
	}

	// The client's address is in the server's log, whatever the client says.
	upgrade := get(t, s.site, "/ws/chat/", upgrading("X-Forwarded-For: 192.0.2.1")...)
	if upgrade.StatusCode != 101 {
		t.Fatal(upgrade.Status)
	}
	eventually(t, "the connection is logged", func() bool {
		log, err := os.ReadFile(s.run + "/log/blue.log")
		if strings.Contains(string(log), "192.0.2.1") {
			t.Fatal("the server believes what the client says of its address")
		}
		return err == nil && strings.Count(string(log), `"client_ip":"127.0.0.1"`) >= 2
	})

	syscall.Kill(s.pid("blue"), syscall.SIGKILL)
	eventually(t, "no colour serves, which is said as the server would", func() bool {
		r := get(t, s.site, "/ws/chat/")
		return r.StatusCode == 503 && r.Header.Get("Retry-After") != "" && r.Header.Get("Content-Type") == "application/json"
	})
}

// What nginx makes of the Host that it got, or did not get, and what the server
// makes of that.
func TestNginxPassesTheHost(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for _, addr := range []string{s.site, s.host + ":8001"} {
		for _, path := range []string{"/healthz/", "/readyz/", "/"} {
			if r := ask(t, addr, "GET "+path+" HTTP/1.0"); r.StatusCode != 200 {
				t.Errorf("%s%s by HTTP/1.0 without Host: %s", addr, path, r.Status)
			}
		}
	}
	f := func(want int, requestLine string, headers ...string) {
		t.Helper()
		headers = upgrading(headers...)
		if r := ask(t, s.site, requestLine, headers...); r.StatusCode != want {
			t.Errorf("%s %s: %s, want %d", requestLine, headers, r.Status, want)
		}
	}
	const upgrade = "GET /ws/chat/ HTTP/1.1"
	f(101, upgrade, "Host: "+s.site, "Origin: http://"+s.site)
	f(101, upgrade, "Host: a.example", "Origin: https://a.example")
	f(403, upgrade, "Host: "+s.site, "Origin: http://"+s.host) // on another port
	f(403, upgrade, "Host: "+s.site, "Origin: http://a.example")
	for _, origin := range []string{"http://a.example", "http://" + s.site, "http://localhost", "http://", "null"} {
		f(403, "GET /ws/chat/ HTTP/1.0", "Origin: "+origin)
	}
}

// nginx is killed and started again: all are cut off, and all are back.
func TestNginxIsRestarted(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 100)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c.TakePauses()
		syscall.Kill(-s.pid("nginx"), signal)
		eventually(t, "nginx has ended", func() bool { return !s.runs("nginx") })
		s.must("dev-up.sh")
		c.WaitBack()
	}
	s.wantServing("blue")
	c.Settle()
}

// Several instances behind one nginx, with a Redis Cluster behind them: one is
// drained, one killed, and no client loses a message.
func TestInstances(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	limit, allowed := fileLimit(t)
	site, dir := freeAddr(t), t.TempDir()
	replace := map[string]string{
		limit: allowed, "include upstream.conf;": "include instances.conf;", "listen 8080": "listen " + site, "    listen [::]:8080": "    # no "}
	var addrs []string
	var instances []*child
	for i := range 3 {
		addr := freeAddr(t)
		addrs = append(addrs, addr)
		replace[fmt.Sprintf("server 10.0.0.1%d:8000", i+1)] = "server " + addr
		instances = append(instances, startInstance(t, dir, addr, cluster.URL))
	}
	newNginxConf(t, replace).start(t)
	eventually(t, "nginx listens", func() bool { return canConnect(site) })
	c := newCrowd(t, site, 90)
	for _, addr := range addrs {
		if n := connections(t, addr); n == 0 {
			t.Errorf("nobody is connected to %s", addr)
		}
	}
	for i, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		instances[i].cmd.Process.Signal(signal)
		<-instances[i].exited
		eventually(t, "the others have all", func() bool { return connections(t, addrs[1-i])+connections(t, addrs[2]) == 90 })
		c.WaitOnline()
		startInstance(t, dir, addrs[i], cluster.URL)
	}
	c.Settle()
	wantNoRefusals(t, site, addrs[2], instances[2], dir+"/server.log")
}

// wantNoRefusals drains an instance, which writes to a log, and then has it gone: clients are
// served by the others at once.
func wantNoRefusals(t *testing.T, site, addr string, instance *child, log string) {
	t.Helper()
	var findings oracle.Findings
	conn, err := findings.NewSession("").DialPatiently(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // until then it does not answer the goodbye: the drain takes a moment
	drains := func() int {
		text, _ := os.ReadFile(log)
		return strings.Count(string(text), `"drain_started"`)
	}
	before := drains()
	instance.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, addr+" drains", func() bool { return drains() > before })
	for range 30 {
		if r := get(t, site, "/readyz/"); r.StatusCode != 200 {
			t.Fatalf("%s, while one of three instances drains", r.Status)
		}
	}
	instance.kill()
	for range 30 {
		if r := get(t, site, "/readyz/"); r.StatusCode != 200 {
			t.Fatalf("%s, while one of three instances is gone", r.Status)
		}
	}
}

func startInstance(t testing.TB, dir, addr, redis string) *child {
	t.Helper()
	c := startServer(t, dir+"/server.log", addr, "-redis", redis, "-trusted-proxies", stackHost)
	eventually(t, addr+" is ready", answers("http://"+addr+"/readyz/"))
	return c
}

// connections is how many WebSockets an instance has.
func connections(t testing.TB, addr string) int {
	t.Helper()
	return int(metricOf(t, addr, "websocket_active_connections"))
}

// metricOf is the value of a metric without labels of the server at an address.
func metricOf(t testing.TB, addr, name string) (value float64) {
	t.Helper()
	page, err := fetch("http://" + addr + "/metrics/")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "\n"+name+" ")
	if _, err := fmt.Sscan(rest, &value); err != nil {
		t.Fatal(err)
	}
	return value
}
