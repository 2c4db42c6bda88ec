package admin

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Probes returns a func that answers the pages of probes, /healthz/ and /readyz/, on an
// event loop: it appends the whole answer to out, and does not wait. For other paths it
// returns out as it was. The pages are those of Handler.
func Probes(config Config) func(out []byte, method, path string) []byte {
	mux := http.NewServeMux()
	config.handleProbes(mux)
	pages := readOnly(mux)
	return func(out []byte, method, path string) []byte {
		if !isProbe(path) {
			return out
		}
		answer := answer{header: make(http.Header)}
		pages.ServeHTTP(&answer, &http.Request{Method: method, URL: &url.URL{Path: path}})
		return answer.appendTo(out, method)
	}
}

func (c Config) handleProbes(mux *http.ServeMux) {
	handle(mux, "/healthz", c.healthz)
	handle(mux, "/readyz", c.readyz)
}

func isProbe(path string) bool {
	path = strings.TrimSuffix(path, "/")
	return path == "/healthz" || path == "/readyz"
}

// An answer is an http.ResponseWriter in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// appendTo appends the answer to a request with this method. The connection ends behind
// it.
func (a *answer) appendTo(out []byte, method string) []byte {
	a.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	response := http.Response{
		StatusCode: a.status, ProtoMajor: 1, ProtoMinor: 1, Header: a.header, Close: true,
		Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()),
		Request: &http.Request{Method: method}, // the answer to HEAD has no body
	}
	buffer := bytes.NewBuffer(out)
	response.Write(buffer) // to memory: it cannot fail
	return buffer.Bytes()
}
