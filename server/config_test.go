package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// noEnvironment is an environment that sets nothing.
var noEnvironment []string

func TestConfigDefaults(t *testing.T) {
	c, err := parseConfig(nil, noEnvironment, 3, 20_000, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Workers != 3 || c.MaxConnections != 0 || c.Heartbeat != 30*time.Second ||
		c.MaxMessage != 65536 || len(c.Listen) != 1 || c.Listen[0] != ":8000" {
		t.Errorf("defaults: %s", c)
	}
}

// A wrong value ends the start with one line that names the flag and what is
// allowed.
func TestConfigErrors(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		_, err := parseConfig(args, noEnvironment, 2, 20_000, io.Discard)
		if err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", args, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than one line: %v", args, err)
		}
	}
	f(`-workers must be a whole number from 1 to 1024, got "0"`, "-workers", "0")
	f(`-workers must be a whole number from 1 to 1024, got "two"`, "-workers=two")
	f(`-heartbeat must be a duration from 100ms to 8760h, such as 30s or 1m30s, got "30"`, "-heartbeat", "30")
	f(`-heartbeat must be a duration from 100ms to 8760h, such as 30s or 1m30s, got "-1s"`, "-heartbeat", "-1s")
	f(`-listen must be host:port, with a port from 0 to 65535 (0 is a free one), such as :8000 or [::1]:8000, or unix:/path, got "8000"`,
		"-listen", "8000")
	f(`-listen must be host:port, with a port from 0 to 65535 (0 is a free one), `+
		`such as :8000 or [::1]:8000, or unix:/path, got ":8000,:99999"`,
		"-listen", ":8000,:99999")
	f(`-listen must have a path of 1 to 107 bytes behind its unix: prefix, got "unix:"`, "-listen", "unix:")
	f(`-control must have a path of 1 to 99 bytes, got "`+strings.Repeat("c", 100)+`"`, "-control", strings.Repeat("c", 100))
	f(`-log-level must be one of debug, info, warn, error, got "loud"`, "-log-level", "loud")
	f(`-origins must be hosts such as example.com or example.com:8443, origins such as https://example.com, null, file:// or *, `+
		`separated by commas: an origin has no path and no last slash, got "https://x/"`,
		"-origins", "https://x/")
	f(`-origins must be origins of pages: that of a page which connects to wss:// begins with http:// or https://, got "wss://x"`,
		"-origins", "wss://x")
	f(`-trusted-proxies must be addresses such as 10.0.0.1 or 10.0.0.0/8, separated by commas, got "10.0.0.0/8,proxy"`,
		"-trusted-proxies", "10.0.0.0/8,proxy")
	f(`-echo must be true or false, got "maybe"`, "-echo=maybe")
	f(`-compress must be true, false or a whole number from 1 to 67108864, got "128B"`, "-compress=128B")
	f(`-compress must be true, false or a whole number from 1 to 67108864, got "-1"`, "-compress=-1")
	f(`-max-connections must be at most 19587 under this process's limit of 20000 open files, got 30000: `+
		`raise the limit (ulimit -n, LimitNOFILE) or lower the flag`,
		"-max-connections", "30000")
	f(`unexpected argument "8000": everything is a flag, `+
		`and -echo takes its value as -echo=true, -compress as -compress=512; see -help`, "8000")
	f(`-trusted-proxies must name proxies: 0.0.0.0 is nobody's address, and all addresses are 0.0.0.0/0, got "0.0.0.0"`,
		"-trusted-proxies", "0.0.0.0")
	f(`-trusted-proxies must name proxies: no connection comes from 224.1.0.0/16, which is multicast, got "10.0.0.1,224.1.0.0/16"`,
		"-trusted-proxies", "10.0.0.1,224.1.0.0/16")
	f(`-listen must not name anything twice, got ":1,:1"`, "-listen", ":1,:1")
	f(`-healthcheck must be http://HOST:PORT/healthz/ or unix:SOCKET:/healthz/, got "localhost:8000"`, "-healthcheck", "localhost:8000")
	f(`-xyzzy is no flag of this server; see -help`, "-xyzzy", "1")
	f(`-max-mesage is no flag of this server: did you mean -max-message? See -help`, "--max-mesage=1")
	f(`-workers needs a value behind it; see -help`, "-workers")
	f(`-redis must have a port from 1 to 65535 behind each host, such as redis://host:6379`, "-redis", "redis://h:99999")
	f(`-redis must have a whole number from 0 to 1048576 as the database, behind the host's slash or as db, such as redis://host:6379/0`,
		"-redis", "redis://h/abc")
	f(`-redis must have a whole number from 0 to 100 as wait_replicas, of replicas that confirm each write`,
		"-redis", "redis://h?wait_replicas=x")
	f(`-redis must have nothing but db, wait_replicas, master_name, sentinel_username, `+
		`sentinel_password, skip_verify behind the question mark, got "foo"`, "-redis", "redis://h?foo=1")
}

func TestConfigFromTheEnvironment(t *testing.T) {
	f := func(want string, args []string, environ ...string) {
		t.Helper()
		c, err := parseConfig(args, environ, 2, 20_000, io.Discard)
		if err != nil || c.String() != want {
			t.Errorf("%q: %v, %v; want %q", environ, c, err, want)
		}
	}
	f("-echo=true -max-message=1000 -workers=5",
		[]string{"-workers", "5"}, "TURNSTILE_MAX_MESSAGE=1000", "TURNSTILE_WORKERS=7", "TURNSTILE_ECHO=true")
	f("-log-level=debug -max-message=1000", nil,
		"TURNSTILE_MAX_MESSAGE= 1000\t", "TURNSTILE_LOG_LEVEL=debug\r", "TURNSTILE_WORKERS= ", "TURNSTILE_ECHO=")
	f("-compress=128", nil, "TURNSTILE_COMPRESS=true")
	f("-compress=128 -echo=true", []string{"-compress", "-echo"}, "TURNSTILE_COMPRESS=false")
	f("-compress=1", nil, "TURNSTILE_COMPRESS=1")
	f("", []string{"-compress=0"}, "TURNSTILE_COMPRESS=99")
	f("-workers=5", []string{"-workers", "5"}, "TURNSTILE_WORKERS=many") // what is not used is not looked at
	f("", nil, "TURNSTILE_VERSION=true")
	ill := func(want, variable string) {
		t.Helper()
		if _, err := parseConfig(nil, []string{variable}, 2, 20_000, io.Discard); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	ill(`TURNSTILE_ECHO="yes" is not valid: -echo must be true or false`, "TURNSTILE_ECHO=yes")
	ill(`TURNSTILE_HEARTBEAT="soon" is not valid: -heartbeat must be a duration from 100ms to 8760h, such as 30s or 1m30s`,
		"TURNSTILE_HEARTBEAT= soon ")
	ill(`TURNSTILE_REDIS is not valid: -redis must have a port from 1 to 65535 behind each host, such as redis://host:6379`,
		"TURNSTILE_REDIS=redis://:secret@h:99999")
}

// A variable that looks like a setting and is none is a slip that the log shows.
func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	p := startProcess(t, []string{
		"TURNSTILE_MAX_MESAGE=secret", "TURNSTILE_XYZZY=1", "TURNSTILE_PORT=8080",
		"TURNSTILE_SERVICE_HOST=10.0.0.1", "TURNSTILE_PORT_8000_TCP=tcp://10.0.0.1:8000",
	}, "-listen", testHost+":0", "-log-format", "json")
	p.waitLog("server_started")
	advice := make(map[string]any)
	for _, line := range p.logged("unknown_variable") {
		advice[line["variable"].(string)] = line["advice"]
		if line["level"] != "WARN" || strings.Contains(fmt.Sprint(line), "secret") {
			t.Errorf("the log says %v", line)
		}
	}
	want := map[string]any{
		"TURNSTILE_MAX_MESAGE": "no flag has this variable, and it is not used: did you mean TURNSTILE_MAX_MESSAGE? See -help",
		"TURNSTILE_XYZZY":      "no flag has this variable, and it is not used; see -help",
	}
	if !maps.Equal(advice, want) {
		t.Errorf("warned of %v, want %v", advice, want)
	}
}

// What the scripts and the compose file read is nothing to warn of.
func TestVariablesOfTheScriptsAreKnown(t *testing.T) {
	var environ []string
	in := func(file, pattern string) {
		t.Helper()
		text, err := os.ReadFile(file)
		names := regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s has no variables: %v", file, err)
		}
		for _, name := range names {
			environ = append(environ, environmentPrefix+name[1]+"=")
		}
	}
	in("../scripts/settings.sh", `(?m)^setting ([A-Z_]+) `)
	in("../scripts/compose.sh", `TURNSTILE_([A-Z_]+)`)
	in("../scripts/processes.sh", `TURNSTILE_([A-Z_]+)`)
	in("../scripts/test_loki.sh", `TURNSTILE_([A-Z_]+)`)
	in("../deploy/compose.yml", `TURNSTILE_([A-Z_]+)`)
	c, err := parseConfig(nil, environ, 2, 20_000, io.Discard)
	if err != nil || len(c.unknown) > 0 {
		t.Errorf("these are to be added to othersVariables: %q, %v", c.unknown, err)
	}
}

func TestMeant(t *testing.T) {
	names := flagNames(newConfig(2).flags)
	f := func(unknown, want string) {
		t.Helper()
		if got := meant("-", unknown, names); got != want {
			t.Errorf("%q: %q, want %q", unknown, got, want)
		}
	}
	f("max-mesage", ": did you mean -max-message? See -help")
	f("worker", ": did you mean -workers? See -help")
	f("redis-url", ": did you mean -redis? See -help")
	f("loglevel", ": did you mean -log-level? See -help")
	f("tls-certificate", "; see -help")
	f("x", "; see -help")
}

// TestHelp reads -help as a user does: the real program, in 80 columns, grouped
// by use. Each row of the table says its default, what is allowed, what it does
// and who would set it.
func TestHelp(t *testing.T) {
	out, complaint, code := tellAs("-help")
	if code != exitOK || complaint != "" {
		t.Errorf("exit code %d, %q", code, complaint)
	}
	for line := range strings.Lines(out) {
		if line = strings.TrimSuffix(line, "\n"); len(line) > helpColumns || strings.TrimRight(line, " ") != line {
			t.Errorf("%d columns: %q", len(line), line)
		}
	}
	text := strings.Join(strings.Fields(out), " ")
	at := 0
	next := func(want string) {
		t.Helper()
		found := strings.Index(text[at:], want)
		if found < 0 {
			t.Errorf("-help does not say %q where it should", want)
			return
		}
		at += found + len(want)
	}
	next("Usage: server [flags]")
	for _, group := range newConfig(2).groups {
		next(group.title)
		for _, s := range group.settings {
			next(s.usage() + " (default " + s.defaultText())
			next(s.value.bounds())
			next(s.text + " Set it when " + s.when + ".")
			if s.text == "" || s.when == "" {
				t.Errorf("-%s has no text", s.name)
			}
		}
	}
	next("TURNSTILE_MAX_MESSAGE")
	for _, want := range []string{
		"-max-message BYTES (default 65536; from 1 to 67108864)", "-heartbeat DURATION (default 30s; from 100ms to 8760h)",
		"-workers N (default one for each processor;"} {
		if !strings.Contains(text, want) {
			t.Errorf("-help does not say %q", want)
		}
	}
	for _, same := range []string{"-h", "--help"} {
		if again, _, code := tellAs(same); again != out || code != exitOK {
			t.Errorf("%s prints something else, exit code %d", same, code)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Setenv("TURNSTILE_WORKERS", "none") // it prints what runs, whatever else is wrong
	out, complaint, code := tellAs("-version")
	if code != exitOK || complaint != "" ||
		!strings.HasPrefix(out, "turnstile ") || !strings.HasSuffix(out, "\n") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit code %d, %q, %q", code, out, complaint)
	}
	for _, want := range []string{", revision " + revision + ", ", runtime.Version()} {
		if !strings.Contains(out, want) {
			t.Errorf("%q does not say %q", out, want)
		}
	}
}

// The first line of the log says where the server is, what it is and what was
// set, without credentials.
func TestStartSaysWhatItIs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "redis.sock") // where nobody listens
	p := startProcess(t, nil, "-listen", testHost+":0", "-log-format", "json",
		"-workers", "3", "-redis", "unix://user:secret@"+socket, "-heartbeat", "30s")
	p.waitListening()
	line := p.waitLog("server_started")
	want := map[string]any{
		"url":      "http://" + p.addr + "/",
		"revision": revision,
		"flags":    "-listen=" + testHost + ":0 -log-format=json -redis=" + "unix://" + socket + " -workers=3",
	}
	for name, value := range want {
		if line[name] != value {
			t.Errorf("%s is %v, want %v", name, line[name], value)
		}
	}
	if strings.Contains(fmt.Sprint(line), "secret") {
		t.Errorf("the password is in the log: %v", line)
	}
}

func TestPageURL(t *testing.T) {
	f := func(want string, addresses ...string) {
		t.Helper()
		if got := pageURL(addresses); got != want {
			t.Errorf("%q: %q, want %q", addresses, got, want)
		}
	}
	f("http://localhost:8000/", "[::]:8000")
	f("http://localhost:8000/", ":8000")
	f("http://localhost:8000/", "0.0.0.0:8000")
	f("http://10.0.0.5:80/", "unix:/run/turnstile/s.sock", "10.0.0.5:80", "10.0.0.6:80")
	f("http://[2001:db8::1]:80/", "[2001:db8::1]:80")
	f("", "unix:/run/turnstile/s.sock")
}

func TestWrongFlagEndsTheStart(t *testing.T) {
	p := startProcess(t, nil, "-workers", "none")
	if code := p.wait(); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	if got, want := p.stderr.String(), "server: -workers must be a whole number from 1 to 1024, got \"none\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddressInUseEndsTheStart(t *testing.T) {
	p := startServer(t)
	second := startProcess(t, nil, "-log-format", "json", "-listen", p.addr)
	if code := second.wait(); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	want := fmt.Sprintf("server: cannot listen on %q: address already in use: "+
		"end the program that listens there, or choose another address\n", p.addr)
	if got := second.stderr.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The table of flags in the README is made from config.go. `make readme` writes
// it anew.
func TestReadmeHasTheFlags(t *testing.T) {
	const path, begin, end = "../README.md", "<!-- flags -->\n", "<!-- /flags -->"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s", path, begin)
	}
	want := flagTable()
	if table == want {
		return
	}
	if os.Getenv("UPDATE_README") == "" {
		t.Fatalf("the flags in %s are not those of config.go: run make readme", path)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func flagTable() string {
	var table strings.Builder
	table.WriteString("| flag | default | what it does |\n| --- | --- | --- |\n")
	for _, group := range newConfig(2).groups {
		fmt.Fprintf(&table, "| **%s** | | |\n", group.title)
		for _, s := range group.settings {
			value := s.defaultText()
			if value == s.value.String() {
				value = "`" + value + "`"
			}
			fmt.Fprintf(&table, "| `%s` | %s | %s |\n", s.usage(), value, strings.ReplaceAll(s.text, "*", `\*`))
		}
	}
	return table.String()
}

// TestTrustedProxies: IPv4 in its IPv6-mapped form is IPv4.
func TestTrustedProxies(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		var c Config
		flag := prefixesFlag{&c.TrustedProxies}
		if err := flag.Set(text); err != nil || flag.String() != want {
			t.Errorf("%s: %v, %s, want %s", text, err, flag.String(), want)
		}
	}
	f("10.0.0.1, 10.1.2.3/8", "10.0.0.1/32,10.0.0.0/8")
	f("2001:db8::1,2001:db8::1/32", "2001:db8::1/128,2001:db8::/32")
	f("::ffff:10.0.0.1", "10.0.0.1/32")
	f("::ffff:10.1.2.3/104,::ffff:0:0/96", "10.0.0.0/8,0.0.0.0/0")
	f("0.0.0.0/0,::/0", "0.0.0.0/0,::/0")
}
