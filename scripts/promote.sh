#!/usr/bin/env bash
# Promotes a colour: starts the one that does not serve, tests it, leads nginx
# to it and drains the other one.
#
#   promote.sh [blue|green]     the colour to serve next (the one that does not)
#
# What fails before step 7 is put back: the old colour goes on serving, exit
# code 1. It can be killed at any step and run again. See DESIGN.md, chapter 16.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

readonly PATIENCE=${TURNSTILE_PATIENCE:-15} # seconds until a colour has to be ready
readonly DRAIN=10                           # seconds at most

began=$(now)
step_began=$began
number=0
timings=
started=  # the colour that a failure has to stop
previous= # the colour that a failure has to lead back to

seconds_since() {
	local took=$(($(now) - $1))
	printf '%d.%02d' $((took / 1000000)) $((took / 10000 % 100))
}

# step NUMBER TEXT says what begins.
step() {
	((number == 0)) || timings+="${timings:+, }step $number $(seconds_since "$step_began") s"
	step_began=$(now)
	number=$1
	printf 'step %d  %s\n' "$1" "$2"
}

fail() {
	printf '%s\n' "$*" >&2
	exit 1
}

# put_back undoes what was done before a failure, or before ^C: unless nobody is
# left to lead back to.
put_back() {
	local code=$?
	trap - EXIT
	[[ -n $started ]] || exit "$code"
	((code != 0)) || code=1
	if [[ -n $previous ]] && ! is_ready "$previous"; then
		echo "step $number failed, but $previous cannot serve either: $started stays"
		exit "$code"
	fi
	echo "step $number failed: putting everything back"
	if [[ -n $previous ]]; then
		activate "$previous"
		echo "  nginx leads to $previous, as before"
	fi
	stop_colour "$started" "$DRAIN" || true
	echo "  $started is stopped"
	rm -f "$RUN/promotion"
	exit "$code"
}

# next_colour is what was asked for, or what a promotion that was killed was
# about, or the colour that does not serve.
next_colour() {
	local unfinished=
	[[ ! -f $RUN/promotion ]] || read -r unfinished <"$RUN/promotion" || true
	if [[ -n $1 ]]; then
		echo "$1"
	elif is_colour "$unfinished"; then
		echo "$unfinished"
	else
		other_colour "$active"
	fi
}

bring_up() {
	step 2 "build and start $next"
	echo "$next" >"$RUN/promotion"
	started=$next
	colour_runs "$next" && echo "  $next still runs from before: it is stopped first"
	stop_colour "$next" "$DRAIN" || true
	build || fail "  it cannot be built"
	start_colour "$next" || fail "  $next cannot be started"

	step 3 "wait until $next lives and is ready"
	await_colour "$next" /healthz/ "$PATIENCE" || fail "  $next does not live"
	await_colour "$next" /readyz/ "$PATIENCE" || fail "  $next is not ready"

	step 4 "smoke test of $next itself"
	smoke "$next" "unix:$SOCKETS/$next.sock" || fail "  $next is not fit to serve"

	step 5 "lead nginx to $next"
	previous=$old
	activate "$next"
}

check_through_nginx() {
	step 6 "smoke test through nginx"
	smoke "$next" -reaches "unix:$SOCKETS/$next.sock" "$SITE" || fail "  clients do not get through to $next"
}

# retire lets the old colour go. From here on there is no way back.
retire() {
	step 7 "drain $old: its clients come back to $next"
	started='' previous=''
	if ! colour_runs "$old"; then
		echo "  $old does not run"
	elif ! stop_colour "$old" "$DRAIN"; then
		echo "  $old was killed: it did not end within $DRAIN s"
	fi
}

(($# <= 1)) || die "usage: promote.sh [blue|green]"
wanted=${1:-}
[[ -z $wanted ]] || is_colour "$wanted" || die "a colour is blue or green, got \"$wanted\""

one_at_a_time
trap put_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

active=$(active_colour) || die "no colour serves yet: make dev-up starts the first one"
next=$(next_colour "$wanted")
old=$(other_colour "$next")

if [[ $active != "$next" ]]; then
	step 1 "$old serves, $next is next"
	bring_up
elif ! colour_runs "$next"; then
	die "$next should serve, but does not run: make dev-up starts it"
elif colour_runs "$old"; then
	step 1 "$next serves already, but $old was not drained: going on with step 6"
	started=$next previous=$old
else
	rm -f "$RUN/promotion"
	echo "$next serves already, alone: nothing to do"
	exit 0
fi
check_through_nginx
retire
step 8 "$next serves, after $(seconds_since "$began") s"
echo "  $timings"
rm -f "$RUN/promotion"
