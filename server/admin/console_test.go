package admin

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// get asks the handler of the public port.
func get(path string, header ...string) *http.Response {
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler(Config{}).ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r io.Reader) string {
	t.Helper()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestConsoleIsSmall(t *testing.T) {
	const most = 150_000
	total := 0
	for path, asset := range consoleAssets() {
		if asset.contentType == "" {
			t.Errorf("%s has no content type", path)
		}
		total += len(asset.plain().content)
	}
	if total > most {
		t.Errorf("the console has %d bytes, more than %d", total, most)
	}
}

func TestConsoleIsServedCompressed(t *testing.T) {
	for _, path := range ConsolePaths() {
		plain, zipped := get(path), get(path, "Accept-Encoding", "br, gzip")
		if zipped.Header.Get("Content-Encoding") != "gzip" || plain.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: encoded as %q and %q", path, plain.Header.Get("Content-Encoding"), zipped.Header.Get("Content-Encoding"))
			continue
		}
		unzipped, err := gzip.NewReader(zipped.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if a, b := body(t, plain.Body), body(t, unzipped); a != b || a == "" {
			t.Errorf("%s: %d bytes, and %d out of gzip", path, len(a), len(b))
		}
		if plain.Header.Get("ETag") == zipped.Header.Get("ETag") {
			t.Errorf("%s: one ETag for both encodings", path)
		}
		if again := get(path, "Accept-Encoding", "gzip", "If-None-Match", "W/"+zipped.Header.Get("ETag")); again.StatusCode != 304 {
			t.Errorf("%s: asked for a change: %s", path, again.Status)
		}
	}
}

func TestAcceptsGzip(t *testing.T) {
	f := func(header string, want bool) {
		t.Helper()
		if got := acceptsGzip(header); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
	f("", false)
	f("gzip", true)
	f("deflate, GZIP ;q=0.5", true)
	f("gzip;q=0", false)
	f("gzip;q=0.000, br", false)
	f("gzip;q=x", false)
	f("xgzip, br", false)
}

func TestConsoleIsFencedIn(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "x; script-src *"
	w := httptest.NewRecorder()
	Handler(Config{}).ServeHTTP(w, r)
	for _, header := range []http.Header{get("/").Header, get(clientModule).Header, w.Result().Header} {
		policy := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") ||
			strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("policy %q", policy)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers %v", header)
		}
	}
	if get("/").Header.Get("Access-Control-Allow-Origin") != "" || get(clientModule).Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("other pages may load the client module, and nothing else")
	}
}

func TestConsolePolicyNamesTheHost(t *testing.T) {
	f := func(host, want string) {
		t.Helper()
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		Handler(Config{}).ServeHTTP(w, r)
		if policy := w.Result().Header.Get("Content-Security-Policy"); !strings.Contains(policy, "; connect-src "+want+"; base-uri") {
			t.Errorf("Host %q: policy %q, want %s", host, policy, want)
		}
	}
	f("a.example:8080", "'self' ws://a.example:8080 wss://a.example:8080")
	f("127.0.0.1", "'self' ws://127.0.0.1 wss://127.0.0.1")
	f("[::1]:8080", "'self'") // Chromium warns of an invalid source
	f("x; script-src *", "'self'")
	f("", "'self'")
}

// The policy would stop inline code in a browser; here it fails earlier.
func TestConsoleHasNoInlineCode(t *testing.T) {
	page := body(t, get("/").Body)
	inline := regexp.MustCompile(`(?i)<script>|<style|\sstyle=|\son[a-z]+=|javascript:|https?://`)
	if found := inline.FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	for _, path := range ConsolePaths() {
		if path == "/uplot.js" || !strings.HasSuffix(path, ".js") {
			continue
		}
		unsafe := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
		if found := unsafe.FindString(body(t, get(path).Body)); found != "" {
			t.Errorf("%s has %q: what comes from the network is text", path, found)
		}
	}
}
