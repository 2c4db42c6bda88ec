#!/usr/bin/env bash
# Usage: scripts/smoke.sh
#
# Tests the running stack as a client does: every colour that runs, and the way
# through nginx to the one that serves.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_arguments "$@"

active=$(active_colour) || die "no colour serves: $(start_command blue) starts one"
part_runs "$active" || die "$active should serve, but does not run: $(start_command "$active") starts it"
for colour in blue green; do
	if part_runs "$colour"; then
		smoke "$colour" "unix:$SOCKETS/$colour.sock"
	fi
done
smoke "$active" -reaches "unix:$SOCKETS/$active.sock" "$SITE"
