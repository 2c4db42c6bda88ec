package counter

import (
	"io"
	"net/http"
	"strings"

	"github.com/gobwas/ws"
)

// Upgrade reads a request from conn, answers it with the zero-copy upgrade of
// github.com/gobwas/ws, and returns its session. After an error the answer is a
// refusal: 404 for another path than Path, 400 for a session_id that is no UUID.
func Upgrade(conn io.ReadWriter) (s *Session, err error) {
	upgrader := ws.Upgrader{OnRequest: func(uri []byte) (err error) {
		s, err = openURI(string(uri))
		return err
	}}
	_, err = upgrader.Upgrade(conn)
	return s, err
}

func openURI(uri string) (*Session, error) {
	path, query, _ := strings.Cut(uri, "?")
	if path != Path {
		return nil, ws.RejectConnectionError(ws.RejectionStatus(http.StatusNotFound))
	}
	s, err := Open(query)
	if err != nil {
		return nil, ws.RejectConnectionError(ws.RejectionStatus(http.StatusBadRequest), ws.RejectionReason(err.Error()))
	}
	return s, nil
}
