# shellcheck shell=bash
# The stack's paths, ports and colours, for the scripts beside it to source.
# These variables move it, so that several can run on one machine:
#
#   TURNSTILE_RUN_DIR     sockets, pid files, logs and data (.run)
#   TURNSTILE_HOST        the address of every port below (127.0.0.1)
#   TURNSTILE_PORT        nginx (8080)
#   TURNSTILE_BLUE_PORT, TURNSTILE_GREEN_PORT     the colours, past nginx (8001, 8002)
#   TURNSTILE_BIN         a folder with server and bench, instead of building them
#   TURNSTILE_MONITORING  off: without metrics, alerts and logs
#   TURNSTILE_PATIENCE    seconds that promote.sh gives a colour to get ready (15)
#   TURNSTILE_BACKEND     processes or compose (compose where a Docker engine is)
#
# Every flag of the server is a variable too: TURNSTILE_MAX_MESSAGE for
# -max-message. The colours take what is set when they are started.
set -euo pipefail

PATH=$PATH:/usr/sbin # where Debian keeps nginx
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN=$(realpath -m "${TURNSTILE_RUN_DIR:-$ROOT/.run}")
HOST=${TURNSTILE_HOST:-127.0.0.1}
NGINX_PORT=${TURNSTILE_PORT:-8080}
declare -A COLOUR_PORT=([blue]=${TURNSTILE_BLUE_PORT:-8001} [green]=${TURNSTILE_GREEN_PORT:-8002})
SITE=http://$HOST:$NGINX_PORT

# LOCK is the file descriptor of the lock, which no process of the stack may
# inherit: it would hold the lock for as long as it lives.
LOCK=

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

other_colour() { [[ $1 == blue ]] && echo green || echo blue; }

# active_colour is the one that the link leads to; fails if there is none.
active_colour() {
	local socket colour
	socket=$(readlink "$RUN/active.sock" 2>/dev/null) || return 1
	colour=${socket%.sock}
	[[ -v COLOUR_PORT[$colour] ]] && echo "$colour"
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

# await SECONDS COMMAND... repeats the command, whose output is dropped, until
# it succeeds; fails when the time is over.
await() {
	local end=$((SECONDS + $1))
	shift
	until "$@" &>/dev/null; do
		((SECONDS < end)) || return 1
		sleep 0.05
	done
}

# answers COLOUR PAGE succeeds if a colour's /healthz/ or /readyz/ is 200.
answers() { colour_tool "$1" server -healthcheck "unix:$SOCKETS/$1.sock:$2"; }
is_ready() { answers "$1" /readyz/ &>/dev/null; }

# await_colour COLOUR PAGE SECONDS waits until the page answers; fails at once
# when the colour has ended, and says why.
await_colour() {
	local end=$((SECONDS + $3)) said
	until said=$(answers "$1" "$2" 2>&1); do
		if colour_runs "$1" && ((SECONDS < end)); then
			sleep 0.05
			continue
		fi
		echo "  ${said:-no answer}; the last lines of $1:"
		colour_log "$1"
		return 1
	done
}

# smoke COLOUR URL tests a server as a client does: see bench smoke.
smoke() {
	local colour=$1
	shift
	colour_tool "$colour" bench smoke "$@"
}

# What differs between processes and containers. Both define SOCKETS, the folder
# of the sockets as a colour sees it, and
#   build               what the colours run
#   start_colour COLOUR, stop_colour COLOUR SECONDS, colour_runs COLOUR
#   colour_log COLOUR   the last lines
#   colour_tool COLOUR server|bench ARGS...     runs a program beside the colour
#   start_part PART, stop_parts, show_logs
have_docker() { command -v docker >/dev/null && docker info &>/dev/null; }

case ${TURNSTILE_BACKEND:-} in
processes | compose) BACKEND=$TURNSTILE_BACKEND ;;
'') if have_docker; then BACKEND=compose; else BACKEND=processes; fi ;;
*) die "TURNSTILE_BACKEND must be processes or compose, got \"$TURNSTILE_BACKEND\"" ;;
esac
# shellcheck source-path=SCRIPTDIR source=processes.sh
source "$ROOT/scripts/$BACKEND.sh"
