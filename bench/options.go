package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
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

	maxRate = 1e7 // a second: more than one machine can
	maxSize = 512 << 10
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
	f.StringVar(&o.Server, "server", "", "a `command` that starts the server, in which {listen} becomes HOST:PORT; it is measured, and drained at the end")
	f.IntVar(&o.PID, "pid", 0, "the process to measure, if the server runs already on this machine")
	f.StringVar(&o.Name, "name", "", "what the report calls the server")
	f.StringVar(&o.Check, "check", checkCounter, "counter holds every answer to counts without a gap or a repeat; none takes any answer")
	f.IntVar(&o.Conns, "conns", 100, "connections")
	f.Float64Var(&o.ConnectRate, "connect-rate", 0, "connections opened a second; 0 is as fast as it goes (churn: 500)")
	f.IntVar(&o.InFlight, "in-flight", 1, "messages of each connection in echo that wait for their answer")
	f.Float64Var(&o.Rate, "rate", 2000, "messages a second in rate, over all connections")
	f.IntVar(&o.Size, "size", 32, "bytes of a message's text")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "how long echo, rate, heartbeat and churn take, each")
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
		return nil, fmt.Errorf("%w; see -help", err)
	}
	o.Scenarios = f.Args()
	return o, o.check()
}

// check looks for what cannot be, and fills in what follows from the rest.
func (o *options) check() error {
	for _, name := range o.Scenarios {
		if !slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == name }) {
			return fmt.Errorf("unknown scenario %q: there are %s", name, strings.Join(scenarioNames(), ", "))
		}
	}
	switch {
	case len(o.Scenarios) == 0:
		return fmt.Errorf("name one or more scenarios: %s; see -help", strings.Join(scenarioNames(), ", "))
	case (o.URL == "") == (o.Server == ""):
		return errors.New("give either -url, for a server that runs, or -server, for one to start")
	case o.Server != "" && !strings.Contains(o.Server, listenPlace):
		return fmt.Errorf("-server must have %s where the address goes, such as 'bin/server -listen %s'", listenPlace, listenPlace)
	case o.Check != checkCounter && o.Check != checkNone:
		return fmt.Errorf("-check must be %s or %s, got %q", checkCounter, checkNone, o.Check)
	case len(o.Scenarios) != len(slices.Compact(slices.Sorted(slices.Values(o.Scenarios)))):
		return errors.New("a scenario is named twice: the figures of a report are found by its name")
	case o.Conns < 1 || o.InFlight < 1 || o.Size < 1 || o.Loops < 1 || o.Duration <= 0:
		return errors.New("-conns, -in-flight, -size, -loops and -duration must be more than 0")
	case o.Size > maxSize:
		return fmt.Errorf("-size must be at most %d, got %d", maxSize, o.Size)
	case !(o.Rate > 0 && o.Rate <= maxRate) || !(o.ConnectRate >= 0 && o.ConnectRate <= maxRate):
		return fmt.Errorf("-rate must be more than 0, -connect-rate 0 or more, both at most %.0f a second", maxRate)
	case o.Processes < 0 || o.Processes > o.Conns:
		return fmt.Errorf("-processes must be 0 to -conns, which is %d; got %d", o.Conns, o.Processes)
	case o.PID < 0 || o.PID > 0 && o.Server != "":
		return errors.New("-pid must be a process's, and goes with -url: with -server the process is known")
	}
	if o.URL != "" {
		if _, err := parseTarget(o.URL, true); err != nil {
			return err
		}
	}
	if o.Processes == 0 {
		o.Processes = processesFor(o.Conns)
	}
	if o.Name == "" {
		o.Name = o.URL + o.Server
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
