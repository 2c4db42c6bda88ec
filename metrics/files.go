package metrics

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sys/unix"
)

// openFiles counts the process's open files for the page of metrics. Listing them, as
// the library does, takes more than a microsecond for each: with 10,000 connections six
// times as long as the rest of the page. From Linux 6.2 on the size of /proc/self/fd is
// their number (proc(5)). An older kernel has them listed now and then.
type openFiles struct {
	count func() (n int64, known bool) // sizeOfFDs, but in tests
	now   func() time.Time

	mu     sync.Mutex
	listed []byte    // Guarded by mu: what the library wrote when it listed them last.
	at     time.Time // Guarded by mu: when that was.
}

// listEvery is how long a list stays, on a kernel that has to make one.
const listEvery = 15 * time.Second

func newOpenFiles() *openFiles { return &openFiles{count: sizeOfFDs, now: time.Now} }

func sizeOfFDs() (n int64, known bool) {
	info, err := os.Stat("/proc/self/fd")
	if err != nil {
		return 0, false
	}
	return info.Size(), info.Size() > 0
}

// write writes process_open_fds and process_max_fds.
func (f *openFiles) write(out io.Writer) {
	n, known := f.count()
	var limit unix.Rlimit
	if known && unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		metrics.WriteGaugeUint64(out, "process_max_fds", limit.Cur)
		metrics.WriteGaugeUint64(out, "process_open_fds", uint64(n))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.at) >= listEvery {
		var listed bytes.Buffer
		metrics.WriteFDMetrics(&listed)
		f.listed, f.at = listed.Bytes(), now
	}
	out.Write(f.listed)
}
