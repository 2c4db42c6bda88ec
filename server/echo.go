package main

import (
	"turnstile/proto"
	"turnstile/server/engine"
)

// echo sends every message back unchanged.
type echo struct{ engine.Silent }

func (echo) OnMessage(_ *engine.Conn, m proto.Message, out []byte) []byte {
	return proto.AppendFrame(out, m.Op, m.Payload)
}
