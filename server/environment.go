package main

import (
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/rs/zerolog"
)

// environmentPrefix is how the names of our environment variables begin.
const environmentPrefix = "TURNSTILE_"

// environmentName is the variable that a flag falls back to.
func environmentName(name string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// othersVariables, behind the prefix, are read by the scripts and by the
// compose file. The server meets them since it inherits their environment.
var othersVariables = []string{
	"BACKEND", "BIN", "BLUE", "BLUE_PORT", "DEPLOY", "GRAFANA_PORT", "GREEN", "GREEN_PORT", "HOST", "MONITORING", "NOFILE", "PATIENCE",
	"PORT", "RUN_DIR", "URL", "USER",
	"LOKI_PORT", "VICTORIALOGS", "VICTORIALOGS_PORT", "VICTORIAMETRICS", "VICTORIAMETRICS_PORT",
	"VLAGENT", "VLAGENT_PORT", "VMALERT", "VMALERT_PORT",
}

// isOthers reports whether a variable is somebody else's. Kubernetes makes some
// for each service, here for one that is called turnstile.
func isOthers(name string) bool {
	name = strings.TrimPrefix(name, environmentPrefix)
	return slices.Contains(othersVariables, name) || strings.HasPrefix(name, "SERVICE_") || strings.HasPrefix(name, "PORT_")
}

// setFromEnvironment sets what the command line has not set, and notes the
// variables that look like settings and are none.
func (c *Config) setFromEnvironment(environ []string) error {
	given := make(map[string]bool)
	c.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	variables := c.variables()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		value = strings.TrimSpace(value)
		f, ok := variables[name]
		switch {
		case !strings.HasPrefix(name, environmentPrefix):
		case !ok && !isOthers(name):
			c.unknown = append(c.unknown, name)
		case !ok || value == "" || given[f.Name]:
		default:
			if err := f.Value.Set(value); err != nil {
				return fmt.Errorf("%s%s is not valid: -%s %w", name, shown("=%q", f, value), f.Name, err)
			}
		}
	}
	return nil
}

// variables are the flags by the names of their variables.
func (c *Config) variables() map[string]*flag.Flag {
	variables := make(map[string]*flag.Flag)
	for _, group := range c.groups {
		for _, s := range group.settings {
			if !s.noVariable {
				variables[environmentName(s.name)] = c.flags.Lookup(s.name)
			}
		}
	}
	return variables
}

// warnOfUnknown logs the variables that look like settings and are none. Their
// values may be secret.
func (c *Config) warnOfUnknown(log zerolog.Logger) {
	var names []string
	for name := range c.variables() {
		names = append(names, strings.TrimPrefix(name, environmentPrefix))
	}
	slices.Sort(names)
	for _, name := range c.unknown {
		hint := meant(environmentPrefix, strings.TrimPrefix(name, environmentPrefix), names)
		log.Warn().Str("variable", name).Str("advice", "no flag has this variable, and it is not used"+hint).Msg("unknown_variable")
	}
}

func flagNames(flags *flag.FlagSet) (names []string) {
	flags.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	return names
}

// meant is the end of an error about a name that is unknown: the one that is most
// like it, and where all of them are.
func meant(prefix, unknown string, names []string) string {
	nearest := slices.MinFunc(names, func(a, b string) int { return edits(unknown, a) - edits(unknown, b) })
	if 2*edits(unknown, nearest) > len(unknown)+1 {
		return "; see -help"
	}
	return ": did you mean " + prefix + nearest + "? See -help"
}

// edits is how many characters have to be added, dropped or replaced to make b
// of a: the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
