package main

import (
	"bytes"

	"turnstile/proto"
)

// A handler is an application: what the messages of one endpoint mean. It
// answers by appending to the connection's worker.out; the engine does all the
// rest: frames, control frames, deadlines, backpressure, drain. Its methods run
// on the loop of the connection they are given.
//
// A new application is a file like echo.go and a line in newEndpoints.
type handler interface {
	// onOpen is asked after the 101 has been appended. It may append first
	// frames, refuse, or have the 101 wait with handshakePending.
	onOpen(c *Conn, r *proto.Request) handshakeResult
	// onMessage is given a whole text or binary message, valid until it
	// returns; text is UTF-8.
	onMessage(c *Conn, m proto.Message)
	// onHeartbeat may append what goes with the engine's ping.
	onHeartbeat(c *Conn)
	// onDrain may append a last word; the engine closes with 1001 behind it.
	onDrain(c *Conn)
	// commit is called before what was appended is sent: what that promises
	// must hold from here on. With pending, what worker.out has from
	// worker.held waits until Conn.OnCommitted, or OnClaimed, is called.
	commit(c *Conn) (pending bool)
	// onClosed is the end of a connection that onOpen has not refused.
	onClosed(c *Conn)
}

// An endpoint is a path, without its last slash, and the application there.
type endpoint struct {
	path string
	handler
}

func (s *server) newEndpoints() []*endpoint {
	endpoints := []*endpoint{{"/ws/chat", &counter{store: s.store}}}
	if s.config.Echo {
		endpoints = append(endpoints, &endpoint{"/ws/echo", echo{}})
	}
	return endpoints
}

// endpointOf is the endpoint at path, with or without its last slash; nil if
// there is none.
func (s *server) endpointOf(path []byte) *endpoint {
	path = bytes.TrimSuffix(path, []byte("/"))
	for _, e := range s.endpoints {
		if string(path) == e.path {
			return e
		}
	}
	return nil
}
