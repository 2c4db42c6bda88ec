#!/usr/bin/env bash
# Usage: scripts/test.sh
#
# Installs what the tests need and runs all of them: it is make test.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=args.sh
source scripts/args.sh
if wants_help "$@"; then
	show_help
	exit 0
fi
no_arguments "$@"
exec make test
