package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func noEnvironment(string) string { return "" }

func TestConfigDefaults(t *testing.T) {
	c, err := parseConfig(nil, noEnvironment, 3, 20_000, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Workers != 3 || c.MaxConnections != 20_000-256 || c.Heartbeat != 30*time.Second || c.MaxMessage != 65536 || len(c.Listen) != 1 || c.Listen[0] != ":8000" {
		t.Errorf("defaults: %s", c)
	}
	if c, err := parseConfig(nil, noEnvironment, 1, 100, io.Discard); err != nil || c.MaxConnections != 50 {
		t.Errorf("with 100 file descriptors: %v, %v", c, err)
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
	f(`-listen must be host:port, with a port from 0 to 65535 (0 is a free one), such as :8000 or [::1]:8000, or unix:/path, got "8000"`, "-listen", "8000")
	f(`-listen must be host:port, with a port from 0 to 65535 (0 is a free one), such as :8000 or [::1]:8000, or unix:/path, got ":8000,:99999"`, "-listen", ":8000,:99999")
	f(`-listen must have a path of 1 to 107 bytes behind its unix: prefix, got "unix:"`, "-listen", "unix:")
	f(`-log-level must be one of debug, info, warn, error, got "loud"`, "-log-level", "loud")
	f(`-origins must be hosts such as example.com or example.com:8443, without a scheme, separated by commas, or *, got "http://x"`, "-origins", "http://x")
	f(`-trusted-proxies must be addresses such as 10.0.0.1 or 10.0.0.0/8, separated by commas, got "10.0.0.0/8,proxy"`, "-trusted-proxies", "10.0.0.0/8,proxy")
	f(`-echo must be true or false, got "maybe"`, "-echo=maybe")
	f(`-max-connections must be at most 19744 under this process's limit of 20000 open files, got 30000: raise the limit (ulimit -n, LimitNOFILE) or lower the flag`, "-max-connections", "30000")
	f(`unexpected argument "8000": everything is a flag, and -echo takes its value as -echo=true; see -help`, "8000")
	f(`-origins must be hosts such as example.com or example.com:8443, without a scheme, separated by commas, or *, got "*.example.com"`, "-origins", "*.example.com")
	f(`-listen must not name anything twice, got ":1,:1"`, "-listen", ":1,:1")
	f(`-healthcheck must be http://HOST:PORT/healthz/ or unix:SOCKET:/healthz/, got "localhost:8000"`, "-healthcheck", "localhost:8000")
	f(`flag provided but not defined: -port; see -help`, "-port", "1")
	f(`flag needs an argument: -workers; see -help`, "-workers")
}

func TestConfigFromTheEnvironment(t *testing.T) {
	env := map[string]string{"TURNSTILE_MAX_MESSAGE": "1000", "TURNSTILE_WORKERS": "7", "TURNSTILE_ECHO": "true"}
	c, err := parseConfig([]string{"-workers", "5"}, func(name string) string { return env[name] }, 2, 20_000, io.Discard)
	if err != nil || c.MaxMessage != 1000 || c.Workers != 5 || !c.Echo {
		t.Errorf("%v, %v", c, err)
	}
	env["TURNSTILE_ECHO"] = "yes"
	_, err = parseConfig(nil, func(name string) string { return env[name] }, 2, 20_000, io.Discard)
	if want := `TURNSTILE_ECHO="yes" is not valid: -echo must be true or false`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	env["TURNSTILE_ECHO"] = ""
	env["TURNSTILE_HEARTBEAT"] = "soon"
	_, err = parseConfig(nil, func(name string) string { return env[name] }, 2, 20_000, io.Discard)
	if want := `TURNSTILE_HEARTBEAT="soon" is not valid: -heartbeat must be a duration from 100ms to 8760h, such as 30s or 1m30s`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestConfigHelp(t *testing.T) {
	var out bytes.Buffer
	if _, err := parseConfig([]string{"-help"}, noEnvironment, 2, 20_000, &out); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
	for _, want := range []string{"-max-message", "TURNSTILE_MAX_MESSAGE", "(default 65536)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the usage does not say %q:\n%s", want, out.String())
		}
	}
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
	if got, want := second.stderr.String(), fmt.Sprintf("server: cannot listen on %q: address already in use\n", p.addr); got != want {
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
	table.WriteString("| flag | default | meaning |\n| --- | --- | --- |\n")
	computed := map[string]string{"workers": "processors", "max-connections": "from the fd limit"}
	newConfig(2, 20_000).flags.VisitAll(func(f *flag.Flag) {
		_, usage := flag.UnquoteUsage(f)
		value := "`" + f.DefValue + "`"
		if f.DefValue == "" {
			value = "none"
		}
		if text, ok := computed[f.Name]; ok {
			value = text
		}
		fmt.Fprintf(&table, "| `-%s` | %s | %s |\n", f.Name, value, strings.ReplaceAll(usage, "*", `\*`))
	})
	return table.String()
}
