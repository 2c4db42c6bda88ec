// Package admin answers plain HTTP: the console page, health, readiness and
// metrics.
package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// Config is what the pages are made of. The funcs are called from any
// goroutine.
type Config struct {
	Started time.Time
	// State says why no new connections are taken, in a few words (empty if they
	// are), and whether the process is on its way out. It must not wait.
	State func() (notReady string, shuttingDown bool)
	// Metrics writes the Prometheus text format.
	Metrics func(io.Writer)
	// WebSockets is the paths of the endpoints, for whoever has come to another one.
	WebSockets []string
}

// Handler serves every path of the public port that is no WebSocket endpoint.
// Each path is there with and without its last slash.
func Handler(config Config) http.Handler {
	mux := http.NewServeMux()
	handleConsole(mux)
	config.handleProbes(mux)
	handle(mux, "/metrics", (&metricsPage{render: config.Metrics}).ServeHTTP)
	mux.HandleFunc("/", config.notFound)
	return readOnly(mux)
}

func handle(mux *http.ServeMux, path string, h http.HandlerFunc) {
	mux.HandleFunc(path, h)
	mux.HandleFunc(path+"/{$}", h)
}

// readOnly answers 405 to what is neither GET nor HEAD.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			writeJSON(w, http.StatusMethodNotAllowed, map[string]any{"error": "only GET and HEAD are answered here"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c Config) notFound(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusNotFound, map[string]any{
		"error": "no such path: there are /, /healthz/, /readyz/, /metrics/, and for WebSockets " + strings.Join(c.WebSockets, ", ")})
}

func (c Config) healthz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Status    string  `json:"status"`
		Timestamp string  `json:"timestamp"`
		Uptime    float64 `json:"uptime"`
	}{"healthy", timestamp(), time.Since(c.Started).Seconds()})
}

func (c Config) readyz(w http.ResponseWriter, _ *http.Request) {
	reason, shuttingDown := c.State()
	status, code, ready := "ready", http.StatusOK, reason == ""
	if !ready {
		status, code = "not_ready", http.StatusServiceUnavailable
	}
	writeJSON(w, code, struct {
		Status       string `json:"status"`
		Timestamp    string `json:"timestamp"`
		Ready        bool   `json:"ready"`
		ShuttingDown bool   `json:"shutting_down"`
		Reason       string `json:"reason,omitempty"`
	}{status, timestamp(), ready, shuttingDown, reason})
}

func timestamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(body)
}

// Profiles serves net/http/pprof; it is for the address of -debug-listen only.
func Profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
