package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
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
		{"sparse", "open loop, as most users' load is: each connection sends once in five seconds", (*run).sparse},
		{"rate", "open loop: a fixed number of messages a second, latency from when each was due", (*run).rate},
		{"heartbeat", "say nothing, and watch what the server sends", (*run).heartbeat},
		{"resume", "cut all connections; all come back with their sessions at once", (*run).resume},
		{"storm", "nine tenths are cut and come back at once, with a message each; the others send at -rate meanwhile", (*run).storm},
		{"churn", "connect, send, leave, again and again: memory has to come back", (*run).churn},
	}
}

func scenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// A run is one call of the program: its scenarios on one fleet.
type run struct {
	ctx     context.Context
	options *options
	fleet   fleet
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
			p := newPart(s.name)
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
func (r *run) step(p *part, s Step) (Outcome, usage, error) {
	before, err := usageOfTree(r.server.pid)
	if err != nil {
		return Outcome{Seen: newSeen()}, usage{}, r.gone(err)
	}
	machine := machineCPU()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stop := r.startSampler(p, s, cancel)
	o, err := r.fleet.run(ctx, s)
	stop()
	for what, n := range o.Errors {
		p.Errors[what] += n
	}
	p.Seconds += o.At.Seconds()
	after, usageErr := usageOfTree(r.server.pid)
	if usageErr != nil {
		return o, usage{}, r.gone(usageErr)
	}
	used := after.since(before)
	if o.At >= time.Second && slices.Contains([]StepKind{stepEcho, stepRate, stepStorm}, s.Kind) {
		p.Limits = append(p.Limits, r.limits(s, &o, used, machineCPU()-machine)...)
	}
	return o, used, err
}

// gone says that the server has ended, and what it said last.
func (r *run) gone(err error) error {
	if r.server.cmd == nil {
		return err
	}
	<-r.server.exited // it is gone from /proc just before
	return fmt.Errorf("the server ended in the middle: %s", r.server.lastWords())
}

// lateNotice is what the generator's lateness may be without a word.
const lateNotice = 500 // microseconds

// limits says where a step has measured something else than the server. machine
// is the CPU time of all processes of the machine, other people's included.
func (r *run) limits(s Step, o *Outcome, server usage, machine time.Duration) (limits []string) {
	say := func(format string, args ...any) { limits = append(limits, fmt.Sprintf(format, args...)) }
	cores := float64(r.report.Machine.Cores)
	seconds := o.At.Seconds()
	// A loop that is busy for nine tenths of the time measures itself.
	if o.CPU.Seconds() > 0.9*seconds*min(float64(r.options.Loops*r.options.Processes), cores) {
		say("the generator was busy all the time: it has measured itself")
	}
	if wanted := s.Rate * s.Duration.Seconds(); s.Kind == stepRate && float64(o.Late.TotalCount()) < 0.99*wanted && r.ctx.Err() == nil {
		say("the generator fell behind: it has sent %s of %s messages", number(float64(o.Late.TotalCount())), number(math.Floor(wanted)))
	}
	if late, answer := o.Late.ValueAtPercentile(99), o.Latency.ValueAtPercentile(99); late > lateNotice && 2*late > answer {
		say("the generator's own lateness is %s of the %s ms of the answers' p99", number(float64(late)/1000), number(float64(answer)/1000))
	}
	if !server.Known {
		return limits
	}
	ours := (server.CPU + o.CPU).Seconds() / seconds
	if ours > 0.95*cores {
		say("server and generator together used %s of %s processors: this is what both reach together", number(ours), number(cores))
	}
	if others := machine.Seconds()/seconds - ours; others > 0.1*cores {
		say("other programs used %s of %s processors meanwhile: a quiet machine has other figures", number(others), number(cores))
	}
	return limits
}

// open opens the connections that are not open. If some cannot be, what follows
// would have another load than it was asked for.
func (r *run) open(p *part, s Step) (Outcome, usage, error) {
	s.Kind = stepConnect
	o, u, err := r.step(p, s)
	if missing := int64(r.options.Conns) - o.Open; err == nil && missing > 0 {
		err = fmt.Errorf("%s of %s connections could not be opened: %s", grouped(missing), grouped(int64(r.options.Conns)), p.mostFrequentError())
	}
	return o, u, err
}

// opened makes sure that all connections are open.
func (r *run) opened(p *part) error {
	_, _, err := r.open(p, Step{Rate: r.options.ConnectRate, Resume: true})
	return err
}

func (r *run) connect(p *part) error {
	o, u, err := r.open(p, Step{Rate: r.options.ConnectRate})
	n := o.Upgrade.TotalCount()
	least := float64(r.options.Conns)
	p.add("connected", "", "more", float64(o.Open)).Least = &least
	if n > 0 {
		p.add("upgrades a second", "/s", "more", float64(n)/o.At.Seconds())
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
	o, _, err := r.step(p, Step{Kind: stepWatch, Duration: idleTime})
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
	return r.messages(p, Step{Kind: stepEcho, InFlight: r.options.InFlight})
}

// sparsePeriod is the time between two messages of a connection, in sparse: 10,000
// connections send 2,000 messages a second.
const sparsePeriod = 5 * time.Second

func (r *run) sparse(p *part) error {
	return r.messages(p, Step{Kind: stepRate, Rate: float64(r.options.Conns) / sparsePeriod.Seconds()})
}

func (r *run) rate(p *part) error {
	return r.messages(p, Step{Kind: stepRate, Rate: r.options.Rate})
}

// messages carries out a step in which messages are sent.
func (r *run) messages(p *part, s Step) error {
	if err := r.opened(p); err != nil {
		return err
	}
	s.Duration = r.options.Duration
	o, u, err := r.step(p, s)
	p.add("messages", "", "", float64(o.Answers))
	if o.Answers > 0 {
		p.add("messages a second", "/s", "more", float64(o.Answers)/o.At.Seconds())
		r.addServerCPU(p, "a message", u, o.Answers)
	}
	p.addLatency("answer", o.Latency)
	if s.Kind == stepRate {
		p.add("generator's own lateness p99", "ms", "", float64(o.Late.ValueAtPercentile(99))/1000)
	}
	p.add("generator's CPU", "cores", "", o.CPU.Seconds()/o.At.Seconds())
	p.addErrors()
	return err
}

const (
	// fewest is how many of a thing make a figure of what each has cost.
	fewest = 1000
	// fewestTicks is how many hundredths of a second of user and system time
	// can be told apart.
	fewestTicks = 20
)

// addServerCPU adds what each of n cost the server.
func (r *run) addServerCPU(p *part, each string, u usage, n int64) {
	if !u.Known {
		return
	}
	f := p.add("server CPU "+each, "µs", "less", 0)
	if n < fewest {
		f.Unit, f.Note = "", fmt.Sprintf("too few: %d of %s", n, number(fewest))
		return
	}
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	f.Value = per(u.CPU)
	if u.User+u.System >= fewestTicks*time.Second/userHZ {
		p.add("of it user", "µs", "", per(u.User))
		p.add("of it system", "µs", "", per(u.System))
	}
}

func (r *run) heartbeat(p *part) error {
	if err := r.opened(p); err != nil {
		return err
	}
	o, u, err := r.step(p, Step{Kind: stepWatch, Duration: r.options.Duration})
	p.add("heartbeats", "", "", float64(o.Beats))
	if o.Beats > 0 && r.server.pid != 0 {
		r.addServerCPU(p, "a heartbeat", u, o.Beats)
		p.add("server CPU", "%", "less", 100*u.CPU.Seconds()/o.At.Seconds())
	}
	if o.Beat.TotalCount() > 0 {
		p.add("between two of a client, p1", "s", "", seconds(o.Beat, 1))
		p.add("between two of a client, p50", "s", "", seconds(o.Beat, 50))
		p.add("between two of a client, p99", "s", "", seconds(o.Beat, 99))
	}
	p.addErrors()
	return err
}

func (r *run) resume(p *part) error {
	if err := r.openedSessions(p); err != nil {
		return err
	}
	if _, _, err := r.step(p, Step{Kind: stepCut}); err != nil {
		return err
	}
	o, u, err := r.open(p, Step{Resume: true})
	if err != nil {
		return err
	}
	least := float64(r.options.Conns)
	p.add("resumed", "", "more", float64(o.Open)).Least = &least
	p.add("time until all are back", "s", "less", o.At.Seconds())
	r.addServerCPU(p, "a resume", u, max(o.Upgrade.TotalCount(), 1))
	p.addLatency("resume", o.Upgrade)
	// The counts go on where they were: one message of each connection shows it.
	o, _, err = r.step(p, Step{Kind: stepEcho, InFlight: 1, Duration: time.Millisecond})
	p.addErrors()
	return err
}

// openedSessions makes sure that all connections are open, and their sessions known:
// their first answer tells those.
func (r *run) openedSessions(p *part) error {
	err := r.opened(p)
	if err == nil && r.options.Check == checkCounter {
		_, _, err = r.step(p, Step{Kind: stepEcho, InFlight: 1, Duration: time.Millisecond})
	}
	return err
}

// quietTime is how long the clients that stay send before a storm.
const quietTime = 2 * time.Second

func (r *run) storm(p *part) error {
	if err := r.openedSessions(p); err != nil {
		return err
	}
	quiet, _, err := r.step(p, Step{Kind: stepRate, Stayers: true, Rate: r.options.Rate, Duration: quietTime})
	if err != nil {
		return err
	}
	o, u, err := r.step(p, Step{Kind: stepStorm, Stayers: true, Rate: r.options.Rate})
	n := o.Served.TotalCount()
	if n == 0 && err == nil {
		return fmt.Errorf("storm has cut nobody: -conns must be more than -loops, got %d", r.options.Conns)
	}
	p.add("came back", "", "more", float64(n)).Least = &o.Cut
	p.add("time until all are served", "s", "less", seconds(o.Served, 100))
	p.add("from the cut to its answer, p50", "s", "less", seconds(o.Served, 50))
	p.add("from the cut to its answer, p99", "s", "less", seconds(o.Served, 99))
	r.addServerCPU(p, "a reconnection", u, max(n, 1))
	p.add("answer p99 of the others, before", "ms", "", float64(quiet.Latency.ValueAtPercentile(99))/1000)
	p.addLatency("answer", o.Latency)
	p.add("generator's own lateness p99", "ms", "", float64(o.Late.ValueAtPercentile(99))/1000)
	p.addErrors()
	return err
}

func seconds(h *Histogram, percentile float64) float64 {
	return float64(h.ValueAtPercentile(percentile)) / 1e6
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
	o, u, err := r.step(p, Step{Kind: stepChurn, Rate: rate, Duration: r.options.Duration})
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
	if _, _, err := r.step(p, Step{Kind: stepWatch, Duration: idleTime}); err != nil {
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
