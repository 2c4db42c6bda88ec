package main

import (
	"context"
	"fmt"
	"maps"
	"math"
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

// step carries out a step as a part of p: its errors and samples are p's. It
// ends early, with an error, when the server has gone.
func (r *run) step(p *part, s step) (outcome, usage, error) {
	before, err := usageOfTree(r.server.pid)
	if err != nil {
		return *newOutcome(), usage{}, r.gone(err)
	}
	idle := idleCPU()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	w := r.startSampler(p, s, cancel)
	o, err := r.squad.run(ctx, s, w.set)
	w.stop()
	for what, n := range o.Errors {
		p.Errors[what] += n
	}
	p.Seconds += o.Elapsed.Seconds()
	after, usageErr := usageOfTree(r.server.pid)
	if usageErr != nil {
		return o, usage{}, r.gone(usageErr)
	}
	after.User -= before.User
	after.System -= before.System
	if o.Elapsed >= time.Second && (s.Kind == stepEcho || s.Kind == stepRate) {
		p.Limits = append(p.Limits, r.limits(s, &o, (idleCPU()-idle).Seconds()/o.Elapsed.Seconds())...)
	}
	return o, after, err
}

// gone says that the server has ended, and what it said last.
func (r *run) gone(err error) error {
	if r.server.cmd == nil {
		return err
	}
	<-r.server.exited // it is gone from /proc just before
	return fmt.Errorf("the server ended in the middle: %s", r.server.lastWords())
}

// limits says where a step has measured something else than the server.
func (r *run) limits(s step, o *outcome, idle float64) (limits []string) {
	cores := float64(r.report.Machine.Cores)
	// A loop that is busy for nine tenths of the time measures itself.
	if o.Busy.Seconds() > 0.9*o.Elapsed.Seconds()*min(float64(r.options.Loops*r.options.Processes), cores) {
		limits = append(limits, "the generator was busy all the time: it has measured itself")
	}
	if s.Kind == stepRate && float64(o.Late.TotalCount()) < 0.99*s.Rate*s.Duration.Seconds() && r.ctx.Err() == nil {
		limits = append(limits, fmt.Sprintf("the generator fell behind: it has sent %s of %s messages", number(float64(o.Late.TotalCount())), number(math.Floor(s.Rate*s.Duration.Seconds()))))
	}
	if idle < 0.05*cores {
		limits = append(limits, fmt.Sprintf("none of %.0f processors was idle: this is what server and generator reach together", cores))
	}
	return limits
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
	p.add("generator's CPU", "cores", "", o.Busy.Seconds()/o.Elapsed.Seconds())
}

// addServerCPU adds what each of n cost the server.
func (r *run) addServerCPU(p *part, each string, u usage, n int64) {
	if !u.Known {
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
	n := o.Upgrade.TotalCount()
	p.add("connections", "", "more", float64(n))
	r.addServerCPU(p, "a connection with its message", u, max(n, 1))
	p.addLatency("upgrade", o.Upgrade)
	if err == nil {
		err = r.addLeftMemory(p, before, n)
	}
	p.addErrors()
	return err
}

// addLeftMemory says what n connections have left behind when they are gone and
// the server has had some time.
func (r *run) addLeftMemory(p *part, before usage, n int64) error {
	if r.server.pid == 0 || n == 0 {
		return nil
	}
	if _, _, err := r.step(p, step{Kind: stepWatch, Duration: idleTime}); err != nil {
		return err
	}
	after, err := usageOfTree(r.server.pid)
	if err != nil {
		return r.gone(err)
	}
	left := float64(after.Resident - before.Resident)
	p.add("resident memory that did not come back", "MB", "less", left/1e6)
	p.add("of it for each connection that was", "B", "less", left/float64(n))
	return nil
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
