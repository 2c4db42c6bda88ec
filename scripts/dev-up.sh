#!/usr/bin/env bash
# Usage: scripts/dev-up.sh
#
# Starts the whole stack: Redis, a colour, nginx before it, and what watches
# them. What runs already stays as it is. dev-down.sh ends it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_arguments "$@"
check_flags

one_at_a_time
want_programs
colour=$(active_colour) || colour=blue
[[ ${SETTING[MONITORING]} == on ]] || WATCHERS=()
want_ports "$colour" nginx "${WATCHERS[@]}"
trap 'complain "interrupted: what has started goes on; make dev-up starts the rest, make dev-down ends it"; exit 130' INT TERM
echo "dev-up: the stack as $BACKEND, in $RUN"
build
wrong=$(flag_error)
[[ -z $wrong ]] || refuse "$wrong"
start_part redis
if part_runs "$colour"; then
	echo "  $colour runs already"
else
	start_colour "$colour"
	await_colour "$colour" /readyz/ "${SETTING[PATIENCE]}" || die "$colour does not start"
	echo "  $colour runs"
fi
activate "$colour"
start_part nginx
smoke "$colour" -reaches "unix:$SOCKETS/$colour.sock" "$SITE" >"$RUN/log/smoke.log" ||
	die "clients do not get through to $colour: $(cat "$RUN/log/smoke.log")"
if ((${#WATCHERS[@]} > 0)) && ! prepare_watchers; then
	unwatched=("${WATCHERS[@]}")
else
	for watcher in "${WATCHERS[@]}"; do
		start_part "$watcher" || unwatched+=("$watcher")
	done
fi
((${#unwatched[@]} == 0)) || complain "warning: the service runs, but not all of what watches it: no ${unwatched[*]}." \
	"To start the stack without monitoring: TURNSTILE_MONITORING=off make dev-up"

echo
look "$SITE/" "the console"
look "${SITE/http/ws}/ws/chat/" WebSockets
look "http://$(address_of "$colour")/" "$colour itself: charts, and /metrics/"
((${#WATCHERS[@]} == 0)) || watchers_say
cat <<END

  make promote      start the other colour; it takes over the clients of $colour
  make smoke-test   a WebSocket, a count, a resume
  make logs         what all of it says (SERVICE=blue: one part)
  make monitor      both colours, live
  make dev-down     end it
END
