package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"turnstile/proto"
)

// The side by side: the same job on other servers, in interleaved rounds, so
// that what else the machine does hits all of them alike.

// A peer is one server of bench/peers/peers.json.
type peer struct {
	Name  string   `json:"name"`
	What  string   `json:"what"`
	Run   []string `json:"run"` // with places for the address and the sizes
	Needs string   `json:"needs"`
}

// ours is the project's own server, which every ratio is to.
const ours = "turnstile"

// floorName is the peer that speaks no protocol: its answers are not looked at.
const floorName = "floor"

// A column is one figure of the table: where it is found in a peer's parts.
type column struct {
	Title, Unit  string
	part, figure string
	Better       string
}

var columns = []column{
	{"upgrades", "/s", "connect", "upgrades a second", "more"},
	{"CPU an upgrade", "µs", "connect", "server CPU an upgrade", "less"},
	{"idle connection", "B", "idle", "resident memory a connection", "less"},
	{"sparse: CPU", "µs", "sparse", "server CPU a message", "less"},
	{"many × 1: messages", "/s", "many × 1", "messages a second", "more"},
	{"many × 1: CPU", "µs", "many × 1", "server CPU a message", "less"},
	{"many × 1: user CPU", "µs", "many × 1", "of it user", "less"},
	{"100 × 1: CPU", "µs", "100 × 1", "server CPU a message", "less"},
	{"100 × 16: messages", "/s", "100 × 16", "messages a second", "more"},
	{"100 × 16: CPU", "µs", "100 × 16", "server CPU a message", "less"},
	{"sparse: p50", "ms", "sparse", "answer p50", "less"},
	{"sparse: p99", "ms", "sparse", "answer p99", "less"},
	{"sparse: p99.9", "ms", "sparse", "answer p99.9", "less"},
}

// A bout is the whole comparison: peers.json of the report.
type bout struct {
	When     time.Time       `json:"when"`
	Machine  machine         `json:"machine"`
	Rounds   int             `json:"rounds"`
	Conns    int             `json:"conns"`
	Duration time.Duration   `json:"duration"`
	Results  []*peerResult   `json:"results"`
	Skipped  []string        `json:"skipped,omitempty"`
	ctx      context.Context // of the command
	folder   string
}

// A peerResult is what was measured of one server.
type peerResult struct {
	Name   string               `json:"name"`
	What   string               `json:"what"`
	Values map[string][]float64 `json:"values"` // by column title, one for each round
	Errors map[string]int64     `json:"errors,omitempty"`
	peer   peer
}

// A boutPlan is what the command "peers" is asked for.
type boutPlan struct {
	folder, server, only, out string
	rounds, conns             int
	duration                  time.Duration
}

// parsePeers reads the command line of "peers", as parseOptions does.
func parsePeers(args []string, out io.Writer) (*boutPlan, error) {
	p := &boutPlan{}
	f := flag.NewFlagSet("bench peers", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&p.folder, "peers", "bench/peers", "the `folder` of peers.json, whose build.sh has been run")
	f.StringVar(&p.server, "server", "bin/server -listen {listen} -log-level warn", "the `command` that starts this project's server")
	f.IntVar(&p.rounds, "rounds", 3, "rounds; the table has their medians")
	f.IntVar(&p.conns, "conns", 10_000, "connections of the large loads")
	f.DurationVar(&p.duration, "duration", 4*time.Second, "how long each load takes")
	f.StringVar(&p.only, "only", "", "`names` of the peers to measure, separated by commas; all without")
	f.StringVar(&p.out, "out", "bench/report", "a `folder` for peers.json, peers.md and peers.html")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, "bench peers: measures this project's server and others, side by side\n\nFlags:\n")
		f.SetOutput(out)
		f.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, plain(err, f)
	case f.NArg() > 0:
		return nil, fmt.Errorf("unknown argument %q; see bench peers -help", f.Arg(0))
	case p.rounds < 1 || p.conns < 1 || p.duration <= 0:
		return nil, errors.New("-rounds, -conns and -duration must be more than 0")
	case !strings.Contains(p.server, listenPlace):
		return nil, fmt.Errorf("-server must have %s where the address goes", listenPlace)
	}
	return p, (&options{Conns: p.conns}).checkConns()
}

// comparePeers is the command "peers".
func comparePeers(args []string) int {
	plan, err := parsePeers(args, os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return complain(err, exitUsage)
	}
	ctx, stop := interruptible()
	defer stop()
	b := &bout{
		When: time.Now().UTC(), Machine: thisMachine(),
		Rounds: plan.rounds, Conns: plan.conns, Duration: plan.duration, ctx: ctx, folder: plan.folder,
	}
	if err := b.enlist(plan.server, plan.only); err != nil {
		return complain(err, exitUsage)
	}
	b.fight()
	if err := b.write(plan.out); err != nil {
		return complain(err, exitFellShort)
	}
	fmt.Printf("%s\nthe page is %s\n", b.markdown(), filepath.Join(plan.out, "peers.html"))
	if ctx.Err() != nil || b.hasErrors() {
		return exitFellShort
	}
	return exitOK
}

func (b *bout) hasErrors() bool {
	return slices.ContainsFunc(b.Results, func(r *peerResult) bool { return len(r.Errors) > 0 })
}

// enlist reads the peers that are built; our own is the first.
func (b *bout) enlist(server, only string) error {
	data, err := os.ReadFile(filepath.Join(b.folder, "peers.json"))
	if err != nil {
		return err
	}
	var peers []peer
	if err := json.Unmarshal(data, &peers); err != nil {
		return fmt.Errorf("peers.json: %w", err)
	}
	if err := checkNames(peers, only); err != nil {
		return err
	}
	command := strings.Fields(server)
	if command[0], err = filepath.Abs(command[0]); err != nil {
		return err
	}
	peers = append([]peer{{Name: ours, What: "this project", Run: command}}, peers...)
	for _, p := range peers {
		if only != "" && p.Name != ours && !slices.Contains(strings.Split(only, ","), p.Name) {
			continue
		}
		if !b.isBuilt(p) {
			b.Skipped = append(b.Skipped, fmt.Sprintf("%s (needs %s)", p.Name, p.Needs))
			continue
		}
		b.Results = append(b.Results, &peerResult{
			Name: p.Name, What: p.What, peer: p, Values: make(map[string][]float64), Errors: make(map[string]int64),
		})
	}
	return nil
}

// checkNames sees that there is a peer of each name asked for.
func checkNames(peers []peer, only string) error {
	var names []string
	for _, p := range peers {
		names = append(names, p.Name)
	}
	for name := range strings.SplitSeq(only, ",") {
		if only != "" && !slices.Contains(names, name) {
			return fmt.Errorf("-only: no peer is called %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	return nil
}

// isBuilt reports whether what build.sh makes for a peer is there.
func (b *bout) isBuilt(p peer) bool {
	for _, argument := range p.Run {
		if strings.HasPrefix(argument, ".build/") {
			_, err := os.Stat(filepath.Join(b.folder, argument))
			return err == nil
		}
	}
	return true
}

// fight measures A B C, A B C, A B C.
func (b *bout) fight() {
	for round := range b.Rounds {
		for _, result := range b.Results {
			if b.ctx.Err() != nil {
				return
			}
			fmt.Printf("round %d of %d: %s\n", round+1, b.Rounds, result.Name)
			parts, err := b.measure(result.peer)
			if err != nil {
				result.Errors[err.Error()]++
			}
			result.add(parts)
		}
	}
}

// add takes in the figures of a round.
func (r *peerResult) add(parts []*part) {
	all := &report{Parts: parts}
	for _, c := range columns {
		if f := all.find(c.part, c.figure); f != nil && f.Note == "" {
			r.Values[c.Title] = append(r.Values[c.Title], f.Value)
		}
	}
	for _, p := range parts {
		for what, n := range p.Errors {
			r.Errors[p.Name+": "+what] += n
		}
	}
}

const (
	peerMessage = 32 // bytes of text
	// peerReply is how long the counter's answer is, as a frame, with a count
	// of three digits.
	peerReply = 2 + len(`{"count":100,"session_id":"00000000-0000-0000-0000-000000000000","message":""}`) + peerMessage
)

// measure runs one server through all loads.
func (b *bout) measure(p peer) ([]*part, error) {
	o := &options{
		Conns: b.Conns, Size: peerMessage, Loops: 2, InFlight: 1, Check: checkCounter,
		Duration: b.Duration, Processes: processesFor(b.Conns), folder: b.folder,
	}
	if p.Name == floorName {
		o.Check = checkNone
	}
	in := len(proto.AppendMaskedFrame(nil, proto.OpText, true, clientMask, make([]byte, peerMessage)))
	places := strings.NewReplacer("{in}", fmt.Sprint(in), "{out}", fmt.Sprint(peerReply))
	o.Server = places.Replace(strings.Join(p.Run, " "))
	r := &run{ctx: b.ctx, options: o, screen: newScreen(os.Stdout, os.Stdout.Fd(), true), report: &report{Machine: b.Machine}}
	var err error
	if r.server, err = openServer(b.ctx, o); err != nil {
		return nil, err
	}
	defer r.server.stop()
	err = r.loads([]load{
		{b.Conns, 1, "connect", (*run).connect},
		{b.Conns, 1, "idle", (*run).idle},
		{b.Conns, 1, "many × 1", (*run).echo},
		{b.Conns, 1, "sparse", (*run).sparse},
		{100, 1, "100 × 1", (*run).echo},
		{100, 16, "100 × 16", (*run).echo},
	})
	return r.report.Parts, err
}

// A load is a scenario with its numbers.
type load struct {
	conns, inFlight int
	name            string
	scenario        func(*run, *part) error
}

// loads runs one load after the other; those with the same number of
// connections on the same ones.
func (r *run) loads(loads []load) (err error) {
	if r.empty, err = usageOfTree(r.server.pid); err != nil {
		return err
	}
	defer func() { r.fleet.close() }()
	for _, l := range loads {
		if r.fleet == nil || l.conns != r.options.Conns {
			r.fleet.close()
			r.options.Conns = l.conns
			if r.fleet, err = startFleet(r.options); err != nil {
				return err
			}
		}
		r.options.InFlight = l.inFlight
		p := newPart(l.name)
		r.report.Parts = append(r.report.Parts, p)
		if err := l.scenario(r, p); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}
