package deploy

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
	cert, key := selfSigned(t)
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

// selfSigned writes a certificate for this machine, and its key.
func selfSigned(t testing.TB) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.ParseIP(stackHost)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
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

// WebSockets through TLS: the include, with a certificate.
func TestNginxWithTLS(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	limit, allowed := fileLimit(t)
	addr := freeAddr(t)
	sockets, err := os.MkdirTemp("", "tls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	direct := freeAddr(t)
	startServer(t, sockets+"/server.log", direct, "-listen", direct+",unix:"+sockets+"/blue.sock")
	os.Symlink("blue.sock", sockets+"/active.sock")
	newNginxConf(t, map[string]string{
		limit: allowed, "/run/turnstile/": sockets + "/", "# include tls.conf;": "include tls.conf;", "include server.conf;": "",
		"/etc/turnstile/tls/fullchain.pem": cert, "/etc/turnstile/tls/privkey.pem": key, "listen 443": "listen " + addr,
	}).start(t)
	eventually(t, "nginx listens", func() bool { return canConnect(addr) })
	smokeTest(t, []string{"SSL_CERT_FILE=" + cert}, "-reaches", "unix:"+sockets+"/blue.sock", "https://"+addr)
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
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, addr, strings.Join(append(headers, ""), "\r\n"))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return response
}

// What the public sees of a stack, and what it does not.
func TestNginxShowsThePublicPages(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for _, path := range []string{"/", "/console.js", "/console.css", "/healthz", "/healthz/", "/readyz/"} {
		if r := get(t, s.site, path); r.StatusCode != 200 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
	for _, path := range []string{"/metrics", "/metrics/", "//metrics/", "/%6detrics/", "/ws/../metrics/", "/healthz/../metrics/",
		"/ws/%2e%2e/metrics/", "/debug/pprof/", "/console.js/../metrics", "/healthz/%2e%2e/metrics/", "/nothing"} {
		if r := get(t, s.site, path); r.StatusCode != 404 && r.StatusCode != 400 {
			t.Errorf("%s: %s, want 404", path, r.Status)
		}
	}
	if _, err := fetch("http://" + s.host + ":8001/metrics/"); err != nil {
		t.Errorf("the machine itself has to see the metrics: %v", err)
	}

	// The client's address is in the server's log, whatever the client says.
	upgrade := get(t, s.site, "/ws/chat/", "X-Forwarded-For: 192.0.2.1", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
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

// nginx is killed and started again: all are cut off, and all are back.
func TestNginxIsRestarted(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := newCrowd(t, s.site, 100)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c.takePauses()
		syscall.Kill(-s.pid("nginx"), signal)
		eventually(t, "nginx has ended", func() bool { return !s.runs("nginx") })
		s.must("dev-up.sh")
		c.wantAllBack()
	}
	s.wantServing("blue")
	c.settle()
}

// Several instances behind one nginx, with a Redis Cluster behind them: one is
// drained, one killed, and no client loses a message.
func TestInstances(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	limit, allowed := fileLimit(t)
	site, dir := freeAddr(t), t.TempDir()
	replace := map[string]string{limit: allowed, "include upstream.conf;": "include instances.conf;", "listen 8080": "listen " + site}
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
		c.wantAllOnline()
		startInstance(t, dir, addrs[i], cluster.URL)
	}
	c.settle()
	wantNoRefusals(t, site, addrs[2], instances[2])
}

// wantNoRefusals drains an instance, and then has it gone: clients are served by
// the others at once.
func wantNoRefusals(t *testing.T, site, addr string, instance *child) {
	t.Helper()
	var findings oracle.Findings
	socket, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close() // until then it does not answer the goodbye: the drain takes a moment
	if _, err := findings.NewSession("").Connect(socket); err != nil {
		t.Fatal(err)
	}
	instance.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, addr+" drains", func() bool { return get(t, addr, "/readyz/").StatusCode == 503 })
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
func connections(t testing.TB, addr string) (n int) {
	t.Helper()
	page, err := fetch("http://" + addr + "/metrics/")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "\nwebsocket_active_connections ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
