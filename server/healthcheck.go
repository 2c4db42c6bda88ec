package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// healthTimeout bounds a health check: an answer that takes longer is none.
const healthTimeout = 3 * time.Second

// checkHealth asks a running server, for images that have no curl: nil if the
// page at target (see parseHealthTarget) answers 200 within healthTimeout.
func checkHealth(target string) error {
	socket, page, err := parseHealthTarget(target)
	if err != nil {
		return err
	}
	var dialer net.Dialer
	client := &http.Client{Timeout: healthTimeout, Transport: &http.Transport{
		// No proxy out of the environment: the server is on this machine.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if socket != "" {
				network, address = "unix", socket
			}
			return dialer.DialContext(ctx, network, address)
		},
	}}
	response, err := client.Get(page)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", target, errors.Unwrap(err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", target, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// parseHealthTarget reads http://HOST:PORT/PAGE, or unix:SOCKET:PAGE; without
// a page it is /healthz/. The socket is empty for TCP.
func parseHealthTarget(target string) (socket, page string, err error) {
	if rest, ok := strings.CutPrefix(target, "unix:"); ok {
		socket, page, _ = strings.Cut(rest, ":")
		target = "http://localhost" + page
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return "", "", errors.New("must be http://HOST:PORT/healthz/ or unix:SOCKET:/healthz/")
	}
	if u.Path == "" {
		u.Path = "/healthz/"
	}
	return socket, u.String(), nil
}

// checkHealthTarget is parseHealthTarget as the check of a flag.
func checkHealthTarget(target string) error {
	_, _, err := parseHealthTarget(target)
	return err
}
