package admin

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A probe on the loop gets what net/http would have sent.
func TestProbesAnswerAsTheHandlerDoes(t *testing.T) {
	notReady := ""
	config := Config{Started: time.Now(), State: func() (string, bool) { return notReady, notReady == "draining" }}
	server := startHTTP(t, Handler(config))
	probes := Probes(config)
	moments := regexp.MustCompile(`"timestamp":"[^"]+"|"uptime":[0-9.e-]+|Date: [^\r]+|Content-Length: \d+`)
	f := func(method, path string, status int, contains string) {
		t.Helper()
		got := string(probes([]byte("before"), method, path))
		want := server(method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if dates := regexp.MustCompile(`Date: [A-Z][a-z]{2}, .* GMT\r\n`).FindAllString(got, -1); len(dates) != 1 {
			t.Errorf("%s %s has the dates %q", method, path, dates)
		}
		got, ok := strings.CutPrefix(got, "before")
		if !ok || !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", status)) || !strings.Contains(got, contains) {
			t.Errorf("%s %s: %s", method, path, got)
		}
		if got, want := sorted(moments.ReplaceAllString(got, "…")), sorted(moments.ReplaceAllString(want, "…")); got != want {
			t.Errorf("%s %s:\non the loop: %q\nby net/http: %q", method, path, got, want)
		}
		if answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), &http.Request{Method: method}); err != nil {
			t.Error(err)
		} else if body, err := io.ReadAll(answer.Body); err != nil || method != "HEAD" && len(body) == 0 {
			t.Errorf("%s %s: body %q, %v", method, path, body, err)
		}
	}
	for _, slash := range []string{"", "/"} {
		for _, method := range []string{"GET", "HEAD"} {
			f(method, "/healthz"+slash, 200, "\r\nConnection: close\r\n")
			f(method, "/readyz"+slash, 200, "Cache-Control: no-store\r\n")
		}
		f("DELETE", "/healthz"+slash, 405, "Allow: GET, HEAD\r\n")
	}
	notReady = "draining"
	f("GET", "/readyz/", 503, `"ready":false,"shutting_down":true,"reason":"draining"}`)
	f("HEAD", "/readyz/", 503, "")
	f("GET", "/healthz/", 200, `"status":"healthy"`)
	notReady = "starting"
	f("GET", "/readyz", 503, `"ready":false,"shutting_down":false,"reason":"starting"}`)

	for _, path := range []string{"/", "", "/healthz//", "/metrics/", "/Healthz/", "/healthz/x", "//healthz/"} {
		if got := string(probes([]byte("before"), "GET", path)); got != "before" {
			t.Errorf("%q is answered on the loop: %q", path, got)
		}
	}
}

// startHTTP starts net/http's server with a handler, and returns a func that sends it a
// request and returns the whole answer.
func startHTTP(t *testing.T, handler http.Handler) func(request string) string {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return func(request string) string {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, request)
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
}

// sorted is an answer with its header lines in order.
func sorted(answer string) string {
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	slices.Sort(lines[1:])
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// Many askers get one page of metrics, unless one wants what is newer than its request.
func TestMetricsPageIsShared(t *testing.T) {
	rendered := 0
	page := &metricsPage{render: func(w io.Writer) { rendered++; fmt.Fprint(w, rendered) }}
	start := time.Now()
	f := func(notBefore time.Time, want string) {
		t.Helper()
		if got := string(page.since(notBefore)); got != want {
			t.Errorf("got page %s, want %s", got, want)
		}
	}
	f(start, "1")
	f(start, "1")
	f(start.Add(-pageAge), "1")
	page.began = start
	f(start.Add(time.Nanosecond), "2")
	f(start, "2")

	// Those who come while a page is made share the next one.
	entered, goOn := make(chan struct{}), make(chan struct{})
	page.render = func(w io.Writer) { rendered++; entered <- struct{}{}; <-goOn; fmt.Fprint(w, rendered) }
	var asking sync.WaitGroup
	ask := func(notBefore time.Time) { asking.Go(func() { page.since(notBefore) }) }
	ask(time.Now())
	<-entered
	for range 10 {
		ask(time.Now())
	}
	go func() { goOn <- struct{}{}; <-entered; goOn <- struct{}{} }()
	asking.Wait()
	if rendered != 4 {
		t.Errorf("%d pages were made, want 4", rendered)
	}
}

func TestWhoWantsAFreshPage(t *testing.T) {
	for value, want := range map[string]bool{"": false, "max-age=0": false, "no-cache": true, "no-store, No-Cache": true} {
		r := &http.Request{Header: http.Header{"Cache-Control": {value}}}
		if got := wantsFresh(r); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// A page of metrics is not kept by a browser: it would show a console old figures.
func TestMetricsAreNotKept(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(Config{Metrics: func(io.Writer) {}}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics/", nil))
	if got := w.Result().Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: %q", got)
	}
}
