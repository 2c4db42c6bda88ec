package proto

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// The client's side: what a load generator or a test needs beside the frames.

// clientKey is the Sec-WebSocket-Key of every request: RFC 6455 §1.3's example,
// since nobody is to be protected from a cache here.
const (
	clientKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	clientAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// AppendRequest appends a client's request to upgrade (RFC 6455 §4.1). The
// subprotocol may be empty.
func AppendRequest(dst []byte, host, target, protocol string) []byte {
	dst = append(dst, "GET "...)
	dst = append(dst, target...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, host...)
	dst = append(dst, "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "+clientKey...)
	if protocol != "" {
		dst = append(dst, "\r\nSec-WebSocket-Protocol: "...)
		dst = append(dst, protocol...)
	}
	return append(dst, "\r\n\r\n"...)
}

// CheckUpgrade reads the header of the answer to AppendRequest's request, and
// returns what is wrong with it (RFC 6455 §4.1).
func CheckUpgrade(header []byte) error {
	status, rest, _ := bytes.Cut(header, []byte("\r\n"))
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 101")) {
		return fmt.Errorf("not upgraded: %s", status)
	}
	for line := range bytes.Lines(rest) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Sec-WebSocket-Accept")) {
			if string(bytes.TrimSpace(value)) == clientAccept {
				return nil
			}
			break
		}
	}
	return errors.New("not upgraded: Sec-WebSocket-Accept is missing or wrong")
}

// ReadCount reads a frame of AppendCount's form, without the cost of a JSON
// parser: the count and the session's ID; ok is false for any other frame.
func ReadCount(payload []byte) (count uint64, session []byte, ok bool) {
	rest, ok := bytes.CutPrefix(payload, []byte(`{"count":`))
	if !ok {
		return 0, nil, false
	}
	digits, rest, ok := bytes.Cut(rest, []byte(`,"session_id":"`))
	if !ok {
		return 0, nil, false
	}
	count, err := strconv.ParseUint(string(digits), 10, 64)
	session, _, ok = bytes.Cut(rest, []byte(`"`))
	return count, session, ok && err == nil
}

// IsHeartbeat reports whether a frame is of AppendHeartbeat's form.
func IsHeartbeat(payload []byte) bool {
	return bytes.HasPrefix(payload, []byte(`{"type":"heartbeat"`))
}
