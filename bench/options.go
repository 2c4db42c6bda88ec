package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"turnstile/netpoll"
)

// options are what a user can set.
type options struct {
	URL         string
	Server      string // a command that is started and measured
	PID         int    // of the server, if it runs already
	Name        string
	Check       string
	Conns       int
	ConnectRate float64
	InFlight    int
	Rate        float64
	Size        int
	Duration    time.Duration
	Processes   int
	Loops       int
	Out         string // a folder for the report
	Targets     bool
	Quiet       bool
	Scenarios   []string

	folder string // in which the server is started
}

const (
	checkCounter = "counter"
	checkNone    = "none"

	maxRate      = 1e7 // a second: more than one machine can
	maxSize      = 512 << 10
	maxInFlight  = 1 << 20
	maxLoops     = 64
	maxProcesses = 64 // of the generator, where file descriptors need so many
)

// clientsEach is how many clients one process has file descriptors for.
func clientsEach() int {
	const spare = 100 // standard streams, loops, other processes
	limit, err := netpoll.RaiseFDLimit()
	if err != nil || limit > 1<<20 {
		limit = 1 << 20
	}
	return max(1, int(limit)-spare)
}

// processesFor is how many processes so many clients need.
func processesFor(conns int) int { return (conns + clientsEach() - 1) / clientsEach() }

// parseOptions reads the command line. The error is one line; flag.ErrHelp
// when the usage was asked for, and printed to out.
func parseOptions(args []string, out io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.URL, "url", "", "the server: ws://HOST:PORT/PATH, or unix:SOCKET:PATH; with -server it is found")
	f.StringVar(&o.Server, "server", "",
		"a `command` that starts the server, in which {listen} becomes HOST:PORT; it is measured, and drained at the end")
	f.IntVar(&o.PID, "pid", 0, "the process to measure, if the server runs already on this machine")
	f.StringVar(&o.Name, "name", "", "what the report calls the server")
	f.StringVar(&o.Check, "check", checkCounter, "counter holds every answer to counts without a gap or a repeat; none takes any answer")
	f.IntVar(&o.Conns, "conns", 100, "connections")
	f.Float64Var(&o.ConnectRate, "connect-rate", 0, "connections opened a second; 0 is as fast as it goes (churn: 500)")
	f.IntVar(&o.InFlight, "in-flight", 1, "messages of each connection in echo that wait for their answer")
	f.Float64Var(&o.Rate, "rate", 2000, "messages a second in rate and storm, over all connections")
	f.IntVar(&o.Size, "size", 32, "bytes of a message's text")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "how long echo, sparse, rate, heartbeat and churn take, each")
	f.IntVar(&o.Processes, "processes", 0, "processes of the generator; 0 is as many as file descriptors need")
	f.IntVar(&o.Loops, "loops", 2, "event loops of each process")
	f.StringVar(&o.Out, "out", "", "a `folder` for report.json and report.html")
	f.BoolVar(&o.Targets, "targets", false, "hold the figures to the project's targets, and end with exit code 1 if one falls short")
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printUsage(out, f)
			return nil, err
		}
		return nil, plain(err, f)
	}
	o.Scenarios = f.Args()
	return o, o.check()
}

// plain turns the flag package's error into one that starts with the flag, as
// the server's do.
func plain(err error, f *flag.FlagSet) error {
	rest, ok := strings.CutPrefix(err.Error(), "invalid value ")
	if !ok {
		return fmt.Errorf("%w; see %s -help", err, f.Name())
	}
	value, rest, _ := strings.Cut(rest, " for flag ")
	name, _, _ := strings.Cut(rest, ": ")
	wanted := "a whole number"
	switch f.Lookup(name[1:]).Value.(flag.Getter).Get().(type) {
	case float64:
		wanted = "a number"
	case time.Duration:
		wanted = "a duration, such as 10s or 1m30s"
	}
	return fmt.Errorf("%s must be %s, got %s", name, wanted, value)
}

// check looks for what cannot be, and fills in what follows from the rest.
func (o *options) check() error {
	for _, check := range []func() error{o.checkScenarios, o.checkServer, o.checkNumbers, o.checkConns} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) checkScenarios() error {
	all := strings.Join(scenarioNames(), ", ")
	if len(o.Scenarios) == 0 {
		return fmt.Errorf("name one or more scenarios: %s; see bench -help", all)
	}
	for i, name := range o.Scenarios {
		switch {
		case strings.HasPrefix(name, "-"):
			return fmt.Errorf("%s stands behind a scenario: flags come first", name)
		case !slices.Contains(scenarioNames(), name):
			return fmt.Errorf("unknown scenario %q: there are %s", name, all)
		case slices.Contains(o.Scenarios[:i], name):
			return fmt.Errorf("the scenario %s is named twice: the figures of a report are found by its name", name)
		}
	}
	return nil
}

// checkServer looks at what is measured, and names it.
func (o *options) checkServer() error {
	switch {
	case (o.URL == "") == (o.Server == ""):
		return errors.New("give either -url, for a server that runs, or -server, for one to start")
	case o.Server != "" && !strings.Contains(o.Server, listenPlace):
		return fmt.Errorf("-server must have %s where the address goes, such as 'bin/server -listen %s', got %q",
			listenPlace, listenPlace, o.Server)
	case o.Check != checkCounter && o.Check != checkNone:
		return fmt.Errorf("-check must be %s or %s, got %q", checkCounter, checkNone, o.Check)
	case o.PID < 0:
		return fmt.Errorf("-pid must be the number of a process, got %d", o.PID)
	case o.PID > 0 && o.Server != "":
		return errors.New("-pid goes with -url: the process that -server starts is known")
	}
	if o.Name == "" && o.Server != "" {
		o.Name = filepath.Base(strings.Fields(o.Server)[0])
	}
	if o.Name == "" {
		o.Name = o.URL
	}
	return nil
}

func (o *options) checkNumbers() error {
	for _, whole := range []struct {
		name             string
		value, low, high int
	}{
		{"-in-flight", o.InFlight, 1, maxInFlight},
		{"-size", o.Size, 1, maxSize},
		{"-loops", o.Loops, 1, maxLoops},
	} {
		if whole.value < whole.low || whole.value > whole.high {
			return fmt.Errorf("%s must be %d to %d, got %d", whole.name, whole.low, whole.high, whole.value)
		}
	}
	switch {
	case o.Duration <= 0 || o.Duration > maxDuration:
		return fmt.Errorf("-duration must be more than 0 and at most %v, got %v", maxDuration, o.Duration)
	case !(o.Rate > 0 && o.Rate <= maxRate):
		return fmt.Errorf("-rate must be more than 0 and at most %.0f messages a second, got %v", maxRate, o.Rate)
	case !(o.ConnectRate >= 0 && o.ConnectRate <= maxRate):
		return fmt.Errorf("-connect-rate must be 0 to %.0f connections a second, got %v", maxRate, o.ConnectRate)
	}
	return nil
}

// maxDuration is more than anybody waits for.
const maxDuration = 30 * 24 * time.Hour

// checkConns looks at what this machine has file descriptors and ports for, and
// divides the connections among processes.
func (o *options) checkConns() error {
	url := o.URL
	if url == "" {
		url = "ws://" + serverHost + ":1" + defaultPath // its port is not known yet
	}
	t, err := parseTarget(url, true)
	if err != nil {
		return err
	}
	files, ports := maxProcesses*clientsEach(), t.mostClients()
	needed := processesFor(o.Conns)
	sensible := max(needed, runtime.NumCPU())
	switch {
	case o.Conns < 1:
		return fmt.Errorf("-conns must be more than 0, got %d", o.Conns)
	case o.Conns > files:
		return fmt.Errorf("-conns must be at most %d, got %d: %d processes of the generator have no more open files (ulimit -Hn)",
			files, o.Conns, maxProcesses)
	case o.Conns > ports:
		return fmt.Errorf("-conns must be at most %d, got %d: "+
			"this machine has no more ports to connect to %s from (net.ipv4.ip_local_port_range)",
			ports, o.Conns, t.host)
	case o.Processes < 0 || o.Processes > min(o.Conns, sensible):
		return fmt.Errorf("-processes must be 0 to %d, got %d: one for each processor, connection, or %d connections is enough",
			min(o.Conns, sensible), o.Processes, clientsEach())
	}
	if o.Processes == 0 {
		o.Processes = needed
	}
	return nil
}

func printUsage(out io.Writer, f *flag.FlagSet) {
	fmt.Fprint(out, `bench: measures a WebSocket server

Usage: bench [flags] SCENARIO...
       bench compare OLD.json NEW.json
       bench peers [flags]
       bench smoke [flags] URL

Scenarios, on the same connections one after the other:
`)
	for _, s := range scenarios {
		fmt.Fprintf(out, "  %-10s %s\n", s.name, s.what)
	}
	fmt.Fprint(out, "\nFlags:\n")
	f.SetOutput(out)
	f.PrintDefaults()
}
