package main

import (
	"context"
	"sync"
	"time"
)

// A sampler takes a sample of a step now and then.
type sampler struct {
	run    *run
	part   *part
	step   step
	cancel context.CancelFunc // of the step, when the server has gone
	began  time.Time
	done   chan struct{}
	ended  sync.WaitGroup

	mu          sync.Mutex
	first, last counters
}

const sampleEvery = 500 * time.Millisecond

func (r *run) startSampler(p *part, s step, cancel context.CancelFunc) *sampler {
	w := &sampler{run: r, part: p, step: s, cancel: cancel, began: time.Now(), done: make(chan struct{})}
	w.ended.Go(w.sample)
	return w
}

func (w *sampler) set(c counters) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first.CPU == 0 {
		w.first = c
	}
	w.last = c
}

func (w *sampler) stop() {
	close(w.done)
	w.ended.Wait()
}

func (w *sampler) sample() {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	var last counters
	lastAt := time.Now()
	lastUsage, _ := usageOfTree(w.run.server.pid)
	for {
		select {
		case <-w.done:
			return
		case <-ticker.C:
		}
		w.mu.Lock()
		first, now := w.first, w.last
		w.mu.Unlock()
		u, err := usageOfTree(w.run.server.pid)
		if err != nil {
			w.cancel()
			return // the step will tell
		}
		if now.CPU == 0 {
			continue // the first counters have not come yet
		}
		if last.CPU == 0 {
			last.CPU = first.CPU
		}
		passed := time.Since(lastAt).Seconds()
		s := sample{
			At: w.part.Seconds + time.Since(w.began).Seconds(), Connections: now.Open,
			Rate: float64(now.Answers-last.Answers) / passed, Resident: u.Resident,
			ServerCPU: (u.CPU() - lastUsage.CPU()).Seconds() / passed, BenchCPU: (now.CPU - last.CPU).Seconds() / passed,
		}
		w.part.Series = append(w.part.Series, s)
		w.run.screen.show(w.part.Name, s, now, w.doneOf(now))
		last, lastAt, lastUsage = now, time.Now(), u
	}
}

// doneOf is which part of the step is done, 0 to 1.
func (w *sampler) doneOf(now counters) float64 {
	if w.step.Kind == stepConnect {
		return float64(now.Open) / float64(w.run.options.Conns)
	}
	return time.Since(w.began).Seconds() / max(w.step.Duration.Seconds(), 1e-9)
}
