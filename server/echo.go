package main

import "turnstile/proto"

// echo sends every message back as it came.
type echo struct{}

func (echo) onOpen(*Conn, *proto.Request) handshakeResult { return handshakeUpgraded }

func (echo) onMessage(c *Conn, m proto.Message) {
	c.worker.out = proto.AppendFrame(c.worker.out, m.Op, m.Payload)
}

func (echo) onHeartbeat(*Conn) {}
func (echo) onDrain(*Conn)     {}
func (echo) commit(*Conn) bool { return false }
func (echo) onClosed(*Conn)    {}
