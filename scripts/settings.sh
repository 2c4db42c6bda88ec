# shellcheck shell=bash
# The settings of the stack, all of them variables TURNSTILE_…: their defaults,
# what they may be, and the flags of the server that are nobody's to set. Sourced
# by stack.sh; it starts nothing.

# A setting is a variable TURNSTILE_NAME. Its value is SETTING[NAME].
SETTINGS=()
declare -A SETTING KIND MEANING

# setting NAME DEFAULT KIND MEANING declares one. White space around a value is
# dropped. The variable goes no further: what the programs of the stack find in
# their environment are flags of the server.
setting() {
	local variable=TURNSTILE_$1 value
	value=${!variable:-}
	value=${value#"${value%%[![:space:]]*}"}
	value=${value%"${value##*[![:space:]]}"}
	export -n "${variable?}"
	SETTINGS+=("$1")
	SETTING[$1]=${value:-$2} KIND[$1]=$3 MEANING[$1]="$4${2:+ ($2)}"
}

setting RUN_DIR "$ROOT/.run" path 'sockets, pid files, logs and data'
setting HOST 127.0.0.1 address 'the address of every port below'
setting PORT 8080 port nginx
setting BLUE_PORT 8001 port 'blue, past nginx'
setting GREEN_PORT 8002 port 'green, past nginx'
setting VICTORIAMETRICS_PORT 8428 port metrics
setting VMALERT_PORT 8880 port alerts
setting VICTORIALOGS_PORT 9428 port 'logs, of processes'
setting VLAGENT_PORT 9429 port 'the shipper of logs, of processes'
setting LOKI_PORT 3100 port 'logs, of containers'
setting GRAFANA_PORT 3000 port 'dashboards, of containers'
setting BIN '' programs 'a folder with server and bench, instead of building them'
setting MONITORING on switch 'off: without what watches the stack'
setting PATIENCE 15 seconds 'seconds that a part of the stack is given to get ready'
setting NOFILE 65536 number 'files that a container may open, where the engine can give so many'
setting BACKEND '' backend \
	'processes, compose or units (units where turnstile@.service is installed, compose where a Docker engine with the compose plugin runs)'

# What a value of each kind is.
declare -A ALLOWED=(
	[path]='a path of at most 85 letters, digits and any of /._+-'
	[address]='an IPv4 address, such as 127.0.0.1'
	[port]='a port from 1 to 65535'
	[programs]='a folder with the programs server and bench'
	[number]='a whole number from 1'
	[switch]='on or off'
	[seconds]='whole seconds from 1 to 3600'
	[backend]='processes, compose or units'
)

# The path becomes part of nginx's configuration, and of sockets' addresses: the server
# takes a -control of 99 bytes at the most, and /green.control has 14.
is_path() { [[ $(realpath -m -- "$1") =~ ^[[:alnum:]/._+-]{1,85}$ ]]; }
is_address() { [[ $1 =~ ^(([0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])(\.|$)){4}$ && $1 != *. ]]; }
is_port() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 <= 65535)); }
is_programs() { [[ -f $1/server && -x $1/server && -f $1/bench && -x $1/bench ]]; }
is_number() { [[ $1 =~ ^[1-9][0-9]{0,8}$ ]]; }
is_switch() { [[ $1 == on || $1 == off ]]; }
is_seconds() { [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] && (($1 <= 3600)); }
is_backend() { [[ $1 == processes || $1 == compose || $1 == units ]]; }

check_settings() {
	local name
	for name in "${SETTINGS[@]}"; do
		[[ -z ${SETTING[$name]} ]] || "is_${KIND[$name]}" "${SETTING[$name]}" ||
			refuse "TURNSTILE_$name must be ${ALLOWED[${KIND[$name]}]}, got \"${SETTING[$name]}\""
	done
}

# show_setting NAME MEANING fits into a terminal of 80 columns.
show_setting() {
	local label=TURNSTILE_$1 line
	while read -r line; do
		printf '  %-32s %s\n' "$label" "$line"
		label=
	done < <(fmt --width 46 <<<"$2")
}

show_settings() {
	local name
	printf '\nVariables:\n'
	for name in "${SETTINGS[@]}"; do
		show_setting "$name" "${MEANING[$name]}"
	done
	show_setting MAX_MESSAGE '-max-message of a colour that is started; so for every flag of the server'
}

# check_flags refuses the flags that the scripts set themselves, or that would
# make a colour something else: they would not be heeded, or do harm.
check_flags() {
	local flag variable hint='; TURNSTILE_HOST, TURNSTILE_BLUE_PORT and TURNSTILE_GREEN_PORT say where the colours listen'
	for flag in -listen -control -take-over-from -healthcheck -tell; do
		variable=${flag^^}
		variable=TURNSTILE_${variable:1}
		variable=${variable//-/_}
		[[ -z ${!variable:-} ]] || refuse "$variable must not be set: $flag of a colour is for the scripts to give; unset it$hint"
		hint=
	done
}

# The setting of the port at which each part listens.
declare -A PORT_OF=([nginx]=PORT [blue]=BLUE_PORT [green]=GREEN_PORT [vmalert]=VMALERT_PORT
	["victoria-metrics"]=VICTORIAMETRICS_PORT ["victoria-logs"]=VICTORIALOGS_PORT [vlagent]=VLAGENT_PORT
	[victoriametrics]=VICTORIAMETRICS_PORT [loki]=LOKI_PORT [grafana]=GRAFANA_PORT)

# address_of PART is where it listens, host:port.
address_of() { echo "${SETTING[HOST]}:${SETTING[${PORT_OF[$1]}]}"; }

is_taken() { (: <"/dev/tcp/${SETTING[HOST]}/$1") 2>/dev/null; }

# free_port PORT is the next port that nobody listens on, nor is to.
free_port() {
	local port=$(($1 % 65535 + 1))
	while is_taken "$port" || [[ " ${SETTING[*]} " == *" $port "* ]]; do
		port=$((port % 65535 + 1))
	done
	echo "$port"
}

# want_ports PART... ends the script if another program has the port of a part
# that is still to be started.
want_ports() {
	local part name taken='' variables=() text='is taken by another program: end that one, or choose another port'
	for part; do
		name=${PORT_OF[$part]:-}
		if [[ -n $name ]] && is_taken "${SETTING[$name]}" && ! part_runs "$part"; then
			taken+="${taken:+ and }port ${SETTING[$name]}, for $part,"
			SETTING[$name]=$(free_port "${SETTING[$name]}")
			variables+=("TURNSTILE_$name=${SETTING[$name]}")
		fi
	done
	((${#variables[@]} <= 1)) || text='are taken by other programs: end those, or choose other ports'
	[[ -z $taken ]] || die "$taken $text: ${variables[*]} make $(basename "$0" .sh)"
}
