#!/usr/bin/env bash
# Usage: scripts/monitor.sh [SECONDS]
#
# Shows both colours live in the terminal: connections, rates, latency, errors,
# and the last warnings and errors of their logs. Rates and percentiles are of
# the time since the last view.
#
# It ends after so many seconds; without, at ^C.
#
# It reads /metrics/ and the logs itself, so that it shows something where
# VictoriaMetrics and Grafana do not.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

readonly every=1 # seconds from view to view
no_options "$@"
(($# <= 1)) || refuse_argument "$2" "it takes a number of seconds"
readonly duration=${1:-}
[[ -z $duration || $duration =~ ^[1-9][0-9]{0,8}$ ]] ||
	refuse_argument "$duration" "the time must be a whole number of seconds from 1"

want_curl

pages=$(mktemp -d)
last= # the view that stays when it ends by itself
terminal= # a file descriptor of it
[[ ! -t 1 ]] || exec {terminal}>&1

# A terminal has a second screen, without a cursor here; the first one is as it
# was when the monitor ends, whatever ends it.
enter_screen() { [[ -z $terminal ]] || printf '\e[?1049h\e[?25l'; }
leave_screen() { [[ -z $terminal ]] || printf '\e[?25h\e[?1049l'; }

leave() {
	rm -rf "$pages"
	leave_screen
	[[ -z $last || -z $terminal ]] || printf '%s\n' "$last"
}

# suspend is for ^Z: the shell gets its screen back until the monitor goes on.
suspend() {
	leave_screen
	trap - TSTP
	kill -TSTP $$
	trap suspend TSTP
	enter_screen
}

trap leave EXIT
trap 'exit 0' INT TERM
trap 'exit 129' HUP PIPE
trap suspend TSTP
trap : WINCH # ends the wait for the next view

# colour_lines COLOUR is the end of a colour's log.
colour_lines() {
	if [[ $BACKEND == compose ]]; then
		compose logs --no-color --no-log-prefix --tail 1000 "$1"
	elif [[ $BACKEND == units ]]; then
		journalctl --unit "turnstile@$1" --lines 1000 --output cat --no-pager
	elif [[ -f $RUN/log/$1.log ]]; then
		tail -c 262144 "$RUN/log/$1.log"
	fi
}

# scrape COLOUR keeps the page before and takes a new one; none if it is down.
scrape() {
	local page=$pages/$1
	if [[ -f $page ]]; then mv "$page" "$page.before"; else rm -f "$page.before"; fi
	echo "# at $EPOCHREALTIME" >"$page.new"
	if curl --silent --fail --max-time 2 "http://$(address_of "$1")/metrics/" >>"$page.new"; then
		mv "$page.new" "$page"
	fi
}

# column COLOUR is what stands below its name, a line for each of the rows; see
# rows. From the page before and the page now, as far as they are there.
column() {
	local page=$pages/$1
	if [[ ! -f $page ]]; then
		echo down
		return
	fi
	[[ -f $page.before ]] || cp "$page" "$page.before"
	awk -f <(columns_program) "$page.before" "$page"
}

readonly rows=(state revision 'up for' connections 'upgrades/s' 'closes/s' 'messages/s' 'answer p50 / p99' 'errors/s'
	
	'heartbeats/s' 'in / out' 'loop late p99' backlog 'commits/s' 'commit p50 / p99' CPU memory 'file descriptors')

# What is left out first where the terminal is too low for all rows.
readonly expendable=('heartbeats/s' 'file descriptors' 'loop late p99' backlog revision 'upgrades/s' 'closes/s' 'in / out'
	'up for' 'commit p50 / p99' memory CPU 'commits/s' 'errors/s' 'answer p50 / p99' 'messages/s' connections state)

columns_program() {
	cat <<'AWK'
FNR == 1 { sub(",", ".", $3); page++; at[page] = $3; next }
/^#/ { next }
{
	series = $0; sub(/ [^ ]*$/, "", series)
	name = series; sub(/\{.*/, "", name)
	value[page, series] = $NF
	sum[page, name] += $NF
	if (match(series, /le="[^"]*"/)) {
		le = substr(series, RSTART + 4, RLENGTH - 5)
		bucket[page, name, le] += $NF
		if (!((name, le) in known)) { known[name, le]; les[name] = les[name] " " le }
	}
	if (name == "websocket_build_info") { revision = series; gsub(/.*="|"}/, "", revision) }
}
# since is by how much a counter grew; one that fell began anew.
function since(a, b) { return (b < a) ? b : b - a }
function rate_of(a, b) { return (age > 0) ? since(a, b) / age : 0 }
function rate(name) { return rate_of(sum[1, name], sum[2, name]) }
function quantile(q, name,    n, le, i, all, count, below, low) {
	name = name "_bucket"
	n = split(les[name], le, " ")
	all = since(bucket[1, name, "+Inf"], bucket[2, name, "+Inf"])
	if (all == 0) return "-"
	for (i = 1; i <= n; i++) {
		count = since(bucket[1, name, le[i]], bucket[2, name, le[i]])
		if (count >= q * all) {
			if (le[i] == "+Inf") return "over " time(low)
			return time(low + (le[i] - low) * (q * all - below) / (count - below))
		}
		below = count; low = le[i]
	}
}
function time(s) {
	if (s < 1) return sprintf("%.2f ms", s * 1e3)
	return sprintf("%.1f s", s)
}
function age_of(s) {
	if (s < 60) return int(s) " s"
	if (s < 3600) return sprintf("%d min %02d s", s / 60, s % 60)
	return sprintf("%d h %02d min", s / 3600, s % 3600 / 60)
}
function bytes(n) {
	if (n < 1024) return int(n) " B"
	if (n < 1048576) return sprintf("%.1f KiB", n / 1024)
	return sprintf("%.1f MiB", n / 1048576)
}
function whole(n,    s) {
	s = sprintf("%.0f", n)
	while (match(s, /[0-9][0-9][0-9][0-9]($|,)/)) s = substr(s, 1, RSTART) "," substr(s, RSTART + 1)
	return s
}
function few(n) { return (n > 0 && n < 10) ? sprintf("%.1f", n) : whole(n) }
function now(name) { return sum[2, name] }
END {
	age = at[2] - at[1]
	upgraded = "websocket_handshakes_total{result=\"upgraded\"}"
	print (now("websocket_ready") ? "ready" : (now("websocket_shutdown_time_seconds") > 0) ? "draining" : "not ready")
	print revision
	print age_of(at[2] - now("process_start_time_seconds"))
	print whole(now("websocket_active_connections"))
	print few(rate_of(value[1, upgraded], value[2, upgraded]))
	print few(rate("websocket_closes_total"))
	print few(rate("websocket_messages_total"))
	print quantile(0.5, "websocket_message_latency_seconds") " / " quantile(0.99, "websocket_message_latency_seconds")
	print few(rate("websocket_errors_total"))
	print few(rate("websocket_heartbeats_total"))
	print bytes(rate("websocket_bytes_in_total")) "/s / " bytes(rate("websocket_bytes_out_total")) "/s"
	print quantile(0.99, "websocket_loop_latency_seconds")
	print bytes(now("websocket_backlog_bytes"))
	if ((2, "websocket_store_available") in sum) {
		print few(rate("websocket_store_commits_total")) (now("websocket_store_available") ? "" : ", out of reach")
		print quantile(0.5, "websocket_store_commit_latency_seconds") " / " quantile(0.99, "websocket_store_commit_latency_seconds")
	} else {
		print "embedded store"
		print "-"
	}
	printf "%.0f %%\n", 100 * rate("process_cpu_seconds_total")
	print bytes(now("process_resident_memory_bytes"))
	print whole(now("process_open_fds")) " of " whole(now("process_max_fds"))
}
AWK
}

# errors_by_type is the errors of each colour since its start, by type.
errors_by_type() {
	local colour
	for colour in blue green; do
		[[ ! -f $pages/$colour ]] || awk -v colour="$colour" '
			/^websocket_errors_total/ && $2 > 0 { split($1, part, "\""); text = text "  " part[2] " " $2 }
			END { if (text != "") print "errors of " colour ":" text }' "$pages/$colour"
	done
}

# trouble is the last warnings and errors of both logs, and panics.
trouble() {
	local colour
	for colour in blue green; do
		colour_lines "$colour" | awk -v colour="$colour" '
			function field(name) {
				if (!match($0, "\"" name "\":\"[^\"]*")) return ""
				return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4)
			}
			/^\{/ { at = substr(field("timestamp"), 12, 8) }
			/^\{.*"level":"(WARN|ERROR)"/ { print at, colour, field("level"), field("event"), field("error") }
			/^(panic|fatal error): / { print at, colour, $0 }'
	done | sort | tail -n 6 | tr -d '\000-\011\013-\037\177' | sed 's/^/  /'
}

# measure finds the size of the terminal; what is no terminal takes all there is.
measure() {
	height=1000 width=120
	[[ -z $terminal ]] || read -r height width < <(stty size <&"$terminal") || true
	((height > 0 && width > 0)) || height=24 width=80 # it does not know
}

# table prints a head and these rows of both colours, a label and two columns.
table() {
	local active colour i head=() blue green cell=$(((width - 17) / 2))
	((cell <= 30)) || cell=30
	active=$(active_colour) || active=
	mapfile -t blue < <(column blue)
	mapfile -t green < <(column green)
	for colour in blue green; do
		head+=("$colour:${SETTING[${PORT_OF[$colour]}]}$([[ $colour != "$active" ]] || echo ', serves')")
	done
	printf '%-17s%-*.*s%.*s\n' '' "$cell" $((cell - 1)) "${head[0]}" "$cell" "${head[1]}"
	for ((i = 0; i < ${#rows[@]}; i++)); do
		[[ "|$1" != *"|${rows[i]}|"* ]] || continue
		printf '%-17s%-*.*s%.*s\n' "${rows[i]}" "$cell" $((cell - 1)) "${blue[i]:-}" "$cell" "${green[i]:-}"
	done
}

# view prints what fits into the terminal: fewer of the warnings, then fewer rows.
view() {
	local errors trouble room gap='' missing
	mapfile -t errors < <(errors_by_type)
	mapfile -t trouble < <(trouble)
	((${#errors[@]} > 0)) || errors=('errors since the start: none')
	((${#trouble[@]} == 0)) || trouble=('last warnings and errors' "${trouble[@]}")
	((${#trouble[@]} > 0)) || trouble=('last warnings and errors: none')
	room=$((height - 2 - ${#rows[@]} - ${#errors[@]}))
	if ((room >= ${#trouble[@]} + 3)); then
		gap=$'\n'
	elif ((room < ${#trouble[@]} && ${#trouble[@]} > 3)); then
		trouble=("${trouble[0]}" "${trouble[@]: -$((room > 3 ? room - 1 : 2))}")
	fi
	missing=$((${#trouble[@]} - room))
	((missing > 0)) || missing=0
	printf 'Turnstile at %(%H:%M:%S)T, both colours at %s; ^C ends\n%s' -1 "${SETTING[HOST]}" "$gap"
	table "$(printf "%s|" "${expendable[@]:0:missing}")"
	printf '%s' "$gap"
	printf '%s\n' "${errors[@]}"
	printf '%s' "$gap"
	printf '%s\n' "${trouble[@]}"
}

# draw shows the view: on a terminal over the one before, line by line and to its
# last line, so that nothing of that is left and nothing scrolls.
draw() {
	local i line lines text=$'\e[H'
	measure
	frame=$(view)
	if [[ -z $terminal ]]; then
		printf '%s\n\n' "$frame"
		return
	fi
	mapfile -t lines <<<"$frame"
	for ((i = 0; i < height; i++)); do
		((i == 0)) || text+=$'\n'
		line=${lines[i]:-}
		text+=$'\e[K'${line:0:width}
	done
	printf '%s' "$text"
}

# pause waits for the next view, and draws this one anew when the terminal has
# got another size.
pause() {
	sleep "$every" &>/dev/null &
	local sleeper=$!
	until wait "$sleeper" || (($? == 127)); do
		draw
	done
}

end=${duration:+$((SECONDS + duration))}
enter_screen
while :; do
	scrape blue
	scrape green
	draw
	[[ -z $end ]] || ((SECONDS < end)) || break
	pause
done
last=$frame
