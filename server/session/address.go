package session

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// An Address is where Redis is: one server, a Redis Cluster, or what Redis
// Sentinel watches. Neither its text nor its errors have credentials.
type Address struct {
	scheme             string
	addrs              []string // host:port of each, or the one path
	username, password string
	db                 int
	skipVerify         bool   // of the server's certificate
	master             string // the name by which the sentinels at addrs know it, "" without
	sentinelUsername   string
	sentinelPassword   string
	replicas           int // that have to confirm each write
}

// ParseAddress reads
//
//	redis://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…][/DB][?QUERY]
//	rediss://… (TLS), in which SCHEME:// may be repeated before each host
//	unix://[USER:PASSWORD@]PATH[?QUERY]
//
// Several hosts are a Redis Cluster, or sentinels if the query has master_name.
// See queryKeys for what else it may have.
func ParseAddress(text string) (*Address, error) {
	scheme, _, _ := strings.Cut(text, "://")
	switch scheme {
	case "redis", "rediss", "unix":
	default:
		return nil, errors.New("must begin with redis://, rediss:// or unix://, " +
			"such as redis://user:password@host:6379/0 or unix:///run/redis.sock")
	}
	a := &Address{scheme: scheme}
	query := make(url.Values)
	for _, part := range strings.Split(text, ",") {
		if !strings.Contains(part, "://") {
			part = scheme + "://" + part
		}
		if err := a.addPart(part, query); err != nil {
			return nil, err
		}
	}
	if err := a.setQuery(query); err != nil {
		return nil, err
	}
	return a, a.check()
}

// addPart takes in what is said of one host.
func (a *Address) addPart(part string, query url.Values) error {
	u, err := url.Parse(part)
	if err != nil { // which would quote the password
		return errors.New("must be a URL: write special characters of the user and the password as %XX, a comma as %2C")
	}
	if u.Fragment != "" || strings.Contains(part, "#") || strings.Contains(u.RawQuery, "@") {
		return errors.New("must have # as %23, ? as %3F and @ as %40 in the user and the password")
	}
	if u.Scheme != a.scheme {
		return fmt.Errorf("must have one scheme for all addresses, got %s:// and %s://", a.scheme, u.Scheme)
	}
	if !validPort(u.Port()) {
		return errors.New("must have a port from 1 to 65535 behind each host, such as redis://host:6379")
	}
	if user := u.User; user != nil {
		password, _ := user.Password()
		if a.username+a.password == "" && len(a.addrs) > 0 {
			return errors.New("must have the user and the password in the first address, with a comma as %2C")
		}
		if a.username+a.password != "" && (a.username != user.Username() || a.password != password) {
			return errors.New("must have the same user and password for all addresses")
		}
		a.username, a.password = user.Username(), password
	}
	for key, values := range u.Query() {
		query[key] = values
	}
	if a.scheme == "unix" {
		a.addrs = append(a.addrs, u.Host+u.Path)
		return nil
	}
	a.addrs = append(a.addrs, u.Host)
	if db := strings.Trim(u.Path, "/"); db != "" {
		query.Set("db", db)
	}
	return nil
}

// validPort reports whether port is a port, or nothing at all.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

// queryKeys are what a URL's query may have, in the order in which a usage
// text should name them.
var queryKeys = []struct {
	name string
	set  func(a *Address, value string) error // the error goes on from "must have "
}{
	{"db", func(a *Address, value string) (err error) {
		a.db, err = wholeNumber(value, 1<<20, "as the database, behind the host's slash or as db, such as redis://host:6379/0")
		return err
	}},
	{"wait_replicas", func(a *Address, value string) (err error) {
		a.replicas, err = wholeNumber(value, 100, "as wait_replicas, of replicas that confirm each write")
		return err
	}},
	{"master_name", func(a *Address, value string) error { a.master = value; return nil }},
	{"sentinel_username", func(a *Address, value string) error { a.sentinelUsername = value; return nil }},
	{"sentinel_password", func(a *Address, value string) error { a.sentinelPassword = value; return nil }},
	{"skip_verify", func(a *Address, value string) (err error) {
		if a.skipVerify, err = strconv.ParseBool(value); err != nil {
			err = errors.New("true or false as skip_verify")
		}
		return err
	}},
}

func (a *Address) setQuery(query url.Values) error {
	var names []string
	for _, key := range queryKeys {
		names = append(names, key.name)
		if values, ok := query[key.name]; ok {
			if err := key.set(a, values[len(values)-1]); err != nil {
				return fmt.Errorf("must have %w", err)
			}
			delete(query, key.name)
		}
	}
	for name, values := range query {
		return fmt.Errorf("must have nothing but %s behind the question mark%s", strings.Join(names, ", "), quotedKey(name, values))
	}
	return nil
}

// quotedKey is how an error quotes a key that is not known: not at all if it may
// be the end of a password.
func quotedKey(name string, values []string) string {
	isWord := strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz_") == ""
	if !isWord || len(values) == 0 || values[0] == "" {
		return ""
	}
	return fmt.Sprintf(", got %q", name)
}

// wholeNumber reads a number from 0 to most; the error says what it is for.
func wholeNumber(text string, most int, purpose string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("a whole number from 0 to %d %s", most, purpose)
	}
	return n, nil
}

// check looks at the whole, and fills in the ports.
func (a *Address) check() error {
	port := "6379"
	if a.master != "" {
		port = "26379"
	}
	for i, addr := range a.addrs {
		switch {
		case addr == "":
			return errors.New("must have a host, or a path behind unix://")
		case a.scheme == "unix" && (len(a.addrs) > 1 || a.master != ""):
			return errors.New("must be redis:// or rediss:// for a cluster or for sentinels")
		case a.scheme == "unix":
		case addr[strings.LastIndexByte(addr, ']')+1:] == "" || !strings.Contains(addr[strings.LastIndexByte(addr, ']')+1:], ":"):
			a.addrs[i] = addr + ":" + port
		}
	}
	if a.username != "" && a.password == "" { // the client library would send neither
		return errors.New("must have a password behind the user, as user:password@host; a password alone is :password@host")
	}
	if a.isCluster() && a.db != 0 {
		return errors.New("must be database 0 with a cluster")
	}
	return nil
}

// isCluster reports whether the addresses are nodes of a Redis Cluster.
func (a *Address) isCluster() bool { return len(a.addrs) > 1 && a.master == "" }

// String has all but the credentials.
func (a *Address) String() string {
	query := make(url.Values)
	if a.db != 0 {
		query.Set("db", strconv.Itoa(a.db))
	}
	if a.master != "" {
		query.Set("master_name", a.master)
	}
	if a.replicas != 0 {
		query.Set("wait_replicas", strconv.Itoa(a.replicas))
	}
	text := a.scheme + "://" + strings.Join(a.addrs, ",")
	if len(query) > 0 {
		text += "?" + query.Encode()
	}
	return text
}

// withoutUser is an error without the names of the users, which Redis from 7.2
// on quotes where it denies them something.
func (a *Address) withoutUser(err error) error {
	text := err.Error()
	for _, name := range []string{a.username, a.sentinelUsername} {
		text = strings.ReplaceAll(text, "User "+name+" has ", "this user has ")
	}
	return errors.New(text)
}

const (
	// callShare is which part of the store's timeout one call may take, and
	// waitShare how long replicas get to confirm: there has to be time for
	// another try.
	callShare, waitShare = 4, 8
)

// longestCall is how long one call may take at the most. Tests make it longer.
var longestCall = 2 * time.Second

// callTimeout is how long one call may take.
func callTimeout(timeout time.Duration) time.Duration { return min(timeout/callShare, longestCall) }

const (
	// poolSize is how many connections to a node carry commands.
	poolSize = 4
	// connectionsOfNode are a pool, the one for publish/subscribe, and some that are
	// being replaced.
	connectionsOfNode = 2 * poolSize
	// leastNodes is how many nodes a cluster may have at least, however few of them an
	// address names: the others are found by asking.
	leastNodes = 12
)

// MaxConnections is how many connections the store has at the most to serve so many loops,
// with as many nodes as the address names, or twice as many in a cluster.
func (a *Address) MaxConnections(loops int) int {
	lanes := 2 * loops // of which one may be opened while another one is closed
	switch {
	case a.isCluster():
		return (connectionsOfNode + lanes) * max(2*len(a.addrs), leastNodes)
	case a.master != "":
		return connectionsOfNode*(1+len(a.addrs)) + lanes
	}
	return connectionsOfNode + lanes
}

// client connects to the one server, or to the one that the sentinels name.
func (a *Address) client(timeout time.Duration) *redis.Client {
	if a.master == "" {
		return a.node(a.addrs[0], timeout, nil)
	}
	o := a.options("", timeout, nil)
	return redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: a.master, SentinelAddrs: a.addrs, SentinelUsername: a.sentinelUsername, SentinelPassword: a.sentinelPassword,
		Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLSConfig,
		Dialer:   o.Dialer,
		Protocol: o.Protocol, MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries, DisableIdentity: o.DisableIdentity, PoolSize: o.PoolSize,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
	})
}

// node connects to one server. keep is given its connections, if it is not nil.
func (a *Address) node(addr string, timeout time.Duration, keep func(*laneConn)) *redis.Client {
	return redis.NewClient(a.options(addr, timeout, keep))
}

// masterAddr asks the sentinels, one after the other, where the master is.
func (a *Address) masterAddr(ctx context.Context, timeout time.Duration) (addr string, err error) {
	for _, sentinel := range a.addrs {
		o := a.options(sentinel, timeout, nil)
		o.Username, o.Password, o.DB = a.sentinelUsername, a.sentinelPassword, 0
		client := redis.NewSentinelClient(o)
		var master []string
		master, err = client.GetMasterAddrByName(ctx, a.master).Result()
		client.Close()
		if err == nil && len(master) == 2 {
			return net.JoinHostPort(master[0], master[1]), nil
		}
	}
	return "", cmp.Or(err, errNoAnswer)
}

// cluster knows the whole cluster.
func (a *Address) cluster(timeout time.Duration) *redis.ClusterClient {
	o := a.options("", timeout, nil)
	return redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: a.addrs, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig,
		Dialer:   o.Dialer,
		Protocol: o.Protocol, MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries, DisableIdentity: o.DisableIdentity, PoolSize: o.PoolSize,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: o.MaintNotificationsConfig,
	})
}

// options are those of a connection that repeats nothing by itself: what has to
// be done after a failure is the store's to know.
func (a *Address) options(addr string, timeout time.Duration, keep func(*laneConn)) *redis.Options {
	call := callTimeout(timeout)
	o := &redis.Options{
		Network: "tcp", Addr: addr, Username: a.username, Password: a.password, DB: a.db,
		Protocol: 2, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, PoolSize: poolSize,
		DialTimeout: call, ReadTimeout: call, WriteTimeout: call, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	switch a.scheme {
	case "unix":
		o.Network = "unix"
	case "rediss":
		host, _, _ := net.SplitHostPort(addr)
		o.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: a.skipVerify}
	}
	o.Dialer = (&dialer{net.Dialer{Timeout: call}, o.TLSConfig, keep}).dial
	return o
}

// A dialer connects to Redis.
type dialer struct {
	net.Dialer
	tls  *tls.Config     // nil without
	keep func(*laneConn) // is given each connection, if it is not nil
}

// dial implements redis.Options.Dialer.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	socket := &socket{Conn: conn, fd: -1}
	if d.keep != nil {
		conn = socket
	}
	if d.tls != nil {
		if conn, err = d.secure(ctx, conn, addr); err != nil {
			return nil, err
		}
	}
	if d.keep != nil {
		kept := &laneConn{Conn: conn, socket: socket}
		d.keep(kept)
		conn = kept
	}
	return conn, nil
}

// secure makes the TLS handshake. Its errors say that it was the handshake that failed. A
// plain Redis often answers nothing to it.
func (d *dialer) secure(ctx context.Context, plain net.Conn, addr string) (net.Conn, error) {
	own := d.tls.Clone()
	if own.ServerName == "" { // of a node that sentinels or a cluster name
		own.ServerName, _, _ = net.SplitHostPort(addr)
	}
	conn := tls.Client(plain, own)
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, &handshakeError{addr, err}
	}
	return conn, nil
}

// A handshakeError is that of a TLS handshake.
type handshakeError struct {
	addr  string
	cause error
}

func (e *handshakeError) isOfCertificate() bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(e.cause, &certificate)
}

func (e *handshakeError) Error() string {
	text := "TLS handshake with " + e.addr + ": " + e.cause.Error()
	if !e.isOfCertificate() {
		text += "; if that port speaks no TLS, write redis://"
	}
	return text
}

// errTLSPort says that a plain connection came to a port that speaks TLS.
var errTLSPort = errors.New("that port speaks TLS: write rediss://")

// explain finds out whether err, with which plain connections to addr end before any answer,
// comes from a port that speaks TLS. Redis says nothing there: it resets the connection.
func (a *Address) explain(ctx context.Context, addr string, err error) error {
	isCandidate := a.scheme == "redis" && a.master == "" && slices.Contains([]errorKind{errorConnection, errorTimeout}, errorKindOf(err))
	if isCandidate && speaksTLS(ctx, addr) {
		return fmt.Errorf("%w (%v)", errTLSPort, err)
	}
	return err
}

// speaksTLS reports whether a TLS handshake with addr succeeds, or is refused in TLS. Nothing
// else is sent, so it does not matter whose certificate it is.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, longestCall)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	var alert tls.AlertError
	return err == nil || errors.As(err, &alert)
}

// quiet keeps the client library from writing to standard error: what goes
// wrong is told by errors.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }
