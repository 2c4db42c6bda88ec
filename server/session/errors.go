package session

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"

	"turnstile/metrics"
)

// An errorKind is what kept Redis from doing what it was asked: a label of the
// metrics.
type errorKind uint8

const (
	errorUnreachable errorKind = iota
	errorTimeout
	errorConnection
	errorTLS
	errorCertificate
	errorNotReplicated
	errorDataLost
	errorReadOnly
	errorLoading
	errorMasterDown
	errorClusterDown
	errorNoReplicas
	errorMemory
	errorDisk
	errorBusy
	errorAuth
	errorMoved
	errorAsk
	errorTryAgain
	errorNoScript
	errorDamaged
	errorOther
	errorKinds // how many there are
)

// An errorScope is what an error makes useless.
type errorScope uint8

const (
	// scopeConnection: it is not known what has been carried out.
	scopeConnection errorScope = iota
	// scopeNode: nothing has been carried out, nor would anything else be.
	scopeNode
	// scopeSession: nothing has been carried out, for this session.
	scopeSession
)

// errorNames are the labels, what the errors make useless, and the first words
// by which Redis tells them.
var errorNames = [errorKinds]struct {
	name  string
	scope errorScope
	words []string
}{
	errorUnreachable:   {"unreachable", scopeConnection, nil},
	errorTimeout:       {"timeout", scopeConnection, nil},
	errorConnection:    {"connection", scopeConnection, nil},
	errorTLS:           {"tls", scopeConnection, nil},
	errorCertificate:   {"certificate", scopeConnection, nil},
	errorNotReplicated: {"not_replicated", scopeConnection, nil},
	errorDataLost:      {"data_lost", scopeConnection, nil},
	errorReadOnly:      {"readonly", scopeNode, []string{"READONLY"}},
	errorLoading:       {"loading", scopeNode, []string{"LOADING"}},
	errorMasterDown:    {"master_down", scopeNode, []string{"MASTERDOWN"}},
	errorClusterDown:   {"cluster_down", scopeNode, []string{"CLUSTERDOWN"}},
	errorNoReplicas:    {"no_replicas", scopeNode, []string{"NOREPLICAS"}},
	errorMemory:        {"out_of_memory", scopeNode, []string{"OOM"}},
	errorDisk:          {"disk", scopeNode, []string{"MISCONF"}},
	errorBusy:          {"busy", scopeNode, []string{"BUSY"}},
	errorAuth: {"authentication", scopeNode, []string{
		"NOAUTH", "WRONGPASS", "NOPERM", "ERR invalid password", "ERR Client sent AUTH",
	}},
	errorMoved:    {"moved", scopeSession, []string{"MOVED"}},
	errorAsk:      {"ask", scopeSession, []string{"ASK"}},
	errorTryAgain: {"try_again", scopeSession, []string{"TRYAGAIN"}},
	errorNoScript: {"no_script", scopeSession, []string{"NOSCRIPT"}},
	errorDamaged:  {"damaged", scopeSession, []string{"DAMAGED", "WRONGTYPE"}},
	errorOther:    {"other", scopeSession, nil},
}

func (k errorKind) String() string { return errorNames[k].name }

func (k errorKind) scope() errorScope { return errorNames[k].scope }

// errNotReplicated says that fewer replicas than wanted have what was written.
var errNotReplicated = errors.New("fewer replicas than wait_replicas have confirmed the write")

// errNoAnswer says that a command has neither an answer nor an error.
var errNoAnswer = errors.New("no answer")

// errDamagedOwner says that a session's owner cannot be read.
var errDamagedOwner = errors.New("the owner's key has no token")

// errorKindOf sorts an error of the Redis client's.
func errorKindOf(err error) errorKind {
	var answer redis.Error
	var dial *net.OpError
	var timeout net.Error
	var handshake *handshakeError
	switch {
	case errors.As(err, &answer):
		return answeredKind(answer.Error()) // the sentinels' answers stand within another error
	case errors.Is(err, errNotReplicated):
		return errorNotReplicated
	case errors.Is(err, errDataLost):
		return errorDataLost
	case errors.Is(err, errClusterNode):
		return errorMoved
	case errors.Is(err, errDamagedOwner):
		return errorDamaged
	case errors.As(err, &handshake) && handshake.isOfCertificate():
		return errorCertificate
	case errors.As(err, &handshake), errors.Is(err, errTLSPort):
		return errorTLS
	case errors.As(err, &dial) && dial.Op == "dial":
		return errorUnreachable
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errorTimeout
	}
	return errorConnection
}

// answeredKind sorts what Redis has answered. Before Redis 7, a script's error
// stands within another one.
func answeredKind(text string) errorKind {
	for kind, e := range errorNames {
		for _, word := range e.words {
			if strings.HasPrefix(text, word) || strings.HasPrefix(text, "ERR Error running script") && strings.Contains(text, "-"+word) {
				return errorKind(kind)
			}
		}
	}
	return errorOther
}

// redirectedTo is the address in "ASK 3999 127.0.0.1:6381".
func redirectedTo(err error) string {
	fields := strings.Fields(err.Error())
	return fields[len(fields)-1]
}

// A claimResult is how a claim ended: a label of the metrics.
type claimResult uint8

const (
	claimResumed claimResult = iota
	claimStarted
	claimUnavailable
	claimFull
	claimAbandoned // the client left before
	claimResults   // how many there are
)

var claimNames = [claimResults]string{"resumed", "started", "unavailable", "full", "abandoned"}

// A takeoverResult is how a connection found out that it had lost its session:
// a label of the metrics.
type takeoverResult uint8

const (
	takeoverTold takeoverResult = iota
	takeoverFenced
	takeoverResults // how many there are
)

var takeoverNames = [takeoverResults]string{"told", "fenced"}

// MetricLabels are the labels of what a Redis store counts.
func MetricLabels() metrics.StoreLabels {
	labels := metrics.StoreLabels{Claims: claimNames[:], Takeovers: takeoverNames[:]}
	for o := range Outcomes {
		labels.Commits = append(labels.Commits, outcomeNames[o])
	}
	for _, e := range errorNames {
		labels.Errors = append(labels.Errors, e.name)
	}
	return labels
}
