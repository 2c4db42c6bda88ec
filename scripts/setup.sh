#!/usr/bin/env bash
# Usage: scripts/setup.sh
#
# Sees that this machine has what the stack needs, and installs what it has not
# from Debian or Ubuntu where it may. Where a Docker engine runs, that is all.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=debian.sh
source scripts/debian.sh
# shellcheck source-path=SCRIPTDIR source=stack.sh
source scripts/stack.sh
no_arguments "$@"

missing_packages() {
	have_command redis-server || echo redis-server
	have_command redis-cli || echo redis-tools
	have_command nginx || echo nginx-light
	have_command curl || echo curl
}

if [[ $BACKEND == compose ]]; then
	want_programs
	echo "setup: a Docker engine runs: the stack will be containers, and needs nothing else"
	exit 0
fi
if [[ $BACKEND == processes && -z ${SETTING[BACKEND]} ]] && have_docker; then
	echo "setup: the Docker engine has no compose plugin, so the stack will be processes; for containers install docker-compose-plugin"
fi
[[ -n ${SETTING[BIN]} ]] || have_command go || die "install Go 1.26 or later (https://go.dev/dl/)"
mapfile -t packages < <(missing_packages)
if ((${#packages[@]} > 0)) && can_install; then
	echo "setup: installing ${packages[*]} (a minute or two; the log is .cache/setup.log)"
	wanted=" ${packages[*]} "
	mkdir -p .cache
	install_packages "${packages[@]}" >>.cache/setup.log 2>&1
	mapfile -t packages < <(missing_packages)
	[[ ! -d /run/systemd/system || $wanted != *" redis-server "* && $wanted != *" nginx-light "* ]] ||
		echo "setup: Debian starts what it installs. The stack does not use these services:" \
			"systemctl disable --now redis-server nginx ends them"
fi
((${#packages[@]} == 0)) || die "missing: install Debian's ${packages[*]} (as root: apt-get install ${packages[*]})"
echo "setup: all that the stack needs is here; make dev-up starts it"
