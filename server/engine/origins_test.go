package engine

import (
	"strings"
	"testing"
	"time"
)

func TestOriginAllowed(t *testing.T) {
	f := func(origin, host string, want bool, entries ...string) {
		t.Helper()
		allowed, err := parseOrigins(entries)
		if err != nil {
			t.Fatal(err)
		}
		if got := originAllowed([]byte(origin), []byte(host), allowed); got != want {
			t.Errorf("origin %q at host %q with -origins %q: %v", origin, host, entries, got)
		}
	}
	f("", "example.com", true)

	// The request's own host; the port of the scheme is the same as none.
	f("http://example.com", "example.com", true)
	f("https://EXAMPLE.com", "example.COM", true)
	f("http://example.com:8000", "example.com:8000", true)
	f("http://example.com:8000", "example.com", false)
	f("http://example.com", "example.com:8000", false)
	f("https://example.com:443", "example.com", true)
	f("https://example.com", "example.com:443", true)
	f("http://example.com", "example.com:80", true)
	f("http://example.com:80", "example.com", true)
	f("http://example.com", "example.com:443", false)
	f("https://example.com", "example.com:80", false)
	f("http://[::1]:80", "[::1]:80", true)
	f("http://[::1]", "[::1]:80", true)
	f("http://example.com.evil", "example.com", false)
	f("http://evil.example", "example.com", false)
	f("app://example.com", "example.com", false)
	f("example.com", "example.com", false)
	f("http://example.com/", "example.com", false)
	f("null", "example.com", false)
	f("null", "null", false)
	f("http://", "", false)
	f("://", "", false)

	// A host: any scheme and port.
	f("http://a.example:99", "b", true, "a.example")
	f("app://A.example", "b", true, "a.EXAMPLE")
	f("http://[::1]:99", "b", true, "[::1]")
	f("http://x.a.example", "b", false, "a.example")
	f("a.example", "b", false, "a.example")

	// A host with a port: any scheme.
	f("http://a.example:99", "b", true, "a.example:99")
	f("http://a.example:98", "b", false, "a.example:99")
	f("https://a.example", "b", true, "a.example:443")
	f("http://a.example", "b", false, "a.example:443")

	// An origin.
	f("https://a.example:8443", "b", true, "x", "https://a.example:8443")
	f("http://a.example:8443", "b", false, "https://a.example:8443")
	f("https://a.example", "b", false, "https://a.example:8443")
	f("https://a.example", "b", true, "https://a.example:443")
	f("https://a.example:443", "b", true, "HTTPS://a.example")
	f("https://a.example:8443", "b", false, "https://a.example")
	f("app://a.example", "b", true, "app://a.example")
	f("app://a.example:1", "b", false, "app://a.example")

	f("null", "b", true, "null")
	f("null", "b", false, "file://")
	f("file://", "b", true, "null", "file://")
	f("file://", "b", false, "null")
	f("null", "b", true, "*")
	f("whatever", "b", true, "*")
}

// TestParseOrigin: what could never match is refused.
func TestParseOrigin(t *testing.T) {
	f := func(entry, want string) {
		t.Helper()
		err := ParseOrigin(entry)
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(),
			"must ") || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", entry, err, want)
		}
	}
	for _, good := range []string{
		"*", "null", "NULL", "file://", "a.example", "localhost:8000", "https://a.example", "http://a.example:1",
		"app://x", "192.0.2.1", "[2001:db8::1]:8443",
		"[::ffff:c000:201]", "xn--bcher-kva.example", "a_b",
	} {
		f(good, "")
	}
	f("", "hosts such as")
	f("http://", "hosts such as")
	f("://a", "hosts such as")
	f("a:b", "hosts such as")
	f("a b", "hosts such as")
	f("::1", "hosts such as")
	f("user@a.example", "hosts such as")
	f("https://a.example/", "no path and no last slash")
	f("a.example/", "no path and no last slash")
	f("https://a.example/x", "no path and no last slash")
	f("*.example", "* stands alone")
	f("https://*", "* stands alone")
	f("bücher.example", "xn--")
	f("wss://a.example", "wss:// begins with http")
	f("file://host", "file:// without a host")
	f("a.example:0", "from 1 to 65535")
	f("a.example:080", "without zeros")
	f("http://a.example:65536", "from 1 to 65535")
	f("[2001:DB8:0::1]", "[2001:db8::1]")
	f("[::ffff:192.0.2.1]", "[::ffff:c000:201]")
	f("127.1", "192.0.2.1")
	f("http://a.256", "192.0.2.1")
}

func TestHTTPDate(t *testing.T) {
	var d httpDate
	start := time.Date(2026, 11, 26, 23, 59, 59, 1e6, time.FixedZone("", 3600))
	for _, f := range []struct {
		after time.Duration
		want  string
	}{
		{0, "Thu, 26 Nov 2026 22:59:59 GMT"},
		{998 * time.Millisecond, "Thu, 26 Nov 2026 22:59:59 GMT"},
		{999 * time.Millisecond, "Thu, 26 Nov 2026 23:00:00 GMT"},
	} {
		if got := string(d.at(start.Add(f.after))); got != f.want {
			t.Errorf("%v later: %s, want %s", f.after, got, f.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { start = start.Add(time.Second); d.at(start) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
