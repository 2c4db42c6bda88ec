# shellcheck shell=bash
# The stack as processes of this machine; sourced by stack.sh. Everything that
# is started has a pid file under .run/pid, and nothing else is ever signalled.

# shellcheck disable=SC2034 # for the scripts
SOCKETS=$RUN
BIN=${SETTING[BIN]:-$ROOT/bin}
TOOLS=$ROOT/.cache/bin

# In the order in which they start.
PARTS=(redis nginx)
WATCHERS=(victoria-metrics vmalert victoria-logs vlagent)

# since PID is when a process started, in clock ticks since the boot: with its
# number, that is a process's name. Nothing for one that has ended, also if
# nobody has waited for it yet. See proc(5), /proc/pid/stat.
since() {
	local stat fields
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
	read -ra fields <<<"${stat##*) }"
	[[ ${fields[0]} == [ZX] ]] || echo "${fields[19]}"
}

# pid_of NAME is the process that start has started under this name; fails if
# it has ended.
pid_of() {
	local pid started _
	read -r pid started _ 2>/dev/null <"$RUN/pid/$1" || return 1
	[[ -n $started && $started == "$(since "$pid")" ]] && echo "$pid"
}

# part_runs NAME succeeds if what start has started under this name still runs.
part_runs() { pid_of "$1" >/dev/null; }

# start NAME COMMAND... runs a command in the background, in a session of its
# own, with its output in .run/log/NAME.log. The process writes its pid file
# before it becomes the command, so that it never runs without one: its number,
# when it started, and where its part of the log begins.
start() {
	local name=$1
	shift
	mkdir -p "$RUN/pid" "$RUN/log"
	rm -f "$RUN/pid/$name"
	(
		[[ -z $LOCK ]] || exec {LOCK}>&-
		exec >>"$RUN/log/$name.log" 2>&1 </dev/null
		pid=$BASHPID
		echo "$pid $(since "$pid") $(stat -c %s "$RUN/log/$name.log")" >"$RUN/pid/$name"
		exec setsid "$@"
	) &
	until [[ -s $RUN/pid/$name ]]; do
		if ! kill -0 $! 2>/dev/null && [[ ! -s $RUN/pid/$name ]]; then
			complain "$name cannot be started: $RUN/pid or $RUN/log cannot be written, see above"
			return 1
		fi
		sleep 0.02
	done
}

# stop NAME SECONDS ends what start has started: SIGTERM, and SIGKILL to it and
# its children when the time is over, which is a failure.
stop() {
	local pid
	if pid=$(pid_of "$1"); then
		kill -TERM "$pid" 2>/dev/null || true
		if ! await "$2" has_ended "$1"; then
			kill -KILL -- "-$pid" 2>/dev/null || true
			await 5 has_ended "$1" || true
			return 1
		fi
	fi
	rm -f "$RUN/pid/$1"
}

has_ended() { ! part_runs "$1"; }

# log_end NAME is the last of what a process has said since it was started.
log_end() {
	local from _
	read -r _ _ from 2>/dev/null <"$RUN/pid/$1" || return 0
	tail -c "+$((from + 1))" "$RUN/log/$1.log" | tail -n 10 | sed 's/^/  /'
}

want_programs() {
	local program
	for program in redis-server redis-cli nginx curl; do
		command -v "$program" >/dev/null || die "$program is not installed: make setup installs it"
	done
	[[ -n ${SETTING[BIN]} ]] || command -v go >/dev/null ||
		die "go is not installed: install Go 1.26 or later (https://go.dev/dl/), or name a folder with server and bench in TURNSTILE_BIN"
}

build() {
	[[ -z ${SETTING[BIN]} ]] || return 0
	[[ -x $BIN/server ]] || echo "  building the server and the load generator: minutes, the first time"
	make --silent -C "$ROOT" build-bench
}

# flag_error is what the server has against the variables for its flags, if anything:
# it then ends with exit code 2, before it asks a server that is not there.
flag_error() {
	local said code=0
	said=$("$BIN/server" -healthcheck "unix:$RUN/none:/healthz/" 2>&1) || code=$?
	((code != 2)) || echo "${said#server: }"
}

# start_colour runs a copy of the server: the next build replaces bin/server
# under a colour that may be restarted. Where the disk is full, half a copy would keep it so.
start_colour() {
	mkdir -p "$RUN/bin"
	cp "$BIN/server" "$RUN/bin/$1.new" || {
		rm -f "$RUN/bin/$1.new"
		return 1
	}
	mv "$RUN/bin/$1.new" "$RUN/bin/$1"
	start "$1" "$RUN/bin/$1" -listen "$(address_of "$1"),unix:$RUN/$1.sock" -control "$RUN/$1.control" \
		-redis "${TURNSTILE_REDIS:-unix://$RUN/redis.sock}"
}

stop_colour() { stop "$1" "$2"; }
start_command() { echo "make dev-up"; }
keep() { :; } # after a reboot, make dev-up starts the one that served
colour_log() { log_end "$1"; }
colour_tool() {
	local program=$2
	shift 2
	"$BIN/$program" "$@"
}

# start_part fails, and says why, if the part does not start.
start_part() {
	if part_runs "$1"; then
		echo "  $1 runs already"
		return
	fi
	if answers "$1" &>/dev/null; then
		complain "$1 cannot start: another one, which was not started here, answers in its place"
		return 1
	fi
	case $1 in
	redis | nginx) "start_$1" ;;
	*) start_watcher "$1" ;;
	esac
	if ! await "${SETTING[PATIENCE]}" answers_or_has_ended "$1" || ! answers "$1" &>/dev/null; then
		log_end "$1" >&2
		complain "$1 does not start; the last of $RUN/log/$1.log is above"
		return 1
	fi
	echo "  $1 runs"
}

answers_or_has_ended() { answers "$1" || has_ended "$1"; }

answers() {
	case $1 in
	redis) [[ $(redis-cli -s "$RUN/redis.sock" ping) == PONG ]] ;;
	nginx) "$BIN/server" -healthcheck "$SITE/healthz/" ;;
	*) "$BIN/server" -healthcheck "http://$(address_of "$1")/health" ;;
	esac
}

start_redis() {
	mkdir -p "$RUN/redis"
	start redis redis-server --port 0 --unixsocket "$RUN/redis.sock" --dir "$RUN/redis" \
		--appendonly yes --save '' --maxmemory-policy noeviction --daemonize no
}

# nginx_workers is how many there are. A connection takes two files in nginx and one in the
# server. So where nginx's own limit cannot be had, and both have the same one, two workers
# would hold as many as the server only if the kernel dealt them out evenly.
nginx_workers() {
	if (($(ulimit -Hn) >= 65536 || $(nproc) >= 4)); then
		echo auto
	else
		echo 4
	fi
}

# start_nginx runs it on the copy, with this stack's address, paths and limit of
# files.
start_nginx() {
	local directives='daemon off;'
	copy_nginx
	sed -i "s|/run/turnstile/|$RUN/|" "$RUN/nginx/upstream.conf"
	sed -i "s|listen 8080|listen $(address_of nginx)|" "$RUN/nginx/server.conf"
	sed -i "s|^worker_rlimit_nofile .*|worker_rlimit_nofile $(ulimit -Hn);|
		s|^worker_processes .*|worker_processes $(nginx_workers);|" "$RUN/nginx/nginx.conf"
	# As root, workers would be nobody, who may not see into this folder.
	((EUID != 0)) || directives+=' user root;'
	start nginx nginx -p "$RUN/nginx/" -c "$RUN/nginx/nginx.conf" -e stderr -g "$directives"
}

# prepare_watchers builds those that are not there yet; fails if it cannot.
prepare_watchers() {
	local watcher
	for watcher in "${WATCHERS[@]}"; do
		if [[ ! -x $TOOLS/$watcher ]]; then
			echo "  building what watches the stack: minutes, the first time"
			make --silent -C "$ROOT" stack-tools
			return
		fi
	done
}

# start_watcher NAME runs one of VictoriaMetrics's programs on the arguments in
# deploy/, a line each, in which it replaces %{NAME} by these variables.
start_watcher() {
	local args
	touch "$RUN"/log/{blue,green}.log # vlagent complains about a file that is not there yet
	mapfile -t args < <(grep -h '^-' "$ROOT"/deploy/*/"$1.args")
	start "$1" env "TURNSTILE_RUN_DIR=$RUN" "TURNSTILE_DEPLOY=$ROOT/deploy" \
		"TURNSTILE_BLUE=$(address_of blue)" "TURNSTILE_GREEN=$(address_of green)" \
		"TURNSTILE_VICTORIAMETRICS=$(address_of victoria-metrics)" "TURNSTILE_VMALERT=$(address_of vmalert)" \
		"TURNSTILE_VICTORIALOGS=$(address_of victoria-logs)" "TURNSTILE_VLAGENT=$(address_of vlagent)" \
		"$TOOLS/$1" "${args[@]}"
}

stop_parts() {
	local parts=("${PARTS[@]}" "${WATCHERS[@]}") i
	for ((i = ${#parts[@]} - 1; i >= 0; i--)); do
		stop "${parts[i]}" 10 || echo "  ${parts[i]} was killed: it did not end within 10 s"
	done
}

# watchers_say tells where to look at what they have seen.
watchers_say() {
	look_at victoria-metrics "http://$(address_of victoria-metrics)/vmui/#/dashboards" dashboards
	look_at vmalert "http://$(address_of vmalert)/" alerts
	look_at victoria-logs "http://$(address_of victoria-logs)/select/vmui/" logs
}

has_logs() { [[ -s $RUN/log/$1.log ]]; }

# show_logs PART... follows their logs, also those that are still to come.
show_logs() {
	local part files=()
	for part; do
		files+=("$RUN/log/$part.log")
	done
	tail -n 20 -F "${files[@]}" 2>/dev/null
}
