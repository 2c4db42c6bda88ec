package admin

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"turnstile/server/admin/uplot"
)

//go:embed console
var consoleFiles embed.FS

// clientModule is the one file that is meant for other pages too.
const clientModule = "/turnstile.js"

var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// An asset is one file of the console.
type asset struct {
	contentType string
	// plain and gzipped are made on the first request: a process whose
	// console nobody opens pays nothing for it, and no file in the
	// repository has to be kept true to another one.
	plain, gzipped func() variant
}

// A variant is an asset in one encoding.
type variant struct {
	content []byte
	etag    string
}

// ConsolePaths are the paths of the console's page and files, in order: what
// whoever lets people see the page has to let through.
func ConsolePaths() (paths []string) {
	for pattern := range consoleAssets() {
		paths = append(paths, strings.TrimSuffix(pattern, "{$}"))
	}
	slices.Sort(paths)
	return paths
}

// consoleAssets are the files of the console, by pattern of http.ServeMux.
func consoleAssets() map[string]*asset {
	assets := map[string]*asset{
		"/uplot.js":  newAsset(".js", uplot.Script),
		"/uplot.css": newAsset(".css", uplot.Style),
	}
	entries, err := consoleFiles.ReadDir("console")
	if err != nil {
		panic("BUG: " + err.Error())
	}
	for _, entry := range entries {
		content, err := consoleFiles.ReadFile("console/" + entry.Name())
		if err != nil {
			panic("BUG: " + err.Error())
		}
		assets["/"+entry.Name()] = newAsset(path.Ext(entry.Name()), content)
	}
	assets["/{$}"] = assets["/index.html"]
	delete(assets, "/index.html")
	return assets
}

func newAsset(extension string, content []byte) *asset {
	return &asset{
		contentType: contentTypes[extension],
		plain:       sync.OnceValue(func() variant { return newVariant(content) }),
		gzipped:     sync.OnceValue(func() variant { return newVariant(compressed(content)) }),
	}
}

func newVariant(content []byte) variant {
	sum := sha256.Sum256(content)
	return variant{content, `"` + hex.EncodeToString(sum[:12]) + `"`}
}

func compressed(content []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	w.Write(content) // a Buffer takes everything
	w.Close()
	return out.Bytes()
}

// ServeHTTP implements http.Handler. A browser asks each time whether the file
// is still the same, so a new version of the server has its page at once.
func (a *asset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("Vary", "Accept-Encoding")
	v := a.plain()
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		v = a.gzipped()
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(v.content)))
	}
	h.Set("ETag", v.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(v.content))
}

// acceptsGzip reads an Accept-Encoding header (RFC 9110 §12.5.3).
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		coding, weight, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			_, q, weighted := strings.Cut(weight, "=")
			value, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			return !weighted || err == nil && value > 0
		}
	}
	return false
}

// handleConsole adds the page and what it is made of.
func handleConsole(mux *http.ServeMux) {
	for path, asset := range consoleAssets() {
		if path == clientModule {
			mux.Handle(path, forAnyPage(asset))
			continue
		}
		mux.Handle(path, secured(asset))
	}
}

// forAnyPage lets a page of another origin load it, which a module needs.
func forAnyPage(next http.Handler) http.Handler {
	return secured(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		next.ServeHTTP(w, r)
	}))
}

// secured keeps the page to what comes from this server.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"+
			webSockets(r.Host)+
			"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// webSockets are those of a request's Host, for Safari before 15.4, which does not
// take them to be part of 'self'. There are none for what is no name or IPv4
// address: a policy cannot name an IPv6 address (CSP3 §2.3.1), nor is it to hold
// what a client has invented.
func webSockets(host string) string {
	if strings.ContainsAny(host, " ;,'\"[]*") || host == "" {
		return ""
	}
	return " ws://" + host + " wss://" + host
}
