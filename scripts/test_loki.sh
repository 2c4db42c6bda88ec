#!/usr/bin/env bash
# Usage: scripts/test_loki.sh [SECONDS]
#
# Tests that logs arrive: connects a client with a session of its own, and
# waits until Loki, or VictoriaLogs where that runs instead, finds its lines by
# the labels service, level and colour and by its session_id, which must be no
# label itself.
#
#   SECONDS            how long the lines may take (30)
#   TURNSTILE_URL      where clients connect (nginx)
#   LOKI_URL, VICTORIALOGS_URL     (those of the stack)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_options "$@"
(($# <= 1)) || refuse_argument "$2" "it takes a number of seconds"

readonly patience=${1:-30}
readonly site=${TURNSTILE_URL:-$SITE}
readonly loki=${LOKI_URL:-http://$(address_of loki)}
readonly victorialogs=${VICTORIALOGS_URL:-http://$(address_of victoria-logs)}
readonly labels='service="websocket-message-counter",level="INFO",colour=~"blue|green"'

is_seconds "$patience" || refuse_argument "$patience" "the time must be ${ALLOWED[seconds]}"

get() { curl --silent --fail --max-time 5 --get "$@"; }

# connect leaves two lines in the log: curl upgrades, and is gone a second later.
connect() {
	curl --silent --output /dev/null --write-out '%{http_code}' --http1.1 --max-time 1 \
		-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
		-H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' "$site/ws/chat/?session_id=$1" || true
}

loki_lines() {
	get "$loki/loki/api/v1/query_range" --data-urlencode "query={$labels} |= \"$1\"" --data-urlencode since=10m
}
loki_labels() { get "$loki/loki/api/v1/labels" --data-urlencode since=10m; }

victorialogs_lines() {
	get "$victorialogs/select/logsql/query" --data-urlencode "query=_time:10m {$labels} session_id:=\"$1\""
}
victorialogs_labels() { get "$victorialogs/select/logsql/stream_field_names" --data-urlencode 'query=_time:10m *'; }

if get --output /dev/null "$loki/ready"; then
	store=loki where=$loki
elif get --output /dev/null "$victorialogs/health"; then
	store=victorialogs where=$victorialogs
else
	die "neither Loki answers at $loki nor VictoriaLogs at $victorialogs"
fi

end=$((SECONDS + patience))
until session=$(</proc/sys/kernel/random/uuid) && status=$(connect "$session") && [[ $status == 101 ]]; do
	((SECONDS < end)) || die "$site/ws/chat/ did not upgrade: status $status, not 101"
	sleep 0.2
done

until lines=$(${store}_lines "$session") &&
	[[ $lines == *websocket_connected* && $lines == *websocket_disconnected* ]]; do
	((SECONDS < end)) || die "the lines of session $session are not in $store at $where after $patience s, but: ${lines:-nothing}"
	sleep 0.2
done

names=$(${store}_labels)
for label in service level colour; do
	[[ $names == *"\"$label\""* ]] || die "$store has no label $label: $names"
done
[[ $names != *'"session_id"'* ]] || die "session_id is a label in $store, which makes a stream of every session: $names"

colour=$(grep -o '"colour":"[a-z]*"' <<<"$lines" | head -n 1 | cut -d '"' -f 4)
echo "test_loki.sh: $store at $where has the lines of session $session, from $colour, by service, level and colour"
