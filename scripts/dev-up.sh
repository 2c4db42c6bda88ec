#!/usr/bin/env bash
# Starts the whole stack: Redis, a colour, nginx before it, and what watches
# them. What runs already stays as it is. dev-down.sh ends it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

one_at_a_time
colour=$(active_colour) || colour=blue
echo "dev-up: the stack as $BACKEND, in $RUN"
build
start_part redis
if colour_runs "$colour"; then
	echo "  $colour runs already"
else
	start_colour "$colour"
	await_colour "$colour" /readyz/ 15 >&2 || die "$colour does not start"
	echo "  $colour runs"
fi
activate "$colour"
start_part nginx
smoke "$colour" -reaches "unix:$SOCKETS/$colour.sock" "$SITE" >"$RUN/log/smoke.log" ||
	die "clients do not get through to $colour: $(cat "$RUN/log/smoke.log")"
if [[ $MONITORING != off ]] && ! prepare_watchers; then
	unwatched=("${WATCHERS[@]}")
elif [[ $MONITORING != off ]]; then
	for watcher in "${WATCHERS[@]}"; do
		start_part "$watcher" || unwatched+=("$watcher")
	done
fi
((${#unwatched[@]} == 0)) || complain "warning: the service runs, but not all of what watches it: no ${unwatched[*]}." \
	"To start the stack without monitoring: TURNSTILE_MONITORING=off make dev-up"

echo
look "$SITE/" "the console; WebSockets at ${SITE/http/ws}/ws/chat/"
look "http://$HOST:${COLOUR_PORT[$colour]}/metrics/" "the metrics of $colour, which serves"
[[ $MONITORING == off ]] || watchers_say
cat <<END

  make promote      start the other colour, lead clients to it, take over the live ones of $colour
  make smoke-test   a WebSocket, a count, a resume
  make logs         what all of it says
  make monitor      both colours, live
  make dev-down     end it
END
