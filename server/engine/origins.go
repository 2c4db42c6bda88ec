package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"turnstile/proto"
)

// An allowedOrigin is an entry of -origins.
type allowedOrigin struct {
	opaque  string // the whole Origin of pages without a host: null and file://; * is every Origin
	scheme  string // empty for any scheme
	host    string
	port    string // never left out where the scheme has a default
	anyPort bool
}

// ParseOrigin checks an entry of -origins: what no browser sends could never match, and
// is an error. The error's text goes on from the flag's name.
func ParseOrigin(entry string) error {
	_, err := parseOrigin(entry)
	return err
}

func parseOrigin(entry string) (o allowedOrigin, err error) {
	switch lower := strings.ToLower(entry); lower {
	case "*", "null", "file://":
		return allowedOrigin{opaque: lower}, nil
	}
	scheme, rest, hasScheme := strings.Cut(entry, "://")
	if !hasScheme {
		scheme, rest = "", entry
	}
	host, port, ok := proto.CutPort([]byte(rest))
	if !ok || hasScheme && scheme == "" || strings.Contains(entry, "*") {
		return o, explainOrigin(entry)
	}
	o = allowedOrigin{
		scheme: strings.ToLower(scheme), host: strings.ToLower(string(host)),
		port:    string(portOf([]byte(scheme), port)),
		anyPort: !hasScheme && len(port) == 0,
	}
	return o, o.check()
}

func parseOrigins(entries []string) (origins []allowedOrigin, err error) {
	for _, entry := range entries {
		o, err := parseOrigin(entry)
		if err != nil {
			return nil, fmt.Errorf("origin %q %w", entry, err)
		}
		origins = append(origins, o)
	}
	return origins, nil
}

// explainOrigin says why an entry is neither a host nor an origin.
func explainOrigin(entry string) error {
	const allowed = "must be hosts such as example.com or example.com:8443, origins such as https://example.com, " +
		"null, file:// or *, separated by commas"
	_, rest, _ := strings.Cut(entry, "://")
	switch {
	case strings.HasSuffix(entry, "/"), strings.ContainsAny(rest, "/?#"):
		return errors.New(allowed + ": an origin has no path and no last slash")
	case strings.Contains(entry, "*"):
		return errors.New(allowed + ": * stands alone, for all")
	case strings.ContainsFunc(entry, func(r rune) bool { return r > '~' }):
		return errors.New(allowed + ": browsers send a host that is not ASCII in its xn-- form")
	}
	return errors.New(allowed)
}

// check refuses what has the form of an origin, but not as a browser writes it.
func (o *allowedOrigin) check() error {
	switch o.scheme {
	case "ws", "wss":
		return fmt.Errorf("must be origins of pages: that of a page which connects to %s:// begins with http:// or https://", o.scheme)
	case "file":
		return errors.New("must be file:// without a host: browsers send none")
	}
	if port := strings.TrimLeft(o.port, "0"); o.port != port || len(port) > 5 || len(port) == 5 && port > "65535" {
		return fmt.Errorf("must have ports from 1 to 65535 without zeros in front, not %s", o.port)
	}
	if ip, err := browserIP(o.host); err != nil || ip != o.host {
		return fmt.Errorf("must have IP addresses as browsers send them, such as %s, not %s", ip, o.host)
	}
	return nil
}

// browserIP is a host, as a browser sends it, if it is an IP address (the URL standard,
// host serializing); other hosts are returned as they are. With an error, ip is an
// example.
func browserIP(host string) (ip string, err error) {
	if host[0] != '[' {
		last := host[strings.LastIndexByte(host, '.')+1:]
		if strings.Trim(last, "0123456789") != "" || last == "" {
			return host, nil
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return "192.0.2.1", err
		}
		return host, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if b := addr.As16(); addr.Is4In6() {
		return fmt.Sprintf("[::ffff:%x:%x]", int(b[12])<<8|int(b[13]), int(b[14])<<8|int(b[15])), err
	}
	return "[" + addr.String() + "]", err
}

// originAllowed checks the Origin header of a request: its page must come from the
// request's own host, or match an entry of -origins. A client without the header is no
// browser.
func originAllowed(origin, host []byte, allowed []allowedOrigin) bool {
	if len(origin) == 0 {
		return true
	}
	scheme, rest, _ := bytes.Cut(origin, []byte("://"))
	pageHost, port, ok := proto.CutPort(rest)
	if ok {
		port = portOf(scheme, port)
		if isOwnHost(scheme, pageHost, port, host) {
			return true
		}
	}
	for i := range allowed {
		a := &allowed[i]
		switch {
		case a.opaque == "*", a.opaque != "" && proto.EqualFold(origin, a.opaque):
			return true
		case ok && a.opaque == "" && a.matches(scheme, pageHost, port):
			return true
		}
	}
	return false
}

// isOwnHost reports whether a page comes from the host that the request asks for. Whether
// that was asked for over TLS, only a proxy knows: both schemes are taken.
func isOwnHost(scheme, pageHost, pagePort, host []byte) bool {
	own, ownPort, ok := proto.CutPort(host)
	return ok && len(defaultPort(scheme)) > 0 && bytes.EqualFold(pageHost, own) && bytes.Equal(pagePort, portOf(scheme, ownPort))
}

func (a *allowedOrigin) matches(scheme, host, port []byte) bool {
	return (a.scheme == "" || proto.EqualFold(scheme, a.scheme)) && proto.EqualFold(host, a.host) && (a.anyPort || string(port) == a.port)
}

// portOf is the port of an origin, or of a host with pages of this scheme: the scheme's
// own if it is left out.
func portOf(scheme, port []byte) []byte {
	if len(port) == 0 {
		return defaultPort(scheme)
	}
	return port
}

var portHTTP, portHTTPS = []byte("80"), []byte("443")

func defaultPort(scheme []byte) []byte {
	switch {
	case proto.EqualFold(scheme, "http"):
		return portHTTP
	case proto.EqualFold(scheme, "https"):
		return portHTTPS
	}
	return nil
}
