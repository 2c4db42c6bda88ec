package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstile/server/session"
)

// A value is a flag's. It checks what it is given, and its errors go on from the
// flag's name: "must be …".
type value interface {
	flag.Value
	bounds() string // what is allowed, in few words; empty where the setting's text says it
}

type intFlag struct {
	value     *int
	low, high int
}

// whole is a flag for a number from low to high.
func whole(p *int, byDefault, low, high int) *intFlag {
	*p = byDefault
	return &intFlag{p, low, high}
}

func (f *intFlag) bounds() string {
	if f.high == unbounded {
		return fmt.Sprintf("%d or more", f.low)
	}
	return fmt.Sprintf("from %d to %d", f.low, f.high)
}

func (f *intFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < f.low || n > f.high {
		return fmt.Errorf("must be a whole number from %d to %d", f.low, f.high)
	}
	*f.value = n
	return nil
}

func (f *intFlag) String() string {
	if f.value == nil {
		return ""
	}
	return strconv.Itoa(*f.value)
}

type durationFlag struct {
	value *time.Duration
	low   time.Duration
}

// span is a flag for a duration of at least low.
func span(p *time.Duration, byDefault, low time.Duration) *durationFlag {
	*p = byDefault
	return &durationFlag{p, low}
}

func (f *durationFlag) bounds() string {
	return "from " + shortDuration(f.low) + " to " + shortDuration(maxDuration)
}

func (f *durationFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < f.low || d > maxDuration {
		return fmt.Errorf("must be a duration %s, such as 30s or 1m30s", f.bounds())
	}
	*f.value = d
	return nil
}

func (f *durationFlag) String() string {
	if f.value == nil {
		return ""
	}
	return shortDuration(*f.value)
}

// shortDuration writes 1h, not 1h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

type choiceFlag struct {
	value   *string
	allowed []string
}

// choice is a flag for one of allowed.
func choice(p *string, byDefault string, allowed ...string) *choiceFlag {
	*p = byDefault
	return &choiceFlag{p, allowed}
}

func (f *choiceFlag) bounds() string { return "one of " + strings.Join(f.allowed, ", ") }

func (f *choiceFlag) Set(s string) error {
	s = strings.ToLower(s)
	if !slices.Contains(f.allowed, s) {
		return errors.New("must be " + f.bounds())
	}
	*f.value = s
	return nil
}

func (f *choiceFlag) String() string {
	if f.value == nil {
		return ""
	}
	return *f.value
}

type boolFlag struct{ value *bool }

func (f *boolFlag) Set(s string) (err error) {
	if *f.value, err = strconv.ParseBool(s); err != nil {
		return errors.New("must be true or false")
	}
	return nil
}

func (f *boolFlag) String() string { return strconv.FormatBool(f.value != nil && *f.value) }

func (f *boolFlag) bounds() string { return "" }

// IsBoolFlag makes the flag's name alone mean true.
func (f *boolFlag) IsBoolFlag() bool { return true }

// A sizeFlag is off, or a size in bytes. The flag's name alone means byDefault.
type sizeFlag struct {
	value           *int // 0 is off
	byDefault, high int
}

func (f *sizeFlag) bounds() string { return fmt.Sprintf("from 1 to %d", f.high) }

func (f *sizeFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	switch on, boolErr := strconv.ParseBool(s); {
	case err == nil && 0 <= n && n <= f.high:
		*f.value = n
	case err == nil || boolErr != nil:
		return fmt.Errorf("must be true, false or a whole number %s", f.bounds())
	case on:
		*f.value = f.byDefault
	default:
		*f.value = 0
	}
	return nil
}

func (f *sizeFlag) String() string {
	if f.value == nil || *f.value == 0 {
		return "false"
	}
	return strconv.Itoa(*f.value)
}

// IsBoolFlag lets the flag stand without a value.
func (f *sizeFlag) IsBoolFlag() bool { return true }

// A textFlag is text with a check of its own.
type textFlag struct {
	value *string
	check func(string) error
}

func (f *textFlag) Set(s string) error {
	*f.value = s
	return f.check(s)
}

func (f *textFlag) String() string {
	if f.value == nil {
		return ""
	}
	return *f.value
}

func (f *textFlag) bounds() string { return "" }

// A listFlag is values separated by commas.
type listFlag struct {
	value *[]string
	check func(string) error
}

func (f *listFlag) Set(s string) error {
	var values []string
	for value := range strings.SplitSeq(s, ",") {
		value = strings.TrimSpace(value)
		if err := f.check(value); err != nil {
			return err
		}
		if slices.Contains(values, value) {
			return errors.New("must not name anything twice")
		}
		values = append(values, value)
	}
	*f.value = values
	return nil
}

func (f *listFlag) String() string {
	if f.value == nil {
		return ""
	}
	return strings.Join(*f.value, ",")
}

func (f *listFlag) bounds() string { return "" }

type prefixesFlag struct{ value *[]netip.Prefix }

func (f *prefixesFlag) bounds() string { return "" }

func (f *prefixesFlag) Set(s string) error {
	var prefixes []netip.Prefix
	for text := range strings.SplitSeq(s, ",") {
		prefix, err := parsePrefix(strings.TrimSpace(text))
		if err != nil {
			return errors.New("must be addresses such as 10.0.0.1 or 10.0.0.0/8, separated by commas")
		}
		if err := checkPrefix(prefix); err != nil {
			return err
		}
		prefixes = append(prefixes, prefix)
	}
	*f.value = prefixes
	return nil
}

func (f *prefixesFlag) String() string {
	if f.value == nil {
		return ""
	}
	var texts []string
	for _, prefix := range *f.value {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, ",")
}

// parsePrefix reads an address or a block of them. IPv4 in its IPv6-mapped form is IPv4:
// so it matches either form of a peer's address.
func parsePrefix(text string) (netip.Prefix, error) {
	const mappedBits = 96
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), err
	}
	prefix, err := netip.ParsePrefix(text)
	if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= mappedBits {
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-mappedBits)
	}
	return prefix.Masked(), err
}

// checkPrefix refuses what is no peer's address.
func checkPrefix(prefix netip.Prefix) error {
	addr := prefix.Addr()
	switch {
	case prefix.IsSingleIP() && addr.IsUnspecified():
		return fmt.Errorf("must name proxies: %s is nobody's address, and all addresses are %s/0", addr, addr)
	case addr.IsMulticast():
		return fmt.Errorf("must name proxies: no connection comes from %s, which is multicast", prefix)
	}
	return nil
}

func checkListenAddress(s string) error {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if err := checkSocketPath(path); err != nil {
			return fmt.Errorf("%w behind its unix: prefix", err)
		}
		return nil
	}
	if err := checkTCPAddress(s); err != nil {
		return fmt.Errorf("%w, or unix:/path", err)
	}
	return nil
}

const longestSocketPath = 107 // of sockaddr_un, less its final zero: unix(7)

func checkSocketPath(path string) error { return checkPath(path, longestSocketPath) }

// checkControlPath leaves room for what openControl puts behind the path: a dot and the
// number of a process, of which the kernel allows 1<<22.
func checkControlPath(path string) error { return checkPath(path, longestSocketPath-len(".4194304")) }

func checkPath(path string, longest int) error {
	if path == "" || len(path) > longest {
		return fmt.Errorf("must have a path of 1 to %d bytes", longest)
	}
	return nil
}

// checkCommand takes what -tell may say: see control.obey.
func checkCommand(s string) error {
	word, path, _ := strings.Cut(s, " ")
	switch word {
	case commandStatus, commandDrain:
		if path == "" {
			return nil
		}
	case commandPrepare, commandTakeOver:
		if checkSocketPath(path) == nil {
			return nil
		}
	}
	return errors.New("must be status, drain, prepare PATH or take-over PATH")
}

func checkTCPAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("must be host:port, with a port from 0 to 65535 (0 is a free one), such as :8000 or [::1]:8000")
	}
	return nil
}

// A redisFlag prints no credentials.
type redisFlag struct{ value **session.Address }

func (f *redisFlag) bounds() string { return "" }

func (f *redisFlag) Set(s string) (err error) {
	*f.value, err = session.ParseAddress(s)
	return err
}

func (f *redisFlag) String() string {
	if f.value == nil || *f.value == nil {
		return ""
	}
	return (*f.value).String()
}
