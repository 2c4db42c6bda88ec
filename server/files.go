package main

import (
	"fmt"
	"strings"
)

// A fileBudget says what the process's open files are for, so that the last client is
// refused with an answer before they run out.
type fileBudget struct {
	limit       int
	users       []fileUser // those that need the same whatever the limit
	beyondLimit int        // sockets beyond a limit, which wait for their refusal or for a page
	plainHTTP   int        // sockets that net/http serves
	sockets     int        // what is left for all other sockets
	connections int        // how many of these there may be: -max-connections, if that is less
}

// A fileUser is a part of the process, and how many files it has open at the most.
type fileUser struct {
	name  string
	files int
}

const (
	// filesOfLoop are an epoll instance and easygo's eventfd for it, the mailbox's
	// eventfd, the timerfd, and a second descriptor of the one socket that a loop may
	// be about to close or to give to net/http.
	filesOfLoop = 5
	// filesOfRuntime are the epoll instance and the eventfd of Go's own poller.
	filesOfRuntime = 2
	// passingFiles are open for a moment only: what the page of metrics reads under
	// /proc, name lookups, certificates, the service manager's socket.
	passingFiles = 8
	// clientsOfSocket are who may talk to -control or -debug-listen at once. Both are
	// for the operator alone.
	clientsOfSocket = 8
)

// The least and the most of the two shares, and which part of the limit they take
// between these. Refusals are short; a page may take a slow client some seconds.
const (
	leastShare       = 4
	mostBeyondLimit  = 128
	mostPlainHTTP    = 256
	beyondLimitShare = 8
	plainHTTPShare   = 4
)

// newFileBudget shares out limit open files for a configuration.
func newFileBudget(c *Config, limit int) (fileBudget, error) {
	b := fileBudget{limit: limit, users: fileUsers(c)}
	rest := limit - b.fixed()
	b.beyondLimit = min(max(rest/beyondLimitShare, leastShare), mostBeyondLimit)
	b.plainHTTP = min(max(rest/plainHTTPShare, leastShare), mostPlainHTTP)
	b.sockets = rest - b.beyondLimit - b.plainHTTP
	switch b.connections = b.sockets; {
	case b.sockets < 1:
		return b, b.tooLow()
	case c.MaxConnections > b.sockets:
		return b, fmt.Errorf("-max-connections must be at most %d under this process's limit of %d open files, got %d: "+
			"raise the limit (ulimit -n, LimitNOFILE) or lower the flag",
			b.sockets, limit, c.MaxConnections)
	case c.MaxConnections > 0:
		b.connections = c.MaxConnections
	}
	return b, nil
}

func fileUsers(c *Config) []fileUser {
	users := []fileUser{
		{"standard input, output and error", 3},
		{"Go's runtime", filesOfRuntime},
		{fmt.Sprintf("-workers %d and the acceptor", c.Workers), filesOfLoop * (c.Workers + 1)},
		{"-listen", len(c.Listen)},
		{"files that are open for a moment", passingFiles},
	}
	if c.DebugListen != "" {
		users = append(users, fileUser{"-debug-listen", 1 + clientsOfSocket})
	}
	if c.Control != "" || c.TakeOverFrom != "" {
		users = append(users, fileUser{"-control and handovers", 1 + clientsOfSocket})
	}
	if c.Redis != nil {
		users = append(users, fileUser{"-redis", c.Redis.MaxConnections(c.Workers)})
	}
	return users
}

func (b *fileBudget) fixed() (sum int) {
	for _, u := range b.users {
		sum += u.files
	}
	return sum
}

// tooLow says what the limit of open files would have to be, and why.
func (b *fileBudget) tooLow() error {
	var parts []string
	for _, u := range b.users {
		parts = append(parts, fmt.Sprintf("%d for %s", u.files, u.name))
	}
	parts = append(parts, fmt.Sprintf("%d for clients", 2*leastShare+1))
	return fmt.Errorf("this process's limit of %d open files is too low, at least %d are needed (%s): "+
		"raise the limit (ulimit -n, LimitNOFILE) or lower -workers",
		b.limit, b.fixed()+2*leastShare+1, strings.Join(parts, ", "))
}
