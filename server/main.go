// Command server is Turnstile: a WebSocket server that counts the messages of
// each session, on a fixed number of event loops. See DESIGN.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	stdlog "log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
)

// The exit codes. A drain that its time-out cuts short is a success too: somebody asked
// for it.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// revision is what git calls the source of this binary. The build sets it
// (go build -ldflags "-X main.revision=…", as the Makefile does).
var revision = "unknown"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	fds, err := netpoll.RaiseFDLimit()
	if err != nil {
		return complain(fmt.Errorf("cannot raise the limit of open files: %w", err), exitFailure)
	}
	cpus := runtime.GOMAXPROCS(0) // it respects CPU affinity and cgroup limits
	config, err := parseConfig(args, os.Environ(), cpus, int(min(fds, 1<<31-1)), os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return complain(err, exitUsage)
	}
	if config.Version {
		fmt.Println(versionLine())
		return exitOK
	}
	if config.Tell != "" {
		if err := tell(config.Control, config.Tell, os.Stdout); err != nil {
			return complain(err, exitFailure)
		}
		return exitOK
	}
	if config.HealthCheck != "" {
		if err := checkHealth(config.HealthCheck); err != nil {
			return complain(err, exitFailure)
		}
		return exitOK
	}
	tuneRuntime(config)
	return serve(config)
}

// tuneRuntime sets what an operator has not set in the environment.
func tuneRuntime(config *Config) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(config.Workers + spareProcessors)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// spareProcessors is how many Ps the Go scheduler gets beside one for each worker. A
// loop that waits in the kernel keeps its P for some microseconds; without a spare one,
// every wake-up would first have to wake another thread. More bring nothing, and each
// costs memory.
const spareProcessors = 2

// gcPercent keeps the heap closer to what is alive than Go's default of 100.
// Messages make no garbage, so collecting earlier costs next to nothing.
const gcPercent = 50

func serve(config *Config) int {
	signals := notifyStop()
	unblockStderr()
	// Without a reader of the log the server goes on: a write fails with EPIPE instead.
	signal.Ignore(syscall.SIGPIPE)
	log, queue := newLogger(config, descriptor(unix.Stdout))
	defer queue.Close()
	stdlog.SetFlags(0)
	stdlog.SetOutput(libraryLog{log})
	config.warnOfUnknown(log)
	s, err := newServer(config, log, queue)
	if err != nil {
		return complain(err, exitFailure)
	}
	if err := s.run(signals); err != nil {
		log.Error().Err(err).Msg("server_failed")
		return exitFailure
	}
	return exitOK
}

// unblockStderr lets the text of a panic be lost rather than wait for somebody who does not
// read it: Go writes that by itself. Only a pipe is opened anew, so that nobody who shares
// it sees it change; where that is not allowed, all stays as it was.
func unblockStderr() {
	var stat unix.Stat_t
	if unix.Fstat(unix.Stderr, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return
	}
	fd, err := unix.Open("/proc/self/fd/2", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Dup3(fd, unix.Stderr, 0)
	unix.Close(fd)
}

// notifyStop returns the signals that ask the server to stop. SIGHUP says that the
// terminal is gone; whoever started the server with SIGHUP ignored, as nohup(1) does,
// wants it to stay.
func notifyStop() <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	return signals
}

// complain says on standard error why the process ends. It does not wait for long for
// somebody who does not read that.
func complain(err error, code int) int {
	said := make(chan struct{})
	go func() {
		fmt.Fprintln(os.Stderr, "server:", err)
		close(said)
	}()
	select {
	case <-said:
	case <-time.After(logExitPatience):
	}
	return code
}
