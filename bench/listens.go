package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree is a process and its children: what the server may consist of.
type tree []int

// processTree finds the children of a process. It is an error if they cannot be
// looked into.
func processTree(pid int) (tree, error) {
	_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("-pid %d: there is no such process", pid)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("-pid %d is a process of another user: measure it as that user, or as root", pid)
	case err != nil:
		return nil, fmt.Errorf("-pid %d: %w", pid, err)
	}
	all := tree{pid}
	for _, child := range childrenOf(pid) {
		if more, err := processTree(child); err == nil {
			all = append(all, more...)
		}
	}
	return all, nil
}

// mostFiles is how many files all processes of the tree together may have open.
func (t tree) mostFiles() (sum int) {
	for _, pid := range t {
		var limit unix.Rlimit
		if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
			sum += int(min(limit.Cur, 1<<31))
		}
	}
	return sum
}

// serves sees that one of the processes listens. note says if none of them
// listens on the target itself: a proxy may stand before them.
func (t tree) serves(to *target) (note string, err error) {
	addresses := t.listens()
	if len(addresses) == 0 {
		return "", fmt.Errorf("-pid %d is %s, which listens on no socket: give the process of the server at %s", t[0], nameOf(t[0]), to.url)
	}
	for _, address := range addresses {
		if to.isListener(address) {
			return "", nil
		}
	}
	addresses = slices.Compact(slices.Sorted(slices.Values(addresses)))
	if more := len(addresses) - 3; more > 0 {
		addresses = append(addresses[:3], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("process %d, %s, does not listen on %s itself, but on %s: is it the server behind that?",
		t[0], nameOf(t[0]), to.url, strings.Join(addresses, " and ")), nil
}

func nameOf(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}

// listens is the ports, and the paths of unix sockets, on which the processes
// listen.
func (t tree) listens() (addresses []string) {
	for _, pid := range t {
		listeners := listenersSeenBy(pid)
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, file := range files {
			link, _ := os.Readlink(file)
			inode := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
			if address := listeners[inode]; address != "" {
				addresses = append(addresses, address)
			}
		}
	}
	return addresses
}

// listenersSeenBy is the listening sockets in a process's network namespace, by
// inode: /proc/PID/net/tcp and unix.
func listenersSeenBy(pid int) map[string]string {
	const listening, accepts = "0A", "00010000" // TCP_LISTEN, __SO_ACCEPTCON
	found := make(map[string]string)
	table := func(name string, take func(fields []string)) {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		for line := range bytes.Lines(data) {
			take(strings.Fields(string(line)))
		}
	}
	tcp := func(f []string) {
		if len(f) > 9 && f[3] == listening {
			_, hex, _ := strings.Cut(f[1], ":")
			port, _ := strconv.ParseUint(hex, 16, 16)
			found[f[9]] = fmt.Sprintf("port %d", port)
		}
	}
	table("tcp", tcp)
	table("tcp6", tcp)
	table("unix", func(f []string) {
		if len(f) > 7 && f[3] == accepts {
			found[f[6]] = f[7]
		}
	})
	return found
}

// isListener reports whether an address of listens is the target's.
func (t *target) isListener(address string) bool {
	switch to := t.address.(type) {
	case *unix.SockaddrInet4:
		return address == fmt.Sprintf("port %d", to.Port)
	case *unix.SockaddrInet6:
		return address == fmt.Sprintf("port %d", to.Port)
	}
	// The path may be written in another way, or lead there by a link.
	mine, err := os.Stat(t.address.(*unix.SockaddrUnix).Name)
	other, otherErr := os.Stat(address)
	return err == nil && otherErr == nil && os.SameFile(mine, other)
}
