#!/usr/bin/env bash
# Shows the last lines of the stack's logs, and those that come, until ^C.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

show_logs
