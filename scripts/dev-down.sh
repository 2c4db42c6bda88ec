#!/usr/bin/env bash
# Usage: scripts/dev-down.sh
#
# Ends what dev-up.sh and promote.sh have started, and nothing else: clients get
# their goodbye. The data stay in the run folder; make clean removes them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_arguments "$@"

one_at_a_time
echo "dev-down: the stack in $RUN"
for colour in blue green; do
	stop_colour "$colour" 10 || echo "  $colour was killed: it did not end within 10 s"
done
stop_parts
rm -f "$RUN/promotion" "$RUN"/{blue,green,redis}.sock
echo "  nothing runs any more"
