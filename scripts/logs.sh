#!/usr/bin/env bash
# Usage: scripts/logs.sh [SERVICE...]
#
# Shows the last lines of the logs of these services, or of the whole stack, and
# the lines that come, until ^C. A service is blue, green, redis, nginx, or one of
# those that watch the stack.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_options "$@"

named=$*
services=(blue green "${PARTS[@]}" "${WATCHERS[@]}")
for service; do
	[[ " ${services[*]} " == *" $service "* ]] || refuse "there is no service \"$service\", but: ${services[*]}"
done
(($# > 0)) || set -- "${WATCHERS[@]}" "${PARTS[@]}" blue green # the colours stand last, where a terminal shows them
logged=
for service; do
	! has_logs "$service" || logged=yes
done
[[ -n $logged ]] || die "${named:-the stack} has logged nothing yet: $(start_command blue) starts it"

trap 'exit 0' INT TERM
show_logs "$@"
