# shellcheck shell=bash
# The stack's paths, ports and colours, for the scripts beside it to source.
# These variables move it, so that several can run on one machine:
#
#   TURNSTILE_RUN_DIR     sockets, pid files, logs and data (.run)
#   TURNSTILE_HOST        the address of every port below (127.0.0.1)
#   TURNSTILE_PORT        nginx (8080)
#   TURNSTILE_BLUE_PORT, TURNSTILE_GREEN_PORT     the colours, past nginx (8001, 8002)
#   TURNSTILE_VICTORIAMETRICS_PORT, TURNSTILE_VMALERT_PORT,
#   TURNSTILE_VICTORIALOGS_PORT, TURNSTILE_VLAGENT_PORT     (8428, 8880, 9428, 9429)
#   TURNSTILE_BIN         a folder with server and bench, instead of building them
#   TURNSTILE_MONITORING  off: without those four, which watch
#   TURNSTILE_PATIENCE    seconds that promote.sh gives a colour to get ready (15)
#   TURNSTILE_BACKEND     processes or compose (compose where a Docker engine is)
#   TURNSTILE_NOFILE      compose: files that a container may open (65536); an engine
#                         without privilege cannot give more than it has
#
# Every flag of the server is a variable too: TURNSTILE_MAX_MESSAGE for
# -max-message. The colours take what is set when they are started.
set -euo pipefail

PATH=$PATH:/usr/sbin # where Debian keeps nginx
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN=$(realpath -m "${TURNSTILE_RUN_DIR:-$ROOT/.run}")
HOST=${TURNSTILE_HOST:-127.0.0.1}
NGINX_PORT=${TURNSTILE_PORT:-8080}
# shellcheck disable=SC2034 # for the file sourced below
METRICS_PORT=${TURNSTILE_VICTORIAMETRICS_PORT:-8428} ALERTS_PORT=${TURNSTILE_VMALERT_PORT:-8880} \
	LOGS_PORT=${TURNSTILE_VICTORIALOGS_PORT:-9428} SHIPPER_PORT=${TURNSTILE_VLAGENT_PORT:-9429} \
	MONITORING=${TURNSTILE_MONITORING:-on}
declare -A COLOUR_PORT=([blue]=${TURNSTILE_BLUE_PORT:-8001} [green]=${TURNSTILE_GREEN_PORT:-8002})
SITE=http://$HOST:$NGINX_PORT

# LOCK is the file descriptor of the lock, which no process of the stack may
# inherit: it would hold the lock for as long as it lives.
LOCK=

complain() { echo "${0##*/}: $*" >&2; }
die() {
	complain "$@"
	exit 1
}

is_colour() { [[ $1 == blue || $1 == green ]]; }
other_colour() { [[ $1 == blue ]] && echo green || echo blue; }

# active_colour is the one that the link leads to; fails if there is none.
active_colour() {
	local socket
	socket=$(readlink "$RUN/active.sock" 2>/dev/null) || return 1
	is_colour "${socket%.sock}" && echo "${socket%.sock}"
}

# activate COLOUR makes nginx lead to it: rename(2) replaces the link, so that
# at no moment there is none. The link is relative, and holds within a container.
activate() {
	ln -sfn "$1.sock" "$RUN/active.sock.new"
	mv -T "$RUN/active.sock.new" "$RUN/active.sock"
}

# one_at_a_time takes the lock that the scripts which change the stack share.
one_at_a_time() {
	mkdir -p "$RUN"
	exec {LOCK}>"$RUN/lock"
	flock -n "$LOCK" || die "another promotion, dev-up or dev-down is under way (it holds $RUN/lock)"
}

# now is the time in microseconds.
now() { echo "${EPOCHREALTIME/[.,]/}"; }

# await SECONDS COMMAND... repeats the command, whose output is dropped, until
# it succeeds; fails when the time is over.
await() {
	local end=$(($(now) + $1 * 1000000))
	shift
	until "$@" &>/dev/null; do
		(($(now) < end)) || return 1
		sleep 0.05
	done
}

# colour_answers COLOUR PAGE succeeds if a colour's /healthz/ or /readyz/ is 200.
colour_answers() { colour_tool "$1" server -healthcheck "unix:$SOCKETS/$1.sock:$2"; }
is_ready() { colour_answers "$1" /readyz/ &>/dev/null; }

# await_colour COLOUR PAGE SECONDS waits until the page answers; fails at once
# when the colour has ended, and says why.
await_colour() {
	local end=$(($(now) + $3 * 1000000)) said
	until said=$(colour_answers "$1" "$2" 2>&1); do
		if colour_runs "$1" && (($(now) < end)); then
			sleep 0.05
			continue
		fi
		echo "  ${said:-no answer}; the last lines of $1:"
		colour_log "$1"
		return 1
	done
}

# tell COLOUR COMMAND gives a colour a command, and prints its answer.
tell() { colour_tool "$1" server -control "$SOCKETS/$1.control" -tell "$2" 2>&1; }

# smoke COLOUR URL tests a server as a client does: see bench smoke.
smoke() {
	local colour=$1
	shift
	colour_tool "$colour" bench smoke "$@"
}

# look URL TEXT prints where to look at something.
look() { printf '  %-48s %s\n' "$1" "$2"; }

# unwatched is the watchers that could not be started.
unwatched=()

# look_at WATCHER URL TEXT prints where to look at what a watcher shows, if it runs.
look_at() {
	[[ " ${unwatched[*]} " == *" $1 "* ]] || look "$2" "$3"
}

# The path becomes part of nginx's configuration, and of sockets' addresses, which
# have 107 bytes at the most.
[[ $RUN =~ ^[[:alnum:]/._+-]{1,95}$ ]] ||
	die "TURNSTILE_RUN_DIR must be a path of at most 95 letters, digits and any of /._+-, got \"$RUN\""

# What differs between processes and containers. Both define SOCKETS, the folder
# of the sockets as a colour sees it, WATCHERS, the parts that watch, and
#   build               what the colours run
#   start_colour COLOUR, stop_colour COLOUR SECONDS, colour_runs COLOUR
#   colour_log COLOUR   the last lines
#   colour_tool COLOUR server|bench ARGS...     runs a program beside the colour
#   prepare_watchers    makes that those can be started
#   start_part PART, stop_parts, show_logs, watchers_say
have_docker() { command -v docker >/dev/null && docker info &>/dev/null; }

case ${TURNSTILE_BACKEND:-} in
processes | compose) BACKEND=$TURNSTILE_BACKEND ;;
'') if have_docker; then BACKEND=compose; else BACKEND=processes; fi ;;
*) die "TURNSTILE_BACKEND must be processes or compose, got \"$TURNSTILE_BACKEND\"" ;;
esac
# shellcheck source-path=SCRIPTDIR source=processes.sh
source "$ROOT/scripts/$BACKEND.sh"
