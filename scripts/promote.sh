#!/usr/bin/env bash
# Usage: scripts/promote.sh [--drain] [blue|green]
#
# Promotes a colour: starts the one that does not serve, tests it, leads nginx
# to it and has it take over the other one's live connections: no client notices.
#
# The colour is the one to serve next; without it, the one that does not now.
# With --drain, or where the one cannot take over from the other, clients get a
# goodbye instead, and come back.
#
# What fails before step 7 is put back: the old colour goes on serving, exit code
# 1. It can be killed at any step and run again. See deploy/README.md.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

readonly DRAIN=10 # seconds at most, of a handover's rest too
readonly GONE="its terminal, or the pipe that it writes to, has gone"

began=$(now)
step_began=$began
number=0
timings=
started=  # the colour that a failure has to stop
previous= # the colour that a failure has to lead back to
reason=   # of a failure
drain=    # whether the old colour is to be drained, not handed over

seconds_since() {
	local took=$(($(now) - $1))
	printf '%d.%02d' $((took / 1000000)) $((took / 10000 % 100))
}

# say prints a line. While the promotion can be put back, it fails if nobody can
# read it any more: the terminal, or the pipe, has gone.
say() { printf '%s\n' "$*" 2>/dev/null || [[ -z $started ]] || fail "$GONE"; }

# step NUMBER TEXT says what begins.
step() {
	((number == 0)) || timings+="${timings:+, }step $number $(seconds_since "$step_began") s"
	step_began=$(now)
	number=$1
	say "step $1  $2"
}

# fail ends the promotion; put_back says why.
fail() {
	reason=$*
	exit 1
}

# put_back undoes what was done before a failure or a signal: unless nobody is
# left to lead back to. Nothing interrupts it, and nobody has to read what it says.
put_back() {
	local code=$? colour=$started
	trap - EXIT
	trap '' INT TERM HUP PIPE
	set +e
	if [[ -z $colour ]]; then
		[[ -z $reason ]] || complain "step $number failed: $reason; run it again to go on"
		exit "$code"
	fi
	started=
	((code != 0)) || code=1
	reason="step $number failed: ${reason:-a command failed, see above}"
	if [[ -n $previous ]] && ! is_ready "$previous"; then
		complain "$reason; $previous cannot serve either, so $colour stays"
		exit "$code"
	fi
	complain "$reason; putting everything back"
	if [[ -n $previous ]]; then
		activate "$previous"
		say "  nginx leads to $previous, as before"
	fi
	stop_colour "$colour" "$DRAIN"
	say "  $colour is stopped"
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
	local wrong
	step 2 "build and start $next"
	echo "$next" >"$RUN/promotion" || fail "$RUN/promotion cannot be written, see above"
	started=$next
	! part_runs "$next" || say "  $next still runs from before: it is stopped first"
	stop_colour "$next" "$DRAIN" || true
	build || fail "it cannot be built"
	wrong=$(flag_error)
	[[ -z $wrong ]] || fail "$wrong"
	start_colour "$next" || fail "$next cannot be started"

	step 3 "wait until $next lives and is ready"
	await_colour "$next" /healthz/ "${SETTING[PATIENCE]}" || fail "$next does not live"
	await_colour "$next" /readyz/ "${SETTING[PATIENCE]}" || fail "$next is not ready"

	step 4 "smoke test of $next itself"
	smoke "$next" "unix:$SOCKETS/$next.sock" || fail "$next is not fit to serve"

	[[ -n $drain ]] || prepare_handover

	step 5 "lead nginx to $next"
	previous=$old
	activate "$next"
}

check_through_nginx() {
	step 6 "smoke test through nginx"
	smoke "$next" -reaches "unix:$SOCKETS/$next.sock" "$SITE" || fail "clients do not get through to $next"
}

# prepare_handover asks whether the connections can be handed over. A drain is no
# way out of two stores: clients would come back to a count of 0.
prepare_handover() {
	local said
	! said=$(tell "$next" "prepare $SOCKETS/$old.control") || return 0
	said=${said#server: }
	[[ $said != *"(store)"* ]] ||
		fail "$next has another -redis than $old, ${said##*"(store): "}: set the same one, or run it with --drain to leave the sessions there"
	drain=yes
	say "  $old will be drained, since it cannot hand over: $said"
}

# hand_over has the new colour take over from the old one, which then ends.
hand_over() {
	local said
	until said=$(tell "$next" "take-over $SOCKETS/$old.control"); do
		if [[ $said == *"(busy)"* ]] && part_runs "$old"; then
			sleep 0.1 # a promotion that was killed has begun it
			continue
		fi
		say "  not handed over: ${said#server: }"
		return 1
	done
	[[ $said =~ \"connections\":([0-9]+).*\"duration_ms\":([0-9]+) ]] || true
	say "  $next took over ${BASH_REMATCH[1]} connections in ${BASH_REMATCH[2]} ms"
	await "$DRAIN" colour_has_ended "$old"
}

colour_has_ended() { ! part_runs "$1"; }

# retire lets the old colour go. From here on there is no way back.
retire() {
	if [[ -n $drain ]]; then
		step 7 "drain $old: its clients come back to $next"
	else
		step 7 "hand the connections of $old over to $next"
	fi
	keep "$next"
	started='' previous=''
	trap '' HUP PIPE # it goes on to the end, whether or not somebody reads
	if ! part_runs "$old"; then
		say "  $old does not run"
	elif [[ -z $drain ]] && hand_over; then
		stop_colour "$old" 1 # it has ended: this forgets it
	elif ! stop_colour "$old" "$DRAIN"; then
		say "  $old was killed: it did not end within $DRAIN s"
	fi
}

wanted=
for argument; do
	if [[ $argument == --drain ]]; then
		drain=yes
	elif [[ -z $wanted ]] && is_colour "$argument"; then
		wanted=$argument
	else
		refuse_argument "$argument" "a colour is blue or green, and one is enough"
	fi
done
check_flags

one_at_a_time
trap put_back EXIT
trap 'reason="it was interrupted"; exit 130' INT
trap 'reason="it was told to end"; exit 143' TERM
trap 'fail "$GONE"' HUP PIPE

active=$(active_colour) || die "no colour serves yet: $(start_command blue) starts the first one"
for part in redis nginx; do
	part_runs "$part" || die "the stack is down, $part does not run: $(start_command "$part") starts it"
done
next=$(next_colour "$wanted")
old=$(other_colour "$next")

if [[ $active != "$next" ]]; then
	want_ports "$next"
	step 1 "$old serves, $next is next"
	bring_up
elif ! part_runs "$next"; then
	die "$next should serve, but does not run: $(start_command "$next") starts it"
elif part_runs "$old"; then
	step 1 "$next serves already, but $old has not ended: going on with step 6"
	started=$next previous=$old
else
	rm -f "$RUN/promotion"
	say "$next serves already, alone: nothing to do"
	exit 0
fi
check_through_nginx
retire
step 8 "$next serves, after $(seconds_since "$began") s"
say "  $timings"
rm -f "$RUN/promotion"
