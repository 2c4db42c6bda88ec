#!/usr/bin/env bash
# Prints the metrics of the colours that run, past nginx, in Prometheus's format.
#
#   metrics.sh [TEXT]     only the lines with this text
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"

for colour in blue green; do
	if colour_runs "$colour"; then
		echo "# $colour"
		curl --silent --show-error --fail "http://$HOST:${COLOUR_PORT[$colour]}/metrics/" | grep -F -- "${1:-}"
	fi
done
