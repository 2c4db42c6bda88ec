package session

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// A pipeline is that of go-redis on one connection, used again with its list of commands:
// its own Exec makes a new list each time. It is not safe for concurrent use.
type pipeline struct {
	redis.Pipeliner
	send redis.ProcessPipelineHook
}

func newPipeline(conn *redis.Conn) *pipeline {
	p := &pipeline{Pipeliner: conn.Pipeline()}
	conn.AddHook(pipelineHook{p})
	return p
}

// exec sends the commands and reads the replies. Both have ended when it returns, for go-redis
// does them on the caller's goroutine. What went wrong is in the commands.
func (p *pipeline) exec(ctx context.Context) {
	sent := p.Cmds()
	if len(sent) > 0 {
		p.send(ctx, sent)
	}
	clear(sent)
	p.Discard() // keeps the list's memory
}

// A pipelineHook finds out how go-redis sends a pipeline's commands.
type pipelineHook struct{ pipeline *pipeline }

// DialHook implements redis.Hook.
func (pipelineHook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (pipelineHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook. go-redis calls it for pipelines, and then for
// transactions.
func (h pipelineHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if h.pipeline.send == nil {
		h.pipeline.send = next
	}
	return next
}
