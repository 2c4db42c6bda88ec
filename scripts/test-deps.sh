#!/usr/bin/env bash
# Usage: scripts/test-deps.sh
#
# Makes sure that what the tests need beside Go is there, and installs what is
# not: Debian packages where it may (as root, or with a sudo that asks no
# password), npm packages into .cache/. What cannot be had is told in one line.
# That is a failure where CI=true; elsewhere the tests that need it skip.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source-path=SCRIPTDIR source=debian.sh
source scripts/debian.sh
# shellcheck source-path=SCRIPTDIR source=args.sh
source scripts/args.sh
if wants_help "$@"; then
	show_help
	exit 0
fi
no_arguments "$@"

readonly log=.cache/test-deps.log
readonly clients=.cache/clients
readonly manifest=server/testdata/clients/package.json

# Debian's interpreter, whatever is first on PATH, and only Debian's modules.
have_websockets() { /usr/bin/python3 -I -c 'import websockets.legacy.client' 2>/dev/null; }

# From 18 on, which Debian 12 and Ubuntu 24.04 have.
have_node() { node -e 'process.exitCode = Number(parseInt(process.versions.node) < 18)' 2>/dev/null; }

# Under any name that the tests look for (server/admin/browsertest/browser.mjs).
have_chromium() { have_command chromium || have_command chromium-browser || have_command google-chrome; }

# install_npm puts whole directories into place, so what is there is complete.
have_npm_packages() { [[ -d $clients/node_modules/ws ]] && cmp -s "$manifest" "$clients/package.json"; }

missing_packages() {
	have_websockets || echo python3-websockets
	have_command redis-server || echo redis-server
	have_command curl || echo curl
	have_command nginx || echo nginx-light
	have_command shellcheck || echo shellcheck
	have_command systemd-analyze || echo systemd
	have_command debootstrap || echo debootstrap
	[[ -f /usr/share/keyrings/debian-archive-keyring.gpg ]] || echo debian-archive-keyring # Ubuntu has none
	have_node || echo nodejs
	have_command npx || echo npm
	have_chromium || echo chromium
	# A Docker engine of the tests' own, and what goes into its images.
	have_command dockerd && have_command docker || echo docker.io
	have_command iptables || echo iptables
	have_command ip || echo iproute2
	have_command busybox || echo busybox-static
}

install_npm() {
	local stage
	stage=$(mktemp -d "$clients.XXXXXX")
	cp "$manifest" "$stage/package.json"
	if (cd "$stage" && npm install --no-package-lock --no-audit --no-fund --ignore-scripts); then
		rm -rf "$clients"
		mv "$stage" "$clients"
	else
		rm -rf "$stage"
	fi
}

mkdir -p .cache
mapfile -t packages < <(missing_packages)
if ((${#packages[@]} > 0)) && can_install; then
	echo "test-deps: installing ${packages[*]} (minutes; the log is $log)"
	install_packages "${packages[@]}" >>"$log" 2>&1
	mapfile -t packages < <(missing_packages)
fi
if ! have_npm_packages && have_command npm; then
	echo "test-deps: installing the npm packages of $manifest"
	install_npm >>"$log" 2>&1
fi

advice=()
((${#packages[@]} == 0)) || advice+=("Debian's ${packages[*]} (as root: apt-get install ${packages[*]})")
have_npm_packages || advice+=("the npm packages of $manifest (run this again with npm and a network)")
((${#advice[@]} > 0)) || exit 0
printf -v text '%s, and ' "${advice[@]}"
echo "test-deps: missing: ${text%, and }; the log of what was tried is $log" >&2
[[ ${CI:-} != true ]]
