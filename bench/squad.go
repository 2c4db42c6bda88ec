package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A member carries out steps with its share of the clients: the fleet of this
// process, or another process.
type member interface {
	run(ctx context.Context, s step, progress func(counters)) (outcome, error)
	close()
}

// A squad is all members together.
type squad struct {
	members []member
}

// newSquad divides the clients among so many processes: one has file
// descriptors for some 19,000 of them.
func newSquad(o *options) (*squad, error) {
	q := &squad{}
	for i := range o.Processes {
		first := i * o.Conns / o.Processes
		count := (i+1)*o.Conns/o.Processes - first
		var m member
		var err error
		if o.Processes == 1 {
			m, err = newFleet(o, first, count)
		} else {
			m, err = startProcess(o, first, count)
		}
		if err != nil {
			q.close()
			return nil, err
		}
		q.members = append(q.members, m)
	}
	return q, nil
}

// run has all members carry out a step, and adds up what became of it.
func (q *squad) run(ctx context.Context, s step, progress func(counters)) (outcome, error) {
	s.Rate /= float64(len(q.members))
	var mu sync.Mutex
	latest := make([]counters, len(q.members))
	outcomes := make([]outcome, len(q.members))
	errs := make([]error, len(q.members))
	var wg sync.WaitGroup
	for i, m := range q.members {
		wg.Go(func() {
			outcomes[i], errs[i] = m.run(ctx, s, func(c counters) {
				mu.Lock()
				defer mu.Unlock()
				latest[i] = c
				var sum counters
				for _, c := range latest {
					if c.CPU == 0 {
						return // not all have told
					}
					sum.add(c)
				}
				progress(sum)
			})
		})
	}
	wg.Wait()
	total := newOutcome()
	for i, o := range outcomes {
		if o.Latency != nil {
			total.merge(o)
		}
		if errs[i] != nil {
			return *total, errs[i]
		}
	}
	return *total, nil
}

func (q *squad) close() {
	for _, m := range q.members {
		m.close()
	}
}

// A request is what a member in another process is told, an answer what it
// says: each a line of JSON.
type (
	request struct {
		Options      *options
		First, Count int
		Step         *step
		Stop         bool
	}
	answer struct {
		Progress *counters
		Outcome  *wireOutcome
		Error    string
	}
	wireOutcome struct {
		outcome
		Upgrade, Latency, Beat, Late *hdrhistogram.Snapshot
	}
)

func toWire(o outcome) *wireOutcome {
	w := &wireOutcome{Upgrade: o.Upgrade.Export(), Latency: o.Latency.Export(), Beat: o.Beat.Export(), Late: o.Late.Export()}
	o.Upgrade, o.Latency, o.Beat, o.Late = nil, nil, nil, nil
	w.outcome = o
	return w
}

func (w *wireOutcome) outcomeOf() outcome {
	o := w.outcome
	o.Upgrade, o.Latency = hdrhistogram.Import(w.Upgrade), hdrhistogram.Import(w.Latency)
	o.Beat, o.Late = hdrhistogram.Import(w.Beat), hdrhistogram.Import(w.Late)
	return o
}

// A process is a member that runs as another process.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *json.Decoder
	in    *json.Encoder
}

// memberArgument, as the only one, makes the program a member.
const memberArgument = "-member"

func startProcess(o *options, first, count int) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, memberArgument)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // ^C is for the first process, which tells the others
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start another process: %w", err)
	}
	p := &process{cmd: cmd, stdin: stdin, in: json.NewEncoder(stdin), out: json.NewDecoder(stdout)}
	return p, p.in.Encode(request{Options: o, First: first, Count: count})
}

func (p *process) run(ctx context.Context, s step, progress func(counters)) (outcome, error) {
	if err := p.in.Encode(request{Step: &s}); err != nil {
		return outcome{}, err
	}
	stopped := context.AfterFunc(ctx, func() { p.in.Encode(request{Stop: true}) })
	defer stopped()
	for {
		var a answer
		if err := p.out.Decode(&a); err != nil {
			return outcome{}, fmt.Errorf("a process of the generator has ended: %w", err)
		}
		switch {
		case a.Progress != nil:
			progress(*a.Progress)
		case a.Outcome != nil:
			return a.Outcome.outcomeOf(), ctx.Err()
		default:
			return outcome{}, fmt.Errorf("a process of the generator: %s", a.Error)
		}
	}
}

func (p *process) close() {
	p.stdin.Close()
	p.cmd.Wait()
}

// runMember is the other process: it does what it is told until its standard
// input ends.
func runMember(in io.Reader, out io.Writer) error {
	requests := make(chan request)
	go func() {
		defer close(requests)
		for decoder := json.NewDecoder(bufio.NewReader(in)); ; {
			var r request
			if decoder.Decode(&r) != nil {
				return
			}
			requests <- r
		}
	}()
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	say := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		encoder.Encode(a)
	}
	first := <-requests
	f, err := newFleet(first.Options, first.First, first.Count)
	if err != nil {
		say(answer{Error: err.Error()})
		return err
	}
	defer f.close()
	for r := range requests {
		if r.Step == nil {
			continue // a stop that came after the step's end
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o, err := f.run(ctx, *r.Step, func(c counters) { say(answer{Progress: &c}) })
			if err != nil && ctx.Err() == nil {
				say(answer{Error: err.Error()})
				return
			}
			say(answer{Outcome: toWire(o)})
		}()
		select {
		case <-done:
		case _, more := <-requests: // a stop, or the end
			cancel()
			<-done
			if !more {
				return nil
			}
		}
		cancel()
	}
	return nil
}
