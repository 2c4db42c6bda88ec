package engine

import (
	"net/http"
	"time"
)

// An httpDate is the value of the Date header. It is written anew once a second.
type httpDate struct {
	second int64
	text   []byte
}

// now is the current value, valid until the next call.
func (d *httpDate) now() []byte { return d.at(time.Now()) }

func (d *httpDate) at(t time.Time) []byte {
	if second := t.Unix(); second != d.second {
		d.second = second
		d.text = t.UTC().AppendFormat(d.text[:0], http.TimeFormat)
	}
	return d.text
}
