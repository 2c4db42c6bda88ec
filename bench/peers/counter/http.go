package counter

import (
	"log"
	"net/http"
)

// Serve answers Path with upgrade, on net/http, and never returns. A request
// whose session_id is no UUID is answered 400.
func Serve(upgrade func(w http.ResponseWriter, r *http.Request, s *Session)) {
	log.Fatal(http.Serve(Listener(), Handler(upgrade)))
}

// Handler is the handler of Serve.
func Handler(upgrade func(w http.ResponseWriter, r *http.Request, s *Session)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(Path, func(w http.ResponseWriter, r *http.Request) {
		s, err := Open(r.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		upgrade(w, r, s)
	})
	return mux
}
