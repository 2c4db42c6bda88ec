package admin

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// pageAge is how old the page of metrics may be that a request gets. It makes any number
// of askers cost no more than ten pages a second.
const pageAge = 100 * time.Millisecond

// A metricsPage is the text of the metrics, rendered once for all who ask at about the
// same time. It is safe for concurrent use.
type metricsPage struct {
	render func(io.Writer)

	mu    sync.Mutex
	text  []byte    // Guarded by mu; never changed once it is there.
	began time.Time // Guarded by mu: when rendering text began.
}

// ServeHTTP implements http.Handler.
func (p *metricsPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	notBefore := time.Now()
	if !wantsFresh(r) {
		notBefore = notBefore.Add(-pageAge)
	}
	w.Write(p.since(notBefore))
}

// wantsFresh reports whether the client asks for a page that is made after its request
// (RFC 9111 §5.2.1.4), as a test does that has just caused what it wants to see.
func wantsFresh(r *http.Request) bool {
	return strings.Contains(strings.ToLower(strings.Join(r.Header.Values("Cache-Control"), ",")), "no-cache")
}

// since returns a page that was begun no earlier than notBefore. Who waits meanwhile for
// a page that the other one satisfies gets that.
func (p *metricsPage) since(notBefore time.Time) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.Before(notBefore) {
		began := time.Now()
		var text bytes.Buffer
		p.render(&text)
		p.text, p.began = text.Bytes(), began
	}
	return p.text
}
