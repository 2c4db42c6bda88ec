package handover

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of the tests; nothing waits for so long that works.
const patience = time.Minute

// soon is an exchange's patience where a test waits for its end: of real time,
// since the kernel's deadlines know no other.
const soon = 50 * time.Millisecond

// pair is both ends of an exchange over a real socket pair.
func pair(t testing.TB) (giver, taker *Exchange) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) *Exchange {
		file := os.NewFile(uintptr(fd), "end")
		defer file.Close()
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		x := NewExchange(conn.(*net.UnixConn))
		x.version = Newest
		t.Cleanup(func() { x.Close() })
		return x
	}
	return end(fds[0]), end(fds[1])
}

// pipes are n pipes: what is written to w[i] is read from r[i].
func pipes(t testing.TB, n int) (r, w []int) {
	t.Helper()
	for range n {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		r, w = append(r, ends[0]), append(w, ends[1])
	}
	t.Cleanup(func() { closeAll(r); closeAll(w) })
	return r, w
}

// openFDs is how many file descriptors the process has open.
func openFDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// keepsFDs checks at the end of a test that no more are open than now.
func keepsFDs(t testing.TB) {
	t.Helper()
	// The first file that it can poll has the Go runtime open some of its own, which stay.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	t.Cleanup(func() {
		if after := openFDs(t); after > before {
			t.Errorf("%d file descriptors are open, and %d were", after, before)
		}
	})
}

// taking is what Take returns, later.
func taking(x *Exchange) <-chan taken {
	c := make(chan taken, 1)
	go func() {
		b, err := x.Take()
		c <- taken{b, err}
	}()
	return c
}

type taken struct {
	batch *Batch
	err   error
}

func await[T any](t testing.TB, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(patience):
		t.Fatalf("never: %s", what)
	}
	return value
}

// records are n of them, each with a backlog of so many bytes.
func records(n, backlog int) []Record {
	rs := make([]Record, n)
	for i := range rs {
		rs[i] = Record{Endpoint: fmt.Sprint("/", i), Backlog: bytes.Repeat([]byte{byte(i)}, backlog)}
	}
	return rs
}

// offering offers connections, and later says how that ends. An offer without an error
// is given.
func offering(x *Exchange, rs []Record, fds []int) <-chan error {
	c := make(chan error, 1)
	go func() {
		given, err := x.OfferConnections(rs, fds)
		if err == nil && !given {
			err = errors.New("not given, and no error")
		}
		c <- err
	}()
	return c
}

func TestExchange(t *testing.T) {
	keepsFDs(t)
	giver, taker := pair(t)
	hello := Hello{Oldest, Newest, LastField, "embedded", []string{"/ws/"}, []string{"v2"}, 2, 3, 4, true}
	welcome := Welcome{Newest, 5, []string{":1", "unix:/x"}}
	started := make(chan error, 1)
	go func() {
		got, err := giver.Hear()
		if err == nil && !reflect.DeepEqual(got, hello) {
			err = fmt.Errorf("heard %+v", got)
		}
		g, goErr := giver.Welcome(welcome)
		if goErr == nil && !reflect.DeepEqual(g, Go{[]string{":1"}}) {
			goErr = fmt.Errorf("the go is %+v", g)
		}
		started <- errors.Join(err, goErr)
	}()
	if got, err := taker.Greet(hello); err != nil || !reflect.DeepEqual(got, welcome) {
		t.Fatalf("the welcome is %+v, %v", got, err)
	}
	if err := taker.Begin(Go{[]string{":1"}}); err != nil {
		t.Fatal(err)
	}
	if err := await(t, "the giver begins", started); err != nil {
		t.Fatal(err)
	}

	r, w := pipes(t, MostFDs)
	given := offering(giver, records(MostFDs, 0), r)
	wantPipes(t, await(t, "a batch", taking(taker)), w)
	listening := make(chan error, 1)
	go func() {
		err := await(t, "an offer ends", given)
		_, err2 := giver.OfferListeners([]string{":1"}, r[:1])
		_, err3 := giver.OfferSessions([]Session{{Count: 7}})
		listening <- errors.Join(err, err2, err3, giver.Done())
	}()
	listeners := await(t, "a listener", taking(taker))
	if listeners.err != nil || !reflect.DeepEqual(listeners.batch.Listeners, []string{":1"}) || len(listeners.batch.FDs) != 1 {
		t.Errorf("listeners: %+v, %v", listeners.batch, listeners.err)
	}
	closeAll(listeners.batch.FDs)
	if got := await(t, "sessions", taking(taker)); got.err != nil || !reflect.DeepEqual(got.batch.Sessions, []Session{{Count: 7}}) {
		t.Errorf("sessions: %+v, %v", got.batch, got.err)
	}
	if got := await(t, "the end", taking(taker)); got.batch != nil || got.err != nil {
		t.Errorf("the end: %+v, %v", got.batch, got.err)
	}
	if err := await(t, "the giver ends", listening); err != nil {
		t.Error(err)
	}
}

// wantPipes checks that each record has the pipe that was given with it, that
// no child of the process would get it, and closes it.
func wantPipes(t testing.TB, got taken, w []int) {
	t.Helper()
	if got.err != nil || len(got.batch.Records) != len(w) || len(got.batch.FDs) != len(w) {
		t.Fatalf("got %+v, %v; want %d connections", got.batch, got.err, len(w))
	}
	for i, fd := range got.batch.FDs {
		word := fmt.Sprint("/", i)
		if _, err := unix.Write(w[i], []byte(word)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		n, err := unix.Read(fd, buf)
		if err != nil || string(buf[:n]) != word || got.batch.Records[i].Endpoint != word {
			t.Errorf("pipe %d, of %q, reads %q, %v", i, got.batch.Records[i].Endpoint, buf[:n], err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("pipe %d is not close-on-exec: %#x, %v", i, flags, err)
		}
	}
	closeAll(got.batch.FDs)
}

// TestLargeBatch is larger than any socket's buffer.
func TestLargeBatch(t *testing.T) {
	keepsFDs(t)
	giver, taker := pair(t)
	r, w := pipes(t, 4)
	want := records(4, 1<<20)
	given := offering(giver, want, r)
	got := await(t, "a batch", taking(taker))
	wantPipes(t, got, w)
	if !reflect.DeepEqual(got.batch.Records, want) {
		t.Error("the records have changed on their way")
	}
	if err := await(t, "the offer ends", given); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	giver, taker := pair(t)
	want := &RefusedError{RefusedStore, "its sessions are elsewhere"}
	go func() {
		giver.Hear()
		giver.Refuse(want)
	}()
	_, err := taker.Greet(Hello{Version: Newest + 1})
	if refused, ok := errors.AsType[*RefusedError](err); !ok || *refused != *want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestTakerIsSlow: the batch is the old process's once the new one has not taken it in
// time, however long it sleeps. One that wakes up at the last moment does not make it
// two's.
func TestTakerIsSlow(t *testing.T) {
	f := func(name string, backlog int, late func(taker *Exchange) error) {
		t.Run(name, func(t *testing.T) {
			keepsFDs(t)
			giver, taker := pair(t)
			giver.patience = soon
			taking := make(chan error, 1)
			atStep(t, "settled", func() { taking <- late(taker) })
			r, _ := pipes(t, 2)
			if given, err := giver.OfferConnections(records(2, backlog), r); given || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the offer ends with %v, %v", given, err)
			}
			if err := await(t, "the taker is told", taking); err == nil {
				t.Error("the taker has a batch")
			}
		})
	}
	take := func(x *Exchange) error { _, err := x.Take(); return err }
	f("it takes when the old process has taken back and has not said so", 0, take)
	f("it never reads, and the offer is too large for the buffers", 4<<20, func(x *Exchange) error { return errTakenBack })
}

// atStep has f called at a step of the exchanges of this test.
func atStep(t testing.TB, step string, f func()) {
	before := AtStep
	AtStep = func(s string) {
		if s == step {
			f()
		}
	}
	t.Cleanup(func() { AtStep = before })
}

// TestStop: a process that is told to end takes nothing more, and the old one keeps it.
func TestStop(t *testing.T) {
	keepsFDs(t)
	giver, taker := pair(t)
	r, _ := pipes(t, 2)
	got := taking(taker)
	taker.Stop()
	if b := await(t, "Take returns", got); b.batch != nil || b.err == nil {
		t.Errorf("the taker gets %+v, %v", b.batch, b.err)
	}
	taker.Close()
	if given, err := giver.OfferConnections(records(2, 0), r); given || err == nil {
		t.Errorf("the offer ends with %v, %v", given, err)
	}
}

// TestNobodyBegins: the old process does not wait for ever for one that is prepared.
func TestNobodyBegins(t *testing.T) {
	giver, taker := pair(t)
	go taker.Greet(Hello{})
	if _, err := giver.Hear(); err != nil {
		t.Fatal(err)
	}
	giver.patience, giver.preparedFor = soon, 0
	if g, err := giver.Welcome(Welcome{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the welcome ends with %v, %v", g, err)
	}
}

// offerRaw sends an offer with a decision, as the old process does.
func (x *Exchange) offerRaw(w word, body []byte, fds []int) error {
	d, err := newDecision()
	if err != nil {
		return err
	}
	defer d.close()
	return x.send(w, body, append([]int{int(d)}, fds...)...)
}

// TestNonsense: what is no exchange ends it, and leaves nothing open.
func TestNonsense(t *testing.T) {
	toTaker := func(name, want string, say func(x *Exchange, r []int) error) {
		t.Run(name, func(t *testing.T) {
			keepsFDs(t)
			giver, taker := pair(t)
			r, _ := pipes(t, 3)
			if err := say(giver, r); err != nil {
				t.Fatal(err)
			}
			giver.conn.CloseWrite()
			if got := await(t, "Take returns", taking(taker)); got.batch != nil || got.err == nil || !strings.Contains(got.err.Error(), want) {
				t.Errorf("the taker gets %+v, %v; want %q", got.batch, got.err, want)
			}
		})
	}
	raw := func(x *Exchange, fds []int, message ...byte) error {
		_, _, err := x.conn.WriteMsgUnix(message, unix.UnixRights(fds...), nil)
		return err
	}
	toTaker("nothing", io.EOF.Error(), func(*Exchange, []int) error { return nil })
	toTaker("a header cut off", io.ErrUnexpectedEOF.Error(),
		func(x *Exchange, r []int) error { return raw(x, r, byte(wordConnections), 3, 0) })
	toTaker("a body cut off", io.ErrUnexpectedEOF.Error(),
		func(x *Exchange, r []int) error { return raw(x, r, byte(wordConnections), 3, 0, 0, 0, 9, 1) })
	toTaker("fewer descriptors than announced", "3 of 4 file descriptors",
		func(x *Exchange, r []int) error { return raw(x, r, byte(wordConnections), 4, 0, 0, 0, 0) })
	toTaker("more descriptors than announced", "3 of 1 file descriptors",
		func(x *Exchange, r []int) error { return raw(x, r, byte(wordConnections), 1, 0, 0, 0, 0) })
	toTaker("a length beyond all measure", errNoServer.Error(),
		func(x *Exchange, r []int) error { return raw(x, r, byte(wordConnections), 3, 255, 255, 255, 255) })
	toTaker("more descriptors than records", "2 records came with 3",
		func(x *Exchange, r []int) error {
			return x.offerRaw(wordConnections, encode(Newest, records(2, 0)...), r)
		})
	toTaker("a record cut off", errCut.Error(), func(x *Exchange, r []int) error {
		return x.offerRaw(wordConnections, encode(Newest, records(3, 0)...)[:12], r)
	})
	toTaker("more descriptors than listeners", "1 listeners came with 3",
		func(x *Exchange, r []int) error { return x.offerRaw(wordListeners, []byte(`[":1"]`), r) })
	toTaker("listeners that are not JSON", "invalid character",
		func(x *Exchange, r []int) error { return x.offerRaw(wordListeners, []byte("x"), r) })
	toTaker("a word out of turn", "sent word 10 instead of an offer", func(x *Exchange, r []int) error { return x.send(wordOwned, nil, r...) })
	toTaker("an offer without a descriptor", "without its decision", func(x *Exchange, r []int) error { return x.send(wordSessions, nil) })
	toTaker("an offer without its decision", errTakenBack.Error(), func(x *Exchange, r []int) error { return x.send(wordSessions, nil, r[0]) })
	toTaker("a record that points beyond its bytes", "1 bytes are due of a backlog of 0", func(x *Exchange, r []int) error {
		return x.offerRaw(wordConnections, encode(Newest, Record{Due: 1}), r[:1])
	})
	toTaker("a word that there is not", errNoServer.Error(), func(x *Exchange, r []int) error { return x.send(99, nil, r...) })

	toGiver := func(name string, say func(x *Exchange, r []int) error) {
		t.Run(name, func(t *testing.T) {
			keepsFDs(t)
			giver, taker := pair(t)
			r, _ := pipes(t, 2)
			if err := say(taker, r); err != nil {
				t.Fatal(err)
			}
			if given, err := giver.OfferConnections(records(2, 0), r); given || err == nil {
				t.Errorf("the offer ends with %v, %v", given, err)
			}
		})
	}
	toGiver("a word in the place of the owned", func(x *Exchange, r []int) error { return x.send(wordDone, nil) })
	toGiver("one with descriptors", func(x *Exchange, r []int) error { return x.send(wordDone, nil, r...) })
	toGiver("a refusal with descriptors", func(x *Exchange, r []int) error { return x.send(wordRefused, []byte("{}"), r...) })
	t.Run("a hello that is not JSON, with descriptors", func(t *testing.T) {
		keepsFDs(t)
		giver, taker := pair(t)
		r, _ := pipes(t, 2)
		if err := taker.send(wordHello, []byte("hello"), r...); err != nil {
			t.Fatal(err)
		}
		if h, err := giver.Hear(); err == nil {
			t.Errorf("heard %+v", h)
		}
	})
}

// TestDescriptorsRunOut: a batch of which not all descriptors come is given
// back whole.
func TestDescriptorsRunOut(t *testing.T) {
	keepsFDs(t)
	giver, taker := pair(t)
	r, _ := pipes(t, 100)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	lower := limit
	lower.Cur = uint64(openFDs(t) + 20)
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	given := offering(giver, records(100, 0), r)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	got := await(t, "Take returns", taking(taker))
	taker.Close()
	err := await(t, "the offer ends", given)
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if got.batch != nil || got.err == nil || !strings.Contains(got.err.Error(), "of 101 file descriptors") {
		t.Errorf("the taker gets %+v, %v", got.batch, got.err)
	}
	if err == nil {
		t.Error("the offer is taken")
	}
}
