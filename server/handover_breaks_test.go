package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstile/server/handover"
	"turnstile/server/oracle"
	"turnstile/server/redistest"
)

// brokenAt, in the environment, breaks a process at the n-th time that this one comes to
// a step of a handover: "STEP N" kills this one, "STEP N PID" another, and "STEP N FILE"
// has this one stand there until the file exists.
const brokenAt = "TURNSTILE_TEST_BROKEN_AT"

func breakAtStep() {
	var step, what string
	var n int
	if read, _ := fmt.Sscan(os.Getenv(brokenAt), &step, &n, &what); read < 2 {
		return
	}
	handover.AtStep = func(s string) {
		if s != step {
			return
		}
		if n--; n == 0 {
			breakNow(what)
		}
	}
}

func breakNow(what string) {
	victim, err := strconv.Atoi(what)
	switch {
	case what == "":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case err == nil:
		syscall.Kill(victim, syscall.SIGKILL)
	default:
		os.WriteFile(what+standing, nil, 0o600)
		// A test of another process makes the file, or kills this one.
		for deadline := time.Now().Add(2 * patience); os.IsNotExist(second(os.Stat(what))); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				panic("nobody lets it go on from " + what)
			}
		}
	}
}

// standing is the end of the name of a file that says that a process stands.
const standing = ".standing"

func second[T any](_ T, err error) error { return err }

// atSteps runs a test that breaks a process at each of these steps, at the
// first, second or third time that it comes there.
func atSteps(t *testing.T, steps []string, run func(t *testing.T, env string)) {
	seed := rand.Uint64()
	if text := os.Getenv("TURNSTILE_CHAOS_SEED"); text != "" {
		fmt.Sscan(text, &seed)
	}
	t.Logf("TURNSTILE_CHAOS_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, step := range steps {
		if !strings.Contains(step, " ") {
			step = fmt.Sprint(step, " ", 1+random.IntN(3))
		}
		t.Run(step, func(t *testing.T) { run(t, brokenAt+"="+step) })
	}
}

// brokenCrowd is large enough for a second batch of each worker's.
const brokenCrowd = 3 * leastBatch

// TestHandoverOldDies kills the old server at each step. What it has given, or
// the new one has accepted, goes on there without an interruption; the others'
// clients come back to the new one, with Redis at the right count.
func TestHandoverOldDies(t *testing.T) {
	redis := redistest.Start(t)
	atSteps(t, []string{"offer 1", "offer", "offered", "given", "done 1"}, func(t *testing.T, env string) {
		chain := newChain(t, "-redis", redis.URL())
		chain.startFirst(env)
		c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
		successor := chain.startSuccessor()
		successor.waitLog("takeover_finished")
		if code := chain.current.wait(); code != -1 {
			t.Errorf("the old server was not killed, it ends with exit code %d", code)
		}
		eventually(t, "the new server listens", func() bool {
			conn, err := net.Dial("tcp", chain.addr)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		adopted := int(successor.metric("websocket_adopted_total"))
		c.WaitRounds(3)
		c.Settle()
		if ends := c.Ends(); len(ends) > brokenCrowd-adopted {
			t.Errorf("%d connections have ended, and %d were adopted: %v", len(ends), adopted, ends)
		}
	})
}

// TestHandoverNewDies kills the new server at each step. The old one goes on
// serving what the new one did not own, and nobody notices but the clients of
// what it did.
func TestHandoverNewDies(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		atSteps(t, []string{"take", "taken", "begun", "owned"}, func(t *testing.T, env string) {
			chain := startChain(t, flags...)
			c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
			if code := chain.startSuccessor(env).wait(); code != -1 {
				t.Errorf("the new server was not killed, it ends with exit code %d", code)
			}
			chain.current.waitLog("handover_failed")
			given := int(chain.current.metric("websocket_handed_over_total"))
			c.WaitRounds(3)
			if len(flags) > 0 || given == 0 {
				c.Settle()
			} else { // sessions of the embedded store have died
				c.Leave()
			}
			if ends := c.Ends(); len(ends) > given {
				t.Errorf("%d connections have ended, and %d were given: %v", len(ends), given, ends)
			}
			chain.handOver() // the next one finds the old one where it was
		})
	})
}

// standingSuccessor starts a successor that stands still before it takes its n-th batch,
// and goes on when it is let go. It returns when the successor stands.
func (s *serverChain) standingSuccessor(n int) (p *process, letGo func()) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "go")
	p = s.startSuccessor(fmt.Sprintf("%s=take %d %s", brokenAt, n, file))
	eventually(s.t, "the new server stands still", func() bool { return second(os.Stat(file+standing)) == nil })
	return p, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			s.t.Error(err)
		}
	}
}

// wantSplit checks a takeover that has come to a part and no further: the clients of that
// part got a goodbye from the new server, which has ended; all others are the old one's
// and saw nothing; and the next server can take over.
func (s *serverChain) wantSplit(c *oracle.Crowd, successor *process, code int, redis bool) {
	s.t.Helper()
	if got := successor.wait(); got != code {
		s.t.Errorf("the new server ends with exit code %d, want %d: %s", got, code, successor.stderr.String())
	}
	c.WaitRounds(3)
	adopted := int(successor.waitLog("takeover_finished")["connections"].(float64))
	ends := c.Ends()
	if adopted == 0 || adopted >= c.Size() {
		s.t.Errorf("%d of %d connections were adopted: no part of them", adopted, c.Size())
	}
	if len(ends) != adopted || ends.Goodbyes() != adopted {
		s.t.Errorf("%d connections were adopted, and these have ended: %v", adopted, ends)
	}
	if got := command(s.t, s.control, commandStatus); got["pid"] != float64(s.current.cmd.Process.Pid) || got["ready"] != true {
		s.t.Errorf("at the control socket is %v", got)
	}
	if redis {
		c.Settle()
	} else { // sessions of the embedded store have ended with the new server
		c.Leave()
	}
	s.handOver()
}

// TestSignalToTheSuccessor: a SIGTERM to the new server while it takes over. Its clients
// get a goodbye, and the others stay with the old one.
func TestSignalToTheSuccessor(t *testing.T) {
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		c := oracle.StartCrowd(t, chain.addr, 2*brokenCrowd, 0)
		c.WaitRounds(1)
		successor, letGo := chain.standingSuccessor(3)
		successor.signal(syscall.SIGTERM)
		successor.waitLog("drain_started")
		letGo()
		chain.current.waitLog("handover_failed")
		chain.wantSplit(c, successor, exitOK, len(flags) > 0)
	})
}

// TestHandoverBreaksWhileBothLive: the new server stands still for longer than the old one
// waits, and goes on then. It finds that the old one serves, and ends.
func TestHandoverBreaksWhileBothLive(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, flags ...string) {
		chain := startChain(t, flags...)
		c := oracle.StartCrowd(t, chain.addr, brokenCrowd, 0)
		c.WaitRounds(1)
		successor, letGo := chain.standingSuccessor(3)
		chain.current.waitLog("handover_failed")
		letGo()
		chain.wantSplit(c, successor, exitFailure, len(flags) > 0)
	})
}
