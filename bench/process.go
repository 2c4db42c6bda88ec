package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// A fleet is the generator's processes. The first process of bench leads them,
// and generates no load itself.
type fleet []*process

// A process is one of them: a service, called by net/rpc over its standard
// input and output.
type process struct {
	cmd *exec.Cmd
	rpc *rpc.Client
}

// generatorArgument, as the only one, makes the program one of the processes.
const generatorArgument = "-generator"

// startFleet divides the clients among the processes: one has file descriptors
// for only so many of them.
func startFleet(o *options) (f fleet, err error) {
	for i := range o.Processes {
		first := i * o.Conns / o.Processes
		p, err := startProcess(Share{Options: o, Process: i, First: first, Count: (i+1)*o.Conns/o.Processes - first})
		if err != nil {
			f.close()
			return nil, err
		}
		f = append(f, p)
	}
	return f, nil
}

func startProcess(s Share) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program: %w", err)
	}
	cmd := exec.Command(self, generatorArgument)
	cmd.Stderr = os.Stderr
	// ^C is for the first process, which tells the others.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start a process of the generator: %w", err)
	}
	p := &process{cmd: cmd, rpc: rpc.NewClient(pipes{stdout, stdin})}
	return p, p.call("Open", s, &struct{}{})
}

func (p *process) call(method string, args, reply any) error {
	if err := p.rpc.Call("generator."+method, args, reply); err != nil {
		return fmt.Errorf("a process of the generator: %w", err)
	}
	return nil
}

// all calls act for each process at the same time.
func (f fleet) all(act func(i int, p *process) error) error {
	errs := make([]error, len(f))
	var wg sync.WaitGroup
	for i, p := range f {
		wg.Go(func() { errs[i] = act(i, p) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// run has all processes carry out a step, and adds up what became of it. When
// ctx is done, the step ends early, and so do all that follow.
func (f fleet) run(ctx context.Context, s Step) (Outcome, error) {
	s.Rate /= float64(len(f))
	defer context.AfterFunc(ctx, f.stop)()
	total := Outcome{Seen: newSeen()}
	var mu sync.Mutex
	err := f.all(func(_ int, p *process) error {
		var o Outcome
		if err := p.call("Run", s, &o); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		total.merge(o)
		return nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return total, err
}

func (f fleet) stop() {
	f.all(func(_ int, p *process) error { return p.call("Stop", struct{}{}, &struct{}{}) })
}

// counters asks each process how far it is.
func (f fleet) counters() ([]Counters, error) {
	all := make([]Counters, len(f))
	err := f.all(func(i int, p *process) error { return p.call("Counters", struct{}{}, &all[i]) })
	return all, err
}

func (f fleet) close() {
	for _, p := range f {
		p.rpc.Close()
		p.cmd.Wait()
	}
}

// pipes are a connection of two ends.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.WriteCloser.Close(), p.ReadCloser.Close()) }

// A Share is the clients of one process.
type Share struct {
	Options      *options
	Process      int // which one it is
	First, Count int
}

// A service is what a process of the generator does for the first one.
type service struct {
	ctx       context.Context
	stop      context.CancelFunc
	generator *generator
}

// serve does what the first process asks for, until standard input ends.
func serve() {
	s := &service{}
	s.ctx, s.stop = context.WithCancel(context.Background())
	server := rpc.NewServer()
	server.RegisterName("generator", s)
	server.ServeConn(pipes{untilEnd{s.stop}, os.Stdout})
	if s.generator != nil {
		s.generator.close()
	}
}

// untilEnd is standard input. Where that ends, the first process has ended, and a
// step under way is for nobody.
type untilEnd struct{ stop func() }

func (u untilEnd) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	if err != nil {
		u.stop()
	}
	return n, err
}

func (u untilEnd) Close() error { return os.Stdin.Close() }

// Open makes the clients. It is called first, and once.
func (s *service) Open(share Share, _ *struct{}) (err error) {
	s.generator, err = newGenerator(share.Options, share)
	return err
}

// Run carries out a step.
func (s *service) Run(step Step, o *Outcome) (err error) {
	*o, err = s.generator.run(s.ctx, step)
	return err
}

// Counters tells how far the step is.
func (s *service) Counters(_ struct{}, c *Counters) error {
	*c = s.generator.counters()
	return nil
}

// Stop ends the step under way, and all that follow.
func (s *service) Stop(_ struct{}, _ *struct{}) error {
	s.stop()
	return nil
}
