package main

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"
)

// A scenario is what a user asks for by name.
type scenario struct {
	name string
	what string
	run  func(*run, *part) error
}

// scenarios is all of them, in the order in which they make sense.
var scenarios []scenario

func init() { // breaks the circle between the table and the options
	scenarios = []scenario{
		{"connect", "open all connections: upgrades a second, their latency and CPU", (*run).connect},
		{"idle", "memory of the server for each connection that does nothing", (*run).idle},
		{"echo", "closed loop: each answer is followed by the next message", (*run).echo},
		{"rate", "open loop: a fixed number of messages a second, latency from when each was due", (*run).rate},
		{"heartbeat", "say nothing, and watch what the server sends", (*run).heartbeat},
		{"resume", "cut all connections; all come back with their sessions at once", (*run).resume},
		{"churn", "connect, send, leave, again and again: memory has to come back", (*run).churn},
	}
}

func scenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// A run is one call of the program: its scenarios on one squad.
type run struct {
	ctx     context.Context
	options *options
	squad   *squad
	server  *server
	screen  *screen
	report  *report
	empty   usage // of the server, before the first connection
	sockets int64 // kernel memory, before the first connection
}

// do runs the scenarios one after the other, until one fails or ctx is done.
func (r *run) do() error {
	var err error
	if r.empty, err = usageOfTree(r.server.pid); err != nil {
		return err
	}
	r.sockets = socketMemory()
	for _, name := range r.options.Scenarios {
		for _, s := range scenarios {
			if s.name != name {
				continue
			}
			p := &part{Name: s.name, Errors: make(map[string]int64)}
			r.report.Parts = append(r.report.Parts, p)
			if err := s.run(r, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// step carries out a step as a part of p: its errors and samples are p's.
func (r *run) step(p *part, s step) (outcome, usage, error) {
	before, err := usageOfTree(r.server.pid)
	if err != nil {
		return outcome{}, usage{}, err
	}
	w := r.startSampler(p)
	o, err := r.squad.run(r.ctx, s, w.set)
	w.stop()
	for what, n := range o.Errors {
		p.Errors[what] += n
	}
	p.Seconds += o.Elapsed.Seconds()
	after, usageErr := usageOfTree(r.server.pid)
	if err == nil {
		err = usageErr
	}
	after.User -= before.User
	after.System -= before.System
	// A loop that is busy for nine tenths of the time measures itself.
	if o.Elapsed > time.Second && o.CPU.Seconds() > 0.9*o.Elapsed.Seconds()*float64(min(r.options.Loops*r.options.Processes, r.report.Machine.Cores)) {
		p.Saturated = true
	}
	return o, after, err
}

// opened makes sure that all connections are open.
func (r *run) opened(p *part) error {
	_, _, err := r.step(p, step{Kind: stepConnect, Rate: r.options.ConnectRate, Resume: true})
	return err
}

func (r *run) connect(p *part) error {
	o, u, err := r.step(p, step{Kind: stepConnect, Rate: r.options.ConnectRate})
	n := o.Upgrade.TotalCount()
	least := float64(r.options.Conns)
	p.add("connected", "", "more", float64(o.Open)).Least = &least
	if n > 0 {
		p.add("upgrades a second", "/s", "more", float64(n)/o.Elapsed.Seconds())
		r.addServerCPU(p, "an upgrade", u, n)
	}
	p.addLatency("upgrade", o.Upgrade)
	p.addErrors()
	return err
}

// idleTime is how long a server gets to give back what connecting has cost.
const idleTime = 3 * time.Second

func (r *run) idle(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	o, _, err := r.step(p, step{Kind: stepWatch, Duration: idleTime})
	if err != nil {
		return err
	}
	u, err := usageOfTree(r.server.pid)
	if n := float64(o.Open); n > 0 && r.server.pid != 0 {
		p.add("resident memory a connection", "B", "less", float64(u.Resident-r.empty.Resident)/n)
		p.add("anonymous memory a connection", "B", "less", float64(u.Anonymous-r.empty.Anonymous)/n)
		p.add("resident memory of the empty server", "MB", "less", float64(r.empty.Resident)/1e6)
		p.add("threads", "", "less", float64(u.Threads))
	}
	if n := float64(o.Open); n > 0 {
		p.add("kernel memory a connection, both ends", "B", "", float64(socketMemory()-r.sockets)/n)
	}
	p.addErrors()
	return err
}

func (r *run) echo(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	o, u, err := r.step(p, step{Kind: stepEcho, InFlight: r.options.InFlight, Duration: r.options.Duration})
	r.addMessages(p, o, u)
	p.addErrors()
	return err
}

func (r *run) rate(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	o, u, err := r.step(p, step{Kind: stepRate, Rate: r.options.Rate, Duration: r.options.Duration})
	r.addMessages(p, o, u)
	p.add("generator's own lateness p99", "ms", "", float64(o.Late.ValueAtPercentile(99))/1000)
	p.addErrors()
	return err
}

func (r *run) addMessages(p *part, o outcome, u usage) {
	p.add("messages", "", "", float64(o.Answers))
	if o.Answers > 0 {
		p.add("messages a second", "/s", "more", float64(o.Answers)/o.Elapsed.Seconds())
		r.addServerCPU(p, "a message", u, o.Answers)
	}
	p.addLatency("answer", o.Latency)
	p.add("generator's CPU", "cores", "", o.CPU.Seconds()/o.Elapsed.Seconds())
}

// addServerCPU adds what each of n cost the server.
func (r *run) addServerCPU(p *part, each string, u usage, n int64) {
	if r.server.pid == 0 {
		return
	}
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	p.add("server CPU "+each, "µs", "less", per(u.CPU()))
	p.add("of it user", "µs", "", per(u.User))
	p.add("of it system", "µs", "", per(u.System))
}

func (r *run) heartbeat(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	o, u, err := r.step(p, step{Kind: stepWatch, Duration: r.options.Duration})
	p.add("heartbeats", "", "", float64(o.Beats))
	if o.Beats > 0 && r.server.pid != 0 {
		r.addServerCPU(p, "a heartbeat", u, o.Beats)
		p.add("server CPU", "%", "less", 100*u.CPU().Seconds()/o.Elapsed.Seconds())
	}
	if o.Beat.TotalCount() > 0 {
		seconds := func(percentile float64) float64 { return float64(o.Beat.ValueAtPercentile(percentile)) / 1e6 }
		p.add("between two of a client, p1", "s", "", seconds(1))
		p.add("between two of a client, p50", "s", "", seconds(50))
		p.add("between two of a client, p99", "s", "", seconds(99))
	}
	p.addErrors()
	return err
}

func (r *run) resume(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	if r.options.Check == checkCounter { // sessions are known by their first answer
		if _, _, err := r.step(p, step{Kind: stepEcho, InFlight: 1, Duration: time.Millisecond}); err != nil {
			return err
		}
	}
	if _, _, err := r.step(p, step{Kind: stepCut}); err != nil {
		return err
	}
	o, u, err := r.step(p, step{Kind: stepConnect, Resume: true})
	if err != nil {
		return err
	}
	least := float64(r.options.Conns)
	p.add("resumed", "", "more", float64(o.Open)).Least = &least
	p.add("time until all are back", "s", "less", o.Elapsed.Seconds())
	r.addServerCPU(p, "a resume", u, max(o.Upgrade.TotalCount(), 1))
	p.addLatency("resume", o.Upgrade)
	// The counts go on where they were: a message each shows it.
	o, _, err = r.step(p, step{Kind: stepEcho, InFlight: 1, Duration: time.Millisecond})
	p.addErrors()
	return err
}

const churnRate = 500

func (r *run) churn(p *part) error {
	rate := r.options.ConnectRate
	if rate == 0 {
		rate = churnRate
	}
	before, err := usageOfTree(r.server.pid)
	if err != nil {
		return err
	}
	o, u, err := r.step(p, step{Kind: stepChurn, Rate: rate, Duration: r.options.Duration})
	if err != nil {
		return err
	}
	if _, _, err := r.step(p, step{Kind: stepWatch, Duration: idleTime}); err != nil {
		return err
	}
	after, err := usageOfTree(r.server.pid)
	p.add("connections", "", "more", float64(o.Upgrade.TotalCount()))
	r.addServerCPU(p, "a connection with its message", u, max(o.Upgrade.TotalCount(), 1))
	if r.server.pid != 0 {
		p.add("resident memory that did not come back", "MB", "less", float64(after.Resident-before.Resident)/1e6)
	}
	p.addLatency("upgrade", o.Upgrade)
	p.addErrors()
	return err
}

// addErrors adds the number of errors, which has to be none.
func (p *part) addErrors() {
	var sum int64
	for n := range maps.Values(p.Errors) {
		sum += n
	}
	none := 0.0
	p.add("errors", "", "less", float64(sum)).Most = &none
}

// A sampler takes a sample of a step now and then.
type sampler struct {
	run   *run
	part  *part
	began time.Time
	done  chan struct{}
	ended sync.WaitGroup

	mu       sync.Mutex
	counters counters
}

const sampleEvery = 500 * time.Millisecond

func (r *run) startSampler(p *part) *sampler {
	w := &sampler{run: r, part: p, began: time.Now(), done: make(chan struct{})}
	w.ended.Go(w.sample)
	return w
}

func (w *sampler) set(c counters) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counters = c
}

func (w *sampler) stop() {
	close(w.done)
	w.ended.Wait()
}

func (w *sampler) sample() {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	var last counters
	lastAt, lastOwn := time.Now(), ownCPU()
	lastUsage, _ := usageOfTree(w.run.server.pid)
	for {
		select {
		case <-w.done:
			return
		case <-ticker.C:
		}
		w.mu.Lock()
		now := w.counters
		w.mu.Unlock()
		u, err := usageOfTree(w.run.server.pid)
		if err != nil {
			return // the step will tell
		}
		passed := time.Since(lastAt).Seconds()
		s := sample{
			At: w.part.Seconds + time.Since(w.began).Seconds(), Connections: now.Open,
			Rate: float64(now.Answers-last.Answers) / passed, Resident: u.Resident,
			ServerCPU: (u.CPU() - lastUsage.CPU()).Seconds() / passed, BenchCPU: (ownCPU() - lastOwn).Seconds() / passed,
		}
		w.part.Series = append(w.part.Series, s)
		w.run.screen.show(w.part.Name, s, now, fmt.Sprintf("%.0f s", s.At))
		last, lastAt, lastOwn, lastUsage = now, time.Now(), ownCPU(), u
	}
}
