// Command bench measures a WebSocket server: many clients on a few event loops,
// the server's own engine in the other role. See README.md beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"turnstile/netpoll"
)

// The exit codes.
const (
	exitOK        = 0
	exitFellShort = 1 // a figure is not what it is held to, or something failed
	exitUsage     = 2
)

func main() { os.Exit(start(os.Args[1:])) }

func start(args []string) int {
	if _, err := netpoll.RaiseFDLimit(); err != nil {
		return complain(fmt.Errorf("cannot raise the limit of open files: %w", err), exitFellShort)
	}
	if len(args) == 1 && args[0] == generatorArgument {
		serve()
		return exitOK
	}
	if len(args) > 0 {
		switch args[0] {
		case "compare":
			return compare(args[1:])
		case "smoke":
			return smoke(args[1:])
		case "peers":
			return comparePeers(args[1:])
		}
	}
	o, err := parseOptions(args, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return complain(err, exitUsage)
	}
	ctx, stop := interruptible()
	defer stop()
	return measure(ctx, o)
}

// interruptible is a context that ends at the first ^C or SIGTERM; a second one ends
// the process at once.
func interruptible() (ctx context.Context, stop context.CancelFunc) {
	ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// measure runs the scenarios, and reports whatever was measured.
func measure(ctx context.Context, o *options) int {
	r := &run{ctx: ctx, options: o, screen: newScreen(os.Stdout, os.Stdout.Fd(), o.Quiet)}
	r.report = &report{Name: o.Name, Command: o.Server, When: time.Now().UTC(), Machine: thisMachine(), Options: o}
	err := r.all()
	r.report.Cut = ctx.Err() != nil
	if err != nil && !r.report.Cut {
		if len(r.report.Parts) == 0 {
			return complain(err, exitFellShort)
		}
		r.report.Failed = err.Error()
	}
	if o.Targets {
		r.report.hold()
	}
	r.report.judge()
	r.screen.table(r.report)
	if o.Out != "" {
		if err := r.report.write(o.Out); err != nil {
			return complain(err, exitFellShort)
		}
		fmt.Printf("\nthe report is in %s and %s\n", filepath.Join(o.Out, "report.html"), filepath.Join(o.Out, "report.json"))
	}
	if len(r.report.FellShort) > 0 || r.report.Cut || r.report.Failed != "" {
		return exitFellShort
	}
	return exitOK
}

// all opens the server and the fleet, and closes them when the scenarios are
// over.
func (r *run) all() (err error) {
	if r.server, err = openServer(r.ctx, r.options); err != nil {
		return err
	}
	defer func() {
		open := r.openConnections()
		took, ok := r.server.stop()
		if r.server.cmd != nil && err == nil {
			r.addDrain(open, took, ok)
		}
		r.fleet.close()
	}()
	r.report.URL, r.report.Note = r.options.URL, r.server.note
	if r.server.note != "" {
		fmt.Fprintln(os.Stderr, "bench:", r.server.note)
	}
	if r.fleet, err = startFleet(r.options); err != nil {
		return err
	}
	return r.do()
}

func (r *run) openConnections() int64 {
	now, err := r.fleet.counters()
	if err != nil {
		return 0
	}
	return sumSince(make([]Counters, len(now)), now).Open
}

// addDrain reports how the server has ended.
func (r *run) addDrain(open int64, took time.Duration, ok bool) {
	p := newPart("drain")
	p.Seconds = took.Seconds()
	p.add("connections at its begin", "", "", float64(open))
	p.add("drain time", "s", "less", took.Seconds())
	if !ok {
		p.Errors["the server did not end by itself, with exit code 0"]++
	}
	p.addErrors()
	r.report.Parts = append(r.report.Parts, p)
}

func complain(err error, code int) int {
	fmt.Fprintln(os.Stderr, "bench:", err)
	return code
}
