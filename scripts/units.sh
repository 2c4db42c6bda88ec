# shellcheck shell=bash
# The colours as units of systemd, turnstile@blue and turnstile@green; sourced by
# stack.sh. Redis and nginx are the distribution's units, and systemd starts and
# stops all of them: dev-up.sh and dev-down.sh have nothing to do. See
# deploy/README.md.

case ${0##*/} in
dev-up.sh | dev-down.sh) die "systemd starts and stops the colours of this machine: use systemctl, or set TURNSTILE_BACKEND" ;;
esac
((EUID == 0)) || die "the colours of this machine are units of systemd: run this as root"
flags=$(env | grep -o '^TURNSTILE_[A-Z_]*' | head -n 1) || true
[[ -z $flags ]] || refuse "$flags does not reach a unit: write it to /etc/turnstile/blue.env and green.env, and unset it"

# shellcheck disable=SC2034 # for the scripts
RUN=/run/turnstile SOCKETS=/run/turnstile PARTS=(redis nginx) WATCHERS=()
BIN=${SETTING[BIN]:-$ROOT/bin}

unit_of() {
	case $1 in
	redis) echo redis-server ;;
	nginx) echo nginx ;;
	*) echo "turnstile@$1" ;;
	esac
}

# build has nothing to do: what was built elsewhere came with the scripts.
build() { is_programs "$BIN"; }

flag_error() { :; } # of /etc/turnstile/COLOUR.env: the unit does not start, and its log says why

# start_colour gives the colour its own copy of the server, and returns when it serves. Where
# the disk is full, half a copy would keep it so.
start_colour() {
	install "$BIN/server" "/usr/local/bin/turnstile-$1" || {
		rm -f "/usr/local/bin/turnstile-$1"
		return 1
	}
	systemctl start "turnstile@$1" || {
		colour_log "$1" >&2
		return 1
	}
}

# stop_colour fails if the colour had to be killed; its unit says after how long.
stop_colour() {
	systemctl stop "turnstile@$1"
	[[ $(systemctl show --property=Result --value "turnstile@$1") != timeout ]]
}

# part_runs is true as well while a part ends, or waits to be started again. Redis
# may be elsewhere: a colour that does not reach it is not ready.
part_runs() { [[ $1 == redis || $(systemctl is-active "$(unit_of "$1")") != @(inactive|failed) ]]; }

# want_ports has nothing to do: /etc/turnstile has the ports of the colours.
want_ports() { :; }

start_command() { echo "systemctl enable --now $(unit_of "$1")"; }

# keep needs no reload of systemd: it heeds what is enabled when it starts.
keep() {
	systemctl --quiet --no-reload enable "turnstile@$1"
	systemctl --quiet --no-reload disable "turnstile@$(other_colour "$1")"
}

colour_log() { journalctl --unit "turnstile@$1" --lines 10 --output cat --no-pager | sed 's/^/  /'; }
colour_tool() {
	local program=$2
	shift 2
	"$BIN/$program" "$@"
}

has_logs() { [[ -n $(journalctl --unit "$(unit_of "$1")" --lines 1 --quiet --no-pager) ]]; }

# show_logs PART... follows their logs in the journal.
show_logs() {
	local part units=()
	for part; do
		units+=(--unit "$(unit_of "$part")")
	done
	journalctl "${units[@]}" --lines 20 --follow
}
