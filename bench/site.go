package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"turnstile/proto"
)

// A site is a server, or the proxy before it, as a client of either protocol
// sees it.
type site struct {
	url     string
	network string // tcp or unix
	address string
	host    string // of the request's Host
	tls     bool
	timeout time.Duration // of each connection
}

// parseSite reads http://HOST[:PORT], https://HOST[:PORT] or unix:SOCKET.
func parseSite(text string, timeout time.Duration) (*site, error) {
	if socket, ok := strings.CutPrefix(text, "unix:"); ok && socket != "" {
		return &site{url: text, network: "unix", address: socket, host: "localhost", timeout: timeout}, nil
	}
	u, err := url.Parse(text)
	ports := map[string]string{"http": "80", "https": "443"}
	if err != nil || ports[u.Scheme] == "" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("a server must be http://HOST:PORT, https://HOST:PORT or unix:SOCKET, got %q", text)
	}
	port := u.Port()
	if port == "" {
		port = ports[u.Scheme]
	}
	return &site{
		url: text, network: "tcp", address: net.JoinHostPort(u.Hostname(), port), host: u.Host, tls: u.Scheme == "https", timeout: timeout,
	}, nil
}

// dial connects; everything on the connection has to be over by the timeout.
func (s *site) dial() (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	if s.tls {
		dialer := tls.Dialer{Config: &tls.Config{NextProtos: []string{"http/1.1"}}}
		conn, err = dialer.DialContext(ctx, s.network, s.address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, s.network, s.address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot connect: %w", err)
	}
	return conn, conn.SetDeadline(time.Now().Add(s.timeout))
}

// get asks for a page that is made now: the server keeps its metrics for a moment.
func (s *site) get(path string) (status int, body string, err error) {
	conn, err := s.dial()
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nCache-Control: no-cache\r\n\r\n", path, s.host)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "", fmt.Errorf("no answer to GET %s: %w", path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, pageMost))
	return response.StatusCode, string(text), err
}

// pageMost is more than any page of the server's has.
const pageMost = 4 << 20

// chat opens a WebSocket; an empty session asks for a new one.
func (s *site) chat(session string) (*chat, error) {
	conn, err := s.dial()
	if err != nil {
		return nil, err
	}
	path := defaultPath
	if session != "" {
		path += "?session_id=" + session
	}
	if _, err := conn.Write(proto.AppendRequest(nil, s.host, path, "")); err != nil {
		conn.Close()
		return nil, err
	}
	c := &chat{conn: conn, parser: proto.Parser{Rules: &clientRules}}
	if err := c.upgrade(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// upgrade waits for the answer to the request.
func (c *chat) upgrade() (err error) {
	for {
		if end := proto.HeaderEnd(c.buf, 0); end > 0 {
			err = proto.CheckUpgrade(c.buf[:end])
			c.buf = c.buf[end:]
			return err
		}
		if c.buf, err = readMore(c.conn, c.buf); err != nil {
			return fmt.Errorf("no answer to the upgrade: %w", err)
		}
	}
}

// readMore appends what comes next on conn to buf.
func readMore(conn net.Conn, buf []byte) ([]byte, error) {
	var chunk [4 << 10]byte
	n, err := conn.Read(chunk[:])
	if n > 0 {
		err = nil
	}
	return append(buf, chunk[:n]...), err
}
