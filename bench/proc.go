package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"turnstile/netpoll"
)

// usage is what a process uses, as proc(5) tells.
type usage struct {
	Known        bool          // there is a process, and it can be read
	At           time.Duration // on netpoll.Clock
	CPU          time.Duration // to the nanosecond
	User, System time.Duration // to the hundredth of a second
	Resident     int64         // bytes
	Anonymous    int64         // bytes of it that are no file's
	Threads      int64
}

// userHZ is the unit of /proc/PID/stat on every Linux port.
const userHZ = 100

// usageOf reads what a process uses; all is zero without a pid.
func usageOf(pid int) (usage, error) {
	u := usage{Known: pid != 0, At: netpoll.Clock()}
	if pid == 0 {
		return u, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) {
		return usage{}, fmt.Errorf("cannot measure the server: process %d does not run", pid)
	}
	if err == nil {
		u.CPU, err = cpuOf(pid)
	}
	if err != nil {
		return usage{}, fmt.Errorf("cannot measure the server, process %d: %w", pid, err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the first is the third of proc(5)
	ticks := func(i int) time.Duration {
		n, _ := strconv.ParseInt(fields[i-3], 10, 64)
		return time.Duration(n) * time.Second / userHZ
	}
	u.User, u.System = ticks(14), ticks(15)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, fmt.Errorf("cannot measure the server: %w", err)
	}
	u.Resident = kilobytes(status, "VmRSS:") << 10
	u.Anonymous = kilobytes(status, "RssAnon:") << 10
	u.Threads = kilobytes(status, "Threads:")
	return u, nil
}

// cpuOf is the processor time of all threads of a process, by the clock that
// clock_getcpuclockid(3) makes of its id.
func cpuOf(pid int) (time.Duration, error) {
	const ofTheScheduler = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|ofTheScheduler), &t)
	return time.Duration(t.Nano()), err
}

// since is what was used after an earlier look; memory and threads stay what
// they are.
func (u usage) since(before usage) usage {
	u.At -= before.At
	u.CPU -= before.CPU
	u.User -= before.User
	u.System -= before.System
	return u
}

// usageOfTree adds up a process and its children, such as a server's workers.
func usageOfTree(pid int) (usage, error) {
	sum, err := usageOf(pid)
	if pid == 0 || err != nil {
		return sum, err
	}
	for _, child := range childrenOf(pid) {
		if u, err := usageOfTree(child); err == nil {
			sum.CPU += u.CPU
			sum.User += u.User
			sum.System += u.System
			sum.Resident += u.Resident
			sum.Anonymous += u.Anonymous
			sum.Threads += u.Threads
		}
	}
	return sum, nil
}

func childrenOf(pid int) (children []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for child := range strings.FieldsSeq(string(text)) {
			n, _ := strconv.Atoi(child)
			children = append(children, n)
		}
	}
	return children
}

// kilobytes is the number in a line of /proc/PID/status.
func kilobytes(status []byte, name string) int64 {
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// socketMemory is what the kernel holds for TCP sockets' data, of all
// processes (/proc/net/sockstat, in pages), and the slabs of the sockets
// themselves where it may be read (/proc/slabinfo), in bytes.
func socketMemory() (bytes int64) {
	data, _ := os.ReadFile("/proc/net/sockstat")
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		for i := 0; len(fields) > 0 && fields[0] == "TCP:" && i+1 < len(fields); i++ {
			if fields[i] == "mem" {
				pages, _ := strconv.ParseInt(fields[i+1], 10, 64)
				bytes += pages * int64(os.Getpagesize())
			}
		}
	}
	return bytes + slabBytes("TCP", "TCPv6", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq")
}

func slabBytes(names ...string) (bytes int64) {
	file, err := os.Open("/proc/slabinfo")
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		for _, name := range names {
			if len(fields) > 3 && fields[0] == name {
				objects, _ := strconv.ParseInt(fields[2], 10, 64)
				size, _ := strconv.ParseInt(fields[3], 10, 64)
				bytes += objects * size
			}
		}
	}
	return bytes
}

// machineCPU is the time that all processors together have worked, for anybody,
// of which the first line of /proc/stat tells. Waiting for a disk is no work.
func machineCPU() time.Duration {
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks int64
	for i, field := range strings.Fields(line) {
		// cpu user nice system idle iowait irq softirq steal; guests are users.
		if i >= 1 && i <= 8 && i != 4 && i != 5 {
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / userHZ
}

// ownCPU is the processor time of this process.
func ownCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A machine is where something was measured.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	System string `json:"system"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: runtime.GOARCH}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.Memory = kilobytes(info, "MemTotal:") << 10
	}
	m.CPU = valueIn("/proc/cpuinfo", "model name", ":", m.CPU)
	m.System = valueIn("/etc/os-release", "PRETTY_NAME", "=", "Linux")
	return m
}

// valueIn is the first value of a name in a file of lines, or other.
func valueIn(path, name, separator, other string) string {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, separator); ok && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return other
}
