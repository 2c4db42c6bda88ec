package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
)

// helpColumns is how wide -help is: it fits the narrowest terminal in use.
const helpColumns = 80

const helpHead = `server counts the messages of each WebSocket session: a fixed number of event
loops serves tens of thousands of connections. Without a flag it listens on port
8000; open http://localhost:8000/ to try it.

Usage: server [flags]

A DURATION is a number with a unit: 300ms, 30s, 1m30s, 2h.
`

const helpFoot = `
Each flag but -version also reads an environment variable: -max-message reads
TURNSTILE_MAX_MESSAGE. The command line wins; an empty variable counts as none.
Exit codes: 0 after a drain or an answer, 1 for a failure, 2 for a wrong flag.
`

// printHelp writes the table of flags for a terminal.
func printHelp(out io.Writer, groups []settingGroup) {
	io.WriteString(out, helpHead)
	for _, group := range groups {
		fmt.Fprintf(out, "\n%s\n", group.title)
		for _, s := range group.settings {
			printSetting(out, s)
		}
	}
	io.WriteString(out, helpFoot)
}

func printSetting(out io.Writer, s setting) {
	facts := []string{"default " + s.defaultText()}
	if bounds := s.value.bounds(); bounds != "" {
		facts = append(facts, bounds)
	}
	wrap(out, "  ", fmt.Sprintf("%s (%s)", s.usage(), strings.Join(facts, "; ")))
	wrap(out, "      ", s.text+" Set it when "+s.when+".")
}

// usage is the flag as it is written on a command line. A value that may be left out
// stands behind "=", and so does its unit.
func (s setting) usage() string {
	if strings.HasPrefix(s.unit, "[") {
		return "-" + s.name + s.unit
	}
	return strings.TrimSpace("-" + s.name + " " + s.unit)
}

// defaultText is the default for a reader.
func (s setting) defaultText() string {
	switch value := s.value.String(); {
	case s.byDefault != "":
		return s.byDefault
	case value == "":
		return "none"
	default:
		return value
	}
}

// wrap writes text in lines of at most helpColumns that begin with indent.
func wrap(out io.Writer, indent, text string) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if len(line) > len(indent) && len(line)+1+len(word) > helpColumns {
			fmt.Fprintln(out, line)
			line = indent
		}
		if len(line) > len(indent) {
			line += " "
		}
		line += word
	}
	fmt.Fprintln(out, line)
}

// versionLine is what -version prints.
func versionLine() string {
	version := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return fmt.Sprintf("turnstile %s, revision %s, %s %s/%s", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
