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
	"turnstile/server/engine"
	"turnstile/server/session"
)

// Config is everything that an operator can set. Each exported field is a row of the
// table below, and has its group.
type Config struct {
	// Where it listens, and to whom.
	Listen         []string
	Origins        []string
	TrustedProxies []netip.Prefix
	Echo           bool
	Compress       int

	// Capacity and limits.
	Workers             int
	MaxConnections      int
	MaxConnectionsPerIP int
	MaxMessage          int
	MessageRate         int

	// Time-outs.
	Heartbeat        time.Duration
	HandshakeTimeout time.Duration
	MessageTimeout   time.Duration
	WriteTimeout     time.Duration
	DrainTimeout     time.Duration

	// Sessions and their store.
	Redis        *session.Address // nil for the embedded store
	SessionTTL   time.Duration
	MaxSessions  int
	StoreTimeout time.Duration

	// Deploying.
	Control      string
	TakeOverFrom string

	// Log and profiles.
	LogLevel    string
	LogFormat   string
	DebugListen string

	// Instead of serving.
	Tell        string
	HealthCheck string // the address of a running server
	Version     bool

	// The table, and what else parseConfig found.
	groups  []settingGroup
	flags   *flag.FlagSet
	files   fileBudget
	unknown []string // variables that look like settings and belong to no flag
}

// The upper bounds of values; a value beyond them is a typing error.
const (
	maxWorkers  = 1024
	maxMessage  = 64 << 20
	maxDuration = 365 * 24 * time.Hour
	unbounded   = 1<<31 - 1
)

// compressFrom is the shortest answer that -compress alone compresses. What is shorter
// becomes a little shorter, if at all.
const compressFrom = 128

// A setting is a row of the table of flags. Flags, environment variables, -help
// and the table in README.md are made of it.
type setting struct {
	name       string
	unit       string // the word behind the name in -help; empty for none
	value      value  // it holds the default
	byDefault  string // how documents describe a default that depends on the machine
	text       string // what the flag does
	when       string // who would set it: the end of a sentence that begins "Set it when "
	noVariable bool   // the flag has no environment variable
}

// A settingGroup is the settings for one purpose.
type settingGroup struct {
	title    string
	settings []setting
}

// newConfig makes the table; the defaults are here and nowhere else.
func newConfig(cpus int) *Config {
	c := &Config{flags: flag.NewFlagSet("server", flag.ContinueOnError)}
	c.flags.SetOutput(io.Discard) // an error is one line, not the whole usage
	c.groups = []settingGroup{
		{"Where it listens, and to whom", c.listening()},
		{"Capacity and limits", c.limits(cpus)},
		{"Time-outs", c.timeouts()},
		{"Sessions and their store", c.sessions()},
		{"Deploying", c.deploying()},
		{"Log and profiles", c.watching()},
		{"Instead of serving", c.commands()},
	}
	for _, group := range c.groups {
		for _, s := range group.settings {
			c.flags.Var(s.value, s.name, s.text)
		}
	}
	return c
}

func (c *Config) listening() []setting {
	c.Listen = []string{":8000"}
	return []setting{
		{name: "listen", unit: "ADDRESSES", value: &listFlag{&c.Listen, checkListenAddress},
			text: "Addresses to listen on, separated by commas: host:port or unix:/path.",
			when: "a proxy connects through a unix socket, or the port is taken"},
		{name: "origins", unit: "ORIGINS", value: &listFlag{&c.Origins, engine.ParseOrigin},
			text: "Whose pages may connect, beside those of the server's own host, separated by commas: a host (any scheme and port), host:port, " +
				"an origin such as https://example.com, null, file://, or * for all.",
			when: "a page of another host connects"},
		{name: "trusted-proxies", unit: "ADDRESSES", value: &prefixesFlag{&c.TrustedProxies},
			text: "Proxies whose X-Forwarded-For and X-Real-IP are believed, as IP or CIDR, separated by commas. " +
				"A client of a unix socket is always believed.",
			when: "a proxy connects over TCP"},
		{name: "echo", value: &boolFlag{&c.Echo},
			text: "Serve /ws/echo/ as well, which sends each message back.",
			when: "a conformance suite or a benchmark runs"},
		{name: "compress", unit: "[=BYTES]", value: &sizeFlag{&c.Compress, compressFrom, maxMessage},
			text: fmt.Sprintf("Compress answers of so many bytes or more (%d without a number) for clients that offer permessage-deflate, "+
				"and take compressed messages from them. It costs CPU, and two to four megabytes for each worker; "+
				"an idle connection costs nothing more.", compressFrom),
			when: "answers are long, and the network is slow or dear"},
	}
}

func (c *Config) limits(cpus int) []setting {
	return []setting{
		{name: "workers", unit: "N", value: whole(&c.Workers, cpus, 1, maxWorkers), byDefault: "one for each processor",
			text: "Event loops, each with its share of the connections.",
			when: "other programs need the processors too"},
		{name: "max-connections", unit: "N", value: whole(&c.MaxConnections, 0, 0, unbounded),
			text: "Sockets that are served at once; further ones get 503. 0 is as many as the limit of open files allows.",
			when: "memory is short"},
		{name: "max-connections-per-ip", unit: "N", value: whole(&c.MaxConnectionsPerIP, 0, 0, unbounded),
			text: "Sockets of one client address (IPv6: of one /64); further ones get 429. 0 is no limit.",
			when: "one client must not take every place"},
		{name: "max-message", unit: "BYTES", value: whole(&c.MaxMessage, 64<<10, 1, maxMessage),
			text: "The longest message; a longer one closes with 1009. Until it is answered, a message takes up to three times as " +
				"much memory as it and its answer are long. An answer can be six times as long as its message.",
			when: "clients send longer messages"},
		{name: "message-rate", unit: "N/s", value: whole(&c.MessageRate, 0, 0, 1_000_000),
			text: "Messages a second of one connection, in bursts of up to a second's worth; more closes with 1008. " +
				"Ten times as many pings, pongs and fragments may come beside them, and 100 in any case. 0 is no limit.",
			when: "one client must not keep a worker busy"},
	}
}

func (c *Config) timeouts() []setting {
	return []setting{
		{name: "heartbeat", unit: "DURATION", value: span(&c.Heartbeat, 30*time.Second, 2*netpoll.Tick),
			text: "How often a heartbeat and a ping are sent. A connection that is silent for 2.5 of them is closed.",
			when: "a proxy on the way ends idle connections sooner"},
		{name: "handshake-timeout", unit: "DURATION", value: span(&c.HandshakeTimeout, 5*time.Second, 2*netpoll.Tick),
			text: "How long a client may take to send its whole request.",
			when: "clients have slow networks"},
		{name: "message-timeout", unit: "DURATION", value: span(&c.MessageTimeout, 30*time.Second, 2*netpoll.Tick),
			text: "How long a client may take to send one message, from its first byte to its last; more closes with 1008.",
			when: "clients have slow networks, or messages are long"},
		{name: "write-timeout", unit: "DURATION", value: span(&c.WriteTimeout, 10*time.Second, 2*netpoll.Tick),
			text: "How long a client may leave bytes unread; then it is closed as a slow consumer.",
			when: "clients have slow networks"},
		{name: "drain-timeout", unit: "DURATION", value: span(&c.DrainTimeout, 10*time.Second, 100*time.Millisecond),
			text: "The longest that the end after a SIGTERM may take. Connections that are left then are cut.",
			when: "the supervisor kills sooner, or clients need longer to leave"},
	}
}

func (c *Config) sessions() []setting {
	return []setting{
		{name: "redis", unit: "URL", value: &redisFlag{&c.Redis},
			text: "The Redis that keeps the sessions: redis://, rediss:// or unix://. Several hosts, separated by commas, are a Redis Cluster, " +
				"or sentinels with ?master_name=. Without it, sessions live as long as the process.",
			when: "sessions must survive a crash, or several servers share them"},
		{name: "session-ttl", unit: "DURATION", value: span(&c.SessionTTL, time.Hour, time.Second),
			text: "How long a session is kept after its last connection ended.",
			when: "clients come back later than that"},
		{name: "max-sessions", unit: "N", value: whole(&c.MaxSessions, 1_000_000, 1, unbounded),
			text: "Sessions in memory. At the limit the embedded store drops the longest disconnected. With Redis only those count that are " +
				"connected or not stored yet, and new ones get 503.",
			when: "memory is short, or more clients come and go"},
		{name: "store-timeout", unit: "DURATION", value: span(&c.StoreTimeout, 5*time.Second, 200*time.Millisecond),
			text: "How long messages and resumes wait for Redis. Then their connections are closed with 1013, or refused with 503.",
			when: "a failover of Redis takes longer"},
	}
}

func (c *Config) deploying() []setting {
	return []setting{
		{name: "control", unit: "PATH", value: &textFlag{&c.Control, checkControlPath},
			text: "A unix socket at which processes of the same user ask for status, drain and handover: see -tell.",
			when: "a later version shall take over the live connections"},
		{name: "take-over-from", unit: "PATH", value: &textFlag{&c.TakeOverFrom, checkSocketPath},
			text: "The -control socket of a running server. Its connections, sessions and listeners are taken over at the start; " +
				"if nobody is there, the server starts without.",
			when: "this process takes the place of a running one"},
	}
}

func (c *Config) watching() []setting {
	return []setting{
		{name: "log-level", unit: "LEVEL", value: choice(&c.LogLevel, "info", "debug", "info", "warn", "error"),
			text: "The least level that is logged; debug has each refused request.",
			when: "a client is refused, or the log is too long"},
		{name: "log-format", unit: "FORMAT", value: choice(&c.LogFormat, "auto", "auto", "json", "console"),
			text: "auto is console on a terminal and json elsewhere.",
			when: "a person reads a log that goes through a pipe"},
		{name: "debug-listen", unit: "ADDRESS", value: &textFlag{&c.DebugListen, checkTCPAddress},
			text: "host:port that serves net/http/pprof; keep it private.",
			when: "you profile the server"},
	}
}

func (c *Config) commands() []setting {
	return []setting{
		{name: "tell", unit: "COMMAND", value: &textFlag{&c.Tell, checkCommand},
			text: "Give the server at -control this command, and print its answer: status, drain, " +
				"prepare PATH (would the server with that control socket hand over to this one?) or take-over PATH.",
			when: "you deploy by hand or by a script"},
		{name: "healthcheck", unit: "URL", value: &textFlag{&c.HealthCheck, checkHealthTarget},
			text: "Ask the server at http://HOST:PORT/healthz/ or unix:SOCKET:/healthz/. Exit code 0 if it answers 200.",
			when: "an image without curl checks its health"},
		{name: "version", value: &boolFlag{&c.Version}, noVariable: true,
			text: "Print the version, the revision and the version of Go.",
			when: "you want to know what runs"},
	}
}

// parseConfig reads the command line and the environment, whose entries are
// NAME=VALUE. cpus is how many processors the process may use, fds how many file
// descriptors. The error is one line that names the flag and what is allowed;
// flag.ErrHelp when -help was asked for, and printed to out.
func parseConfig(args, environ []string, cpus, fds int, out io.Writer) (*Config, error) {
	c := newConfig(cpus)
	err := c.flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printHelp(out, c.groups)
		return nil, err
	case err != nil:
		return nil, plain(err, c.flags)
	case c.flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q: everything is a flag, "+
			"and -echo takes its value as -echo=true, -compress as -compress=512; see -help", c.flags.Arg(0))
	case c.Version:
		return c, nil
	}
	if err := c.setFromEnvironment(environ); err != nil {
		return nil, err
	}
	return c, c.check(fds)
}

// check checks flags that depend on each other, or on the limit of open files.
func (c *Config) check(fds int) (err error) {
	if c.Tell != "" && c.Control == "" {
		return errors.New("-tell needs -control, the socket of the server that gets the command")
	}
	if c.Tell == "" && c.HealthCheck == "" {
		c.files, err = newFileBudget(c, fds)
	}
	return err
}

// shown formats a flag's value for an error; it is empty if the value may contain a
// password.
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
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
		return fmt.Errorf("%s is no flag of this server%s", name, meant("-", strings.TrimLeft(name, "-"), flagNames(flags)))
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		return fmt.Errorf("%s needs a value behind it; see -help", name)
	}
	return fmt.Errorf("%s; see -help", text)
}

// String is the flags that are not at their defaults, as a command line without
// credentials.
func (c *Config) String() string {
	var parts []string
	c.flags.VisitAll(func(f *flag.Flag) {
		if value := f.Value.String(); value != f.DefValue {
			parts = append(parts, fmt.Sprintf("-%s=%s", f.Name, value))
		}
	})
	return strings.Join(parts, " ")
}
