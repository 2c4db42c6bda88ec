# shellcheck shell=bash
# The stack's paths, colours and parts, for the scripts beside it to source.
set -euo pipefail

PATH=$PATH:/usr/sbin # where Debian keeps nginx
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=args.sh
source "$ROOT/scripts/args.sh"

# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$ROOT/scripts/settings.sh"
if wants_help "$@"; then
	show_help
	show_settings
	exit 0
fi
check_settings

RUN=$(realpath -m -- "${SETTING[RUN_DIR]}")
SITE=http://$(address_of nginx)

# LOCK is the file descriptor of the lock, which no process of the stack may
# inherit: it would hold the lock for as long as it lives.
LOCK=

is_colour() { [[ $1 == blue || $1 == green ]]; }
other_colour() { [[ $1 == blue ]] && echo green || echo blue; }

# active_colour is the one that the link leads to; fails if there is none.
active_colour() {
	local socket
	socket=$(readlink "$RUN/active.sock" 2>/dev/null) || return 1
	is_colour "${socket%.sock}" && echo "${socket%.sock}"
}

# activate COLOUR makes nginx lead to it: rename(2) replaces the link, so there
# is one at any moment. The link is relative, and holds within a container.
activate() {
	ln -sfn "$1.sock" "$RUN/active.sock.new"
	mv -T "$RUN/active.sock.new" "$RUN/active.sock"
}

# copy_nginx makes the stack's own copy of deploy/nginx. Without IPv6: the stack is
# on one address, and a kernel that has no IPv6 would not let nginx start.
copy_nginx() {
	mkdir -p "$RUN/nginx/temp"
	cp "$ROOT"/deploy/nginx/*.conf "$RUN/nginx/"
	sed -i '/listen \[::\]/d' "$RUN"/nginx/*.conf
}

# one_at_a_time takes the lock that the scripts which change the stack share.
one_at_a_time() {
	[[ ! -d $RUN || -w $RUN ]] || die "the stack in $RUN is user $(stat -c %U "$RUN")'s: run this as that user," \
		"or have a stack of your own in another folder, such as TURNSTILE_RUN_DIR=$HOME/turnstile"
	mkdir -p "$RUN"
	exec {LOCK}>"$RUN/lock"
	flock -n "$LOCK" || die "another promotion, dev-up or dev-down is under way (it holds $RUN/lock)"
}

# want_curl is for the scripts that ask a server for its metrics.
want_curl() { command -v curl >/dev/null || die "curl is not installed: make setup installs it"; }

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
# when the colour has ended, and shows its last lines. It passes on which variables
# the colour does not know.
await_colour() {
	local end=$(($(now) + $3 * 1000000)) said
	until said=$(colour_answers "$1" "$2" 2>&1); do
		if part_runs "$1" && (($(now) < end)); then
			sleep 0.05
			continue
		fi
		part_runs "$1" || said="$1 has ended"
		echo "  $said; its last lines:" >&2
		colour_log "$1" >&2
		return 1
	done
	[[ $2 != /readyz/ ]] || colour_log "$1" |
		sed -n 's/.*"variable":"\([^"]*\)","advice":"\([^"]*\)".*"unknown_variable".*/  warning: \1: \2/p' >&2
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
look() { printf '  %-42s %s\n' "$1" "$2"; }

# unwatched is the watchers that could not be started.
unwatched=()

# look_at WATCHER URL TEXT prints where to look at what a watcher shows, if it runs.
look_at() {
	[[ " ${unwatched[*]} " == *" $1 "* ]] || look "$2" "$3"
}

# What differs between processes, containers and units. Each defines SOCKETS, the
# folder of the sockets as a colour sees it, WATCHERS, the parts that watch, and
#   build               what the colours run
#   flag_error          what is wrong with the variables for the server's flags
#   start_colour COLOUR, stop_colour COLOUR SECONDS
#   start_command PART  prints what an operator runs to start it
#   keep COLOUR         makes it the one that serves after a reboot
#   colour_log COLOUR   the last lines
#   colour_tool COLOUR server|bench ARGS...     runs a program beside the colour
#   prepare_watchers    builds what the watchers need, if anything
#   start_part PART, part_runs PART, stop_parts, watchers_say
#   want_programs       ends the script if one that the stack needs is missing
#   has_logs PART, show_logs PART...
have_units() { [[ -f /etc/systemd/system/turnstile@.service ]]; }
have_docker() { command -v docker >/dev/null && docker info &>/dev/null; }
have_processes() { compgen -G "$RUN/pid/*" >/dev/null; } # until dev-down, whatever is installed meanwhile
have_compose() { docker compose version &>/dev/null; } # Debian's docker.io has not

BACKEND=${SETTING[BACKEND]}
if [[ -z $BACKEND ]]; then
	BACKEND=processes
	if have_units; then BACKEND=units; elif ! have_processes && have_docker && have_compose; then BACKEND=compose; fi
fi
# shellcheck source-path=SCRIPTDIR source=processes.sh
source "$ROOT/scripts/$BACKEND.sh"
