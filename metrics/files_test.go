package metrics

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's count is that of a list.
func TestOpenFilesAreCounted(t *testing.T) {
	openSockets(t, 100)
	n, known := sizeOfFDs()
	if !known {
		t.Log("this kernel does not count: it is before 6.2")
		return
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if listed := int64(len(entries)) - 1; n < listed-5 || n > listed+5 { // but for the one that reads, and what others open
		t.Errorf("counted %d open files, listed %d", n, listed)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	p := write(t, New(1, testLabels, testSources()))
	p.want(t, "process_max_fds", float64(limit.Cur))
	if got := p.value(t, "process_open_fds"); got < 100 || got > 1000 {
		t.Errorf("process_open_fds is %v", got)
	}
}

// On a kernel that does not count, the library lists the files, once in a while.
func TestOpenFilesAreListedNowAndThen(t *testing.T) {
	now := time.Now()
	f := &openFiles{count: func() (int64, bool) { return 0, false }, now: func() time.Time { return now }}
	value := func() (n int) {
		var page bytes.Buffer
		f.write(&page)
		_, rest, _ := bytes.Cut(page.Bytes(), []byte("\nprocess_open_fds "))
		if _, err := fmt.Sscan(string(rest), &n); err != nil {
			t.Fatalf("%v on the page\n%s", err, page.Bytes())
		}
		return n
	}
	first := value()
	openSockets(t, 100)
	now = now.Add(listEvery - 1)
	if n := value(); n != first {
		t.Errorf("%d files, want the %d of the last list", n, first)
	}
	now = now.Add(1)
	if n := value(); n < first+90 {
		t.Errorf("%d files after 100 more than %d", n, first)
	}
}
