#!/usr/bin/env bash
# Promotes a colour: starts the one that does not serve, tests it, leads nginx
# to it and has it take over the other one's live connections: no client notices.
#
#   promote.sh [--drain] [blue|green]     the colour to serve next (the one that does not)
#
# With --drain, or where the one cannot take over from the other, clients get a
# goodbye instead, and come back.
#
# What fails before step 7 is put back: the old colour goes on serving, exit code
# 1. It can be killed at any step and run again. See DESIGN.md, chapters 16 and 17.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

readonly PATIENCE=${TURNSTILE_PATIENCE:-15} # seconds until a colour has to be ready
readonly DRAIN=10                           # seconds at most, of a handover's rest too

began=$(now)
step_began=$began
number=0
timings=
started=  # the colour that a failure has to stop
previous= # the colour that a failure has to lead back to
drain=    # whether the old colour is to be drained, not handed over

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

	[[ -n $drain ]] || prepare_handover

	step 5 "lead nginx to $next"
	previous=$old
	activate "$next"
}

check_through_nginx() {
	step 6 "smoke test through nginx"
	smoke "$next" -reaches "unix:$SOCKETS/$next.sock" "$SITE" || fail "  clients do not get through to $next"
}

# prepare_handover asks whether the connections can be handed over.
prepare_handover() {
	local said
	! said=$(tell "$next" "prepare $SOCKETS/$old.control") || return 0
	drain=yes
	echo "  $old will be drained, since it cannot hand over: ${said#server: }"
}

# hand_over has the new colour take over from the old one, which then ends.
hand_over() {
	local said
	until said=$(tell "$next" "take-over $SOCKETS/$old.control"); do
		if [[ $said == *"(busy)"* ]] && colour_runs "$old"; then
			sleep 0.1 # a promotion that was killed has begun it
			continue
		fi
		echo "  not handed over: ${said#server: }"
		return 1
	done
	[[ $said =~ \"connections\":([0-9]+).*\"duration_ms\":([0-9]+) ]] || true
	echo "  $next took over ${BASH_REMATCH[1]} connections in ${BASH_REMATCH[2]} ms"
	await "$DRAIN" colour_has_ended "$old"
}

colour_has_ended() { ! colour_runs "$1"; }

# retire lets the old colour go. From here on there is no way back.
retire() {
	if [[ -n $drain ]]; then
		step 7 "drain $old: its clients come back to $next"
	else
		step 7 "hand the connections of $old over to $next"
	fi
	started='' previous=''
	if ! colour_runs "$old"; then
		echo "  $old does not run"
	elif [[ -z $drain ]] && hand_over; then
		stop_colour "$old" 1 # it has ended: this forgets it
	elif ! stop_colour "$old" "$DRAIN"; then
		echo "  $old was killed: it did not end within $DRAIN s"
	fi
}

if [[ ${1:-} == --drain ]]; then
	drain=yes
	shift
fi
(($# <= 1)) || die "usage: promote.sh [--drain] [blue|green]"
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
	step 1 "$next serves already, but $old has not ended: going on with step 6"
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
