package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"turnstile/netpoll"
	"turnstile/server/session"
)

// Config is everything that an operator can set. Each field is a flag; an
// environment variable is its fallback (-max-message: TURNSTILE_MAX_MESSAGE).
type Config struct {
	Workers             int
	Listen              []string
	Redis               *session.Address // nil for the embedded store
	Heartbeat           time.Duration
	DrainTimeout        time.Duration
	HandshakeTimeout    time.Duration
	WriteTimeout        time.Duration
	StoreTimeout        time.Duration
	SessionTTL          time.Duration
	MaxSessions         int
	MaxConnections      int
	MaxConnectionsPerIP int
	MaxMessage          int
	MessageRate         int
	Origins             []string
	TrustedProxies      []netip.Prefix
	Echo                bool
	LogLevel            string
	LogFormat           string
	DebugListen         string
	Control             string
	TakeOverFrom        string
	Tell                string
	HealthCheck         string // of a server that runs; this process is none

	flags   *flag.FlagSet
	fdLimit int
}

// What can be set at the most; beyond it a value is a slip of the keyboard.
const (
	maxWorkers  = 1024
	maxMessage  = 64 << 20
	maxDuration = 365 * 24 * time.Hour
)

// connectionLimit is how many of the process's file descriptors may be clients'
// sockets. The others are left for listeners, loops, the log, and refusals to
// clients over the limit.
func connectionLimit(fds int) int { return max(fds-256, fds/2) }

// parseConfig reads the command line and the environment. cpus is how many
// processors the process may use, fds how many file descriptors. The error is
// one line that names the flag and what is allowed; flag.ErrHelp when the
// usage was asked for, and printed to out.
func parseConfig(args []string, getenv func(string) string, cpus, fds int, out io.Writer) (*Config, error) {
	c := newConfig(cpus, fds)
	c.fdLimit = fds
	flags := c.flags
	if err := setFromEnvironment(flags, getenv); err != nil {
		return nil, err
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printUsage(out, flags)
			return nil, err
		}
		return nil, plain(err, flags)
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: everything is a flag, and -echo takes its value as -echo=true; see -help", flags.Arg(0))
	}
	return c, c.check(fds)
}

// newConfig declares the flags; the defaults are here and nowhere else.
func newConfig(cpus, fds int) *Config {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	f.SetOutput(io.Discard) // an error is one line, not the whole usage
	c := &Config{flags: f, Listen: []string{":8000"}}
	whole := func(p *int, name string, value, low, high int, usage string) {
		*p = value
		f.Var(&intFlag{p, low, high}, name, usage)
	}
	span := func(p *time.Duration, name string, value, low time.Duration, usage string) {
		*p = value
		f.Var(&durationFlag{p, low}, name, usage)
	}
	choice := func(p *string, name, value, usage string, allowed ...string) {
		*p = value
		f.Var(&choiceFlag{p, allowed}, name, usage+"; one of "+strings.Join(allowed, ", "))
	}
	whole(&c.Workers, "workers", cpus, 1, maxWorkers, "event loops; the default is one for each processor")
	f.Var(&listFlag{&c.Listen, checkListenAddress}, "listen", "`addresses` to listen on, separated by commas: host:port or unix:/path")
	f.Var(&redisFlag{&c.Redis}, "redis", "`url` of the Redis that keeps the sessions: redis://, rediss:// or unix://; several hosts, separated by commas, are a Redis Cluster, or sentinels with ?master_name=; without it, sessions live as long as the process")
	span(&c.Heartbeat, "heartbeat", 30*time.Second, 2*netpoll.Tick, "every how long a heartbeat and a ping are sent; a connection silent for 2.5 of them is closed")
	span(&c.DrainTimeout, "drain-timeout", 10*time.Second, 100*time.Millisecond, "the longest a SIGTERM may take; connections that are left then are cut")
	span(&c.HandshakeTimeout, "handshake-timeout", 5*time.Second, 2*netpoll.Tick, "how long a client may take to send its whole request")
	span(&c.WriteTimeout, "write-timeout", 10*time.Second, 2*netpoll.Tick, "how long a client may leave bytes unread before it is closed as a slow consumer")
	span(&c.StoreTimeout, "store-timeout", 5*time.Second, 200*time.Millisecond, "how long messages and resumes wait for Redis before their connections are closed with 1013, or refused with 503")
	span(&c.SessionTTL, "session-ttl", time.Hour, time.Second, "how long a session is kept after its last connection ended")
	whole(&c.MaxSessions, "max-sessions", 1_000_000, 1, 1<<31-1, "sessions in memory; at the limit the embedded store drops the longest disconnected; with Redis, where only those count that are connected or not stored yet, new ones get 503")
	whole(&c.MaxConnections, "max-connections", connectionLimit(fds), 1, 1<<31-1, "sockets served at once, further ones get 503; the default is what RLIMIT_NOFILE allows")
	whole(&c.MaxConnectionsPerIP, "max-connections-per-ip", 0, 0, 1<<31-1, "sockets for each client address (IPv6: each /64), further ones get 429; 0 is no limit")
	whole(&c.MaxMessage, "max-message", 64<<10, 1, maxMessage, "bytes of the longest message; a longer one closes with 1009")
	whole(&c.MessageRate, "message-rate", 0, 0, 1_000_000, "messages a second for each connection, in bursts of up to a second's worth; more closes with 1008; 0 is no limit")
	f.Var(&listFlag{&c.Origins, checkOrigin}, "origins", "`hosts` whose pages may connect, beside the server's own, separated by commas; * is all")
	f.Var(&prefixesFlag{&c.TrustedProxies}, "trusted-proxies", "`addresses` of proxies whose X-Forwarded-For and X-Real-IP are believed, separated by commas, as IP or CIDR; a unix socket's peer always is")
	f.Var(&boolFlag{&c.Echo}, "echo", "serve /ws/echo/ as well, for conformance suites and benchmarks")
	choice(&c.LogLevel, "log-level", "info", "the least level that is logged", "debug", "info", "warn", "error")
	choice(&c.LogFormat, "log-format", "auto", "auto is console on a terminal and json elsewhere", "auto", "json", "console")
	f.Var(&textFlag{&c.HealthCheck, checkHealthTarget}, "healthcheck", "serve nobody, but ask the server at this `url`, http://HOST:PORT/healthz/ or unix:SOCKET:/healthz/; exit code 0 if it answers 200")
	f.Var(&textFlag{&c.DebugListen, checkTCPAddress}, "debug-listen", "`address`, host:port, that serves net/http/pprof; keep it private")
	f.Var(&textFlag{&c.Control, checkSocketPath}, "control", "`path` of a unix socket at which processes of the same user ask for status, drain and handover")
	f.Var(&textFlag{&c.TakeOverFrom, checkSocketPath}, "take-over-from", "`path` of the -control socket of a running server, whose connections, sessions and listeners are taken over at the start; if nobody is there, the server starts without")
	f.Var(&textFlag{&c.Tell, checkCommand}, "tell", "serve nobody, but give the server at -control this `command`, and print its answer: status, drain, prepare PATH (ask the server with that control socket whether it would hand over) or take-over PATH")
	return c
}

// check looks at what the flags' own checks cannot see.
func (c *Config) check(fds int) error {
	if most := connectionLimit(fds); c.MaxConnections > most {
		return fmt.Errorf("-max-connections must be at most %d under this process's limit of %d open files, got %d: raise the limit (ulimit -n, LimitNOFILE) or lower the flag",
			most, fds, c.MaxConnections)
	}
	if c.Tell != "" && c.Control == "" {
		return errors.New("-tell needs -control, the socket of the server that is told")
	}
	return nil
}

// environmentName is the variable that a flag falls back to.
func environmentName(name string) string {
	return "TURNSTILE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func setFromEnvironment(flags *flag.FlagSet, getenv func(string) string) (err error) {
	flags.VisitAll(func(f *flag.Flag) {
		name := environmentName(f.Name)
		if value := getenv(name); value != "" && err == nil {
			if e := f.Value.Set(value); e != nil {
				err = fmt.Errorf("%s%s is not valid: -%s %w", name, shown("=%q", f, value), f.Name, e)
			}
		}
	})
	return err
}

// shown is how an error quotes a flag's value: not at all if it may have a
// password in it.
func shown(format string, f *flag.Flag, value string) string {
	if _, secret := f.Value.(*redisFlag); secret {
		return ""
	}
	return fmt.Sprintf(format, value)
}

// plain turns the flag package's error into one that starts with the flag.
func plain(err error, flags *flag.FlagSet) error {
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, "invalid value "); ok {
		value, rest, _ := strings.Cut(rest, " for flag ")
		name, why, _ := strings.Cut(rest, ": ")
		return fmt.Errorf("%s %s%s", name, why, shown(", got %s", flags.Lookup(name[1:]), value))
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean value "); ok {
		value, rest, _ := strings.Cut(rest, " for ")
		name, why, _ := strings.Cut(rest, ": ")
		return fmt.Errorf("%s %s, got %s", name, why, value)
	}
	return fmt.Errorf("%s; see -help", text)
}

func printUsage(out io.Writer, flags *flag.FlagSet) {
	fmt.Fprint(out, "server: a WebSocket server that counts the messages of each session\n\nUsage: server [flags]\n\n")
	flags.SetOutput(out)
	flags.PrintDefaults()
	fmt.Fprint(out, "\nEvery flag also reads an environment variable: -max-message reads TURNSTILE_MAX_MESSAGE.\n")
}

// String is the configuration as it stands, as a command line.
func (c *Config) String() string {
	var parts []string
	c.flags.VisitAll(func(f *flag.Flag) { parts = append(parts, fmt.Sprintf("-%s=%s", f.Name, f.Value)) })
	return strings.Join(parts, " ")
}
