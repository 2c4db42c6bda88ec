# shellcheck shell=bash
# Installing Debian packages, for the scripts beside it to source.

# Debian keeps servers where a plain user does not look.
PATH=$PATH:/usr/sbin

have_command() { command -v "$1" >/dev/null; }

as_root() {
	if [[ $EUID -eq 0 ]]; then "$@"; else sudo -n "$@"; fi
}

can_install() { have_command apt-get && as_root true 2>/dev/null; }

# install_packages goes one by one: one that cannot be had does not take the
# others with it.
install_packages() {
	as_root apt-get update || true
	local package
	for package in "$@"; do
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
			-o DPkg::Lock::Timeout=60 "$package" || true
	done
}
