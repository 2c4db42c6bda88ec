#!/usr/bin/env bash
# Usage: scripts/metrics.sh [TEXT]
#
# Prints the metrics of the colours that run, past nginx, in Prometheus's format;
# with a text, only the lines that have it in them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=stack.sh
source "$(dirname "$0")/stack.sh"
no_options "$@"
(($# <= 1)) || refuse_argument "$2" "it takes one text"

want_curl

running=() found=
for colour in blue green; do
	part_runs "$colour" || continue
	running+=("$colour")
	page=$(curl --silent --show-error --fail --header "Cache-Control: no-cache" "http://$(address_of "$colour")/metrics/") ||
		die "$colour does not answer"
	if lines=$(grep -F -- "${1:-}" <<<"$page"); then
		found=yes
		printf '# %s\n%s\n' "$colour" "$lines"
	fi
done
((${#running[@]} > 0)) || die "no colour runs: $(start_command blue) starts one"
[[ -n $found ]] || die "no line of the metrics of ${running[*]} has \"$1\" in it"
