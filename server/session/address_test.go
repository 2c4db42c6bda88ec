package session

import (
	"errors"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	f := func(text, want string, cluster bool) {
		t.Helper()
		a, err := ParseAddress(text)
		if err != nil || a.String() != want || a.isCluster() != cluster {
			t.Errorf("%q is read as %v (cluster: %v), %v; want %s (cluster: %v)", text, a, a != nil && a.isCluster(), err, want, cluster)
		}
	}
	f("redis://host", "redis://host:6379", false)
	f("redis://user:secret@host:1234/5", "redis://host:1234?db=5", false)
	f("redis://:secret@[::1]:1234", "redis://[::1]:1234", false)
	f("redis://[::1]", "redis://[::1]:6379", false)
	f("rediss://host?skip_verify=true&db=2", "rediss://host:6379?db=2", false)
	f("unix:///run/redis.sock", "unix:///run/redis.sock", false)
	f("unix://user:secret@/run/redis.sock?db=1", "unix:///run/redis.sock?db=1", false)
	f("redis://a,b:2,c", "redis://a:6379,b:2,c:6379", true)
	f("redis://u:secret@a:1,redis://u:secret@b:2", "redis://a:1,b:2", true)
	f("redis://u:sec%2Cret@a:1,b:2", "redis://a:1,b:2", true)
	f("redis://a,b/2?master_name=m&sentinel_password=secret", "redis://a:26379,b:26379?db=2&master_name=m", false)
	f("redis://a?wait_replicas=2", "redis://a:6379?wait_replicas=2", false)
}

func TestParseAddressErrors(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		_, err := ParseAddress(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	f("", "must begin with redis://")
	f("host:6379", "must begin with redis://")
	f("http://secret@host", "must begin with redis://")
	f("redis://", "must have a host")
	f("redis://:secret@", "must have a host")
	f("unix://", "must have a host, or a path")
	f("redis://:secret%zz@host", "must be a URL")
	f("redis://host:secret", "must be a URL")
	f("redis://a,rediss://b", "must have one scheme")
	f("redis://u:secret@a,redis://v:secret@b", "the same user and password")
	f("redis://secret@a", "must have a password behind the user, as user:password@host; a password alone is :password@host")
	f("unix://secret:@/run/redis.sock", "must have a password behind the user")
	f("redis://h:99999", "must have a port from 1 to 65535 behind each host")
	f("redis://h:0", "must have a port from 1 to 65535 behind each host")
	f("rediss://u:secret@a,b:70000", "must have a port from 1 to 65535 behind each host")
	f("redis://host/secret", "must have a whole number from 0 to 1048576 as the database, behind the host's slash or as db")
	f("redis://host?db=-1", "must have a whole number from 0 to 1048576 as the database")
	f("redis://host?wait_replicas=many", "must have a whole number from 0 to 100 as wait_replicas")
	f("redis://host?wait_replicas=101", "must have a whole number from 0 to 100 as wait_replicas")
	f("redis://host?skip_verify=maybe", "must have true or false as skip_verify")
	f("redis://host?pool=1", "must have nothing but db, wait_replicas, master_name, "+
		"sentinel_username, sentinel_password, skip_verify behind the question mark, got \"pool\"")
	f("redis://u:12?secret=", "must have nothing but db")
	f("redis://u:12?7secret=1", "must have nothing but db")
	f("redis://:12?secret@host", "must have # as %23")
	f("redis://secret?pw@host", "must have # as %23")
	f("redis://:12?secret", "must have nothing but db")
	f("redis://user:123#secret@host", "must have # as %23")
	f("redis://user:123,secret@host", "in the first address")
	f("unix:///a,/b", "must be redis://")
	f("unix:///a?master_name=m", "must be redis://")
	f("redis://a,b/1", "must be database 0")
}

func TestCredentialsGetThrough(t *testing.T) {
	a, err := ParseAddress("redis://us%40er:p%2Fa%2Css@host:1?sentinel_username=su&sentinel_password=sp")
	if err != nil || a.username != "us@er" || a.password != "p/a,ss" || a.sentinelUsername != "su" || a.sentinelPassword != "sp" {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestErrorsDoNotNameTheUser(t *testing.T) {
	a, err := ParseAddress("redis://counter:pass@host?sentinel_username=watcher&sentinel_password=word&master_name=m")
	if err != nil {
		t.Fatal(err)
	}
	f := func(text, want string) {
		t.Helper()
		if got := a.withoutUser(errors.New(text)).Error(); got != want {
			t.Errorf("%q is told as %q, want %q", text, got, want)
		}
	}
	f("NOPERM User counter has no permissions to run the 'set' command", "NOPERM this user has no permissions to run the 'set' command")
	f("NOPERM User watcher has no permissions to run the 'sentinel' command",
		"NOPERM this user has no permissions to run the 'sentinel' command")
	f("dial tcp 127.0.0.78:1: connect: connection refused", "dial tcp 127.0.0.78:1: connect: connection refused")
}

func TestToken(t *testing.T) {
	for _, want := range []token{{}, {1, leaseID{2, 3}, 4}, {1 << 63, leaseID{1<<32 - 1, 1<<32 - 1}, 1<<32 - 1}} {
		if got := parseToken(want.String()); got != want {
			t.Errorf("%v is read as %v", want, got)
		}
	}
	for _, bad := range []string{"", "x", "1.2.3", "1.2-3", "1.2-3.g", "1.100000000-3.4", "1.2-3.4.5", "-1.2-3.4"} {
		if got := parseToken(bad); got != (token{}) {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}
