package main

import (
	"context"
	"time"
)

// A sampler takes a sample of a step now and then. It asks the generator when
// it takes one, so that what it divides and by what belong together.
type sampler struct {
	run   *run
	part  *part
	step  Step
	began time.Time

	first, last []Counters // of each process: at the step's begin, and of the last sample
	usage       usage      // of the server, of the last sample
}

const sampleEvery = 500 * time.Millisecond

// startSampler takes samples until it is stopped; gone is called when there is
// no server, or no generator, any more.
func (r *run) startSampler(p *part, s Step, gone func()) (stop func()) {
	w := &sampler{run: r, part: p, step: s, began: time.Now()}
	ctx, cancel := context.WithCancel(r.ctx)
	ended := make(chan struct{})
	if err := w.look(); err != nil {
		gone()
	}
	w.first = w.last
	go func() {
		defer close(ended)
		if w.sample(ctx) != nil {
			gone() // the step will tell why
		}
	}()
	return func() { cancel(); <-ended }
}

func (w *sampler) sample(ctx context.Context) error {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		counters, usage := w.last, w.usage
		if err := w.look(); err != nil {
			return err
		}
		s := w.between(counters, usage)
		w.part.Series = append(w.part.Series, s)
		sum := sumSince(w.first, w.last)
		w.run.screen.show(w.part.Name, s, sum, w.doneOf(sum))
	}
}

// look reads how far both sides are.
func (w *sampler) look() (err error) {
	if w.last, err = w.run.fleet.counters(); err != nil {
		return err
	}
	w.usage, err = usageOfTree(w.run.server.pid)
	return err
}

// between is the sample from an earlier look to the last one.
func (w *sampler) between(counters []Counters, before usage) sample {
	s := sample{
		At: w.part.Seconds + time.Since(w.began).Seconds(), Resident: w.usage.Resident,
		ServerCPU: (w.usage.CPU - before.CPU).Seconds() / (w.usage.At - before.At).Seconds(),
	}
	for i, c := range w.last {
		c = c.since(counters[i])
		s.Connections += c.Open
		s.Rate += float64(c.Answers) / c.At.Seconds()
		s.BenchCPU += c.CPU.Seconds() / c.At.Seconds()
	}
	return s
}

// doneOf is which part of the step is done, 0 to 1.
func (w *sampler) doneOf(now Counters) float64 {
	if w.step.Kind == stepConnect {
		return float64(now.Open) / float64(w.run.options.Conns)
	}
	return time.Since(w.began).Seconds() / max(w.step.Duration.Seconds(), 1e-9)
}
