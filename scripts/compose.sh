# shellcheck shell=bash
# The stack as containers: deploy/compose.yml; sourced by stack.sh.

# shellcheck disable=SC2034 # for the scripts
SOCKETS=/run/turnstile PARTS=(redis nginx) WATCHERS=(victoriametrics vmalert loki alloy grafana)

# What the colours find in their environment: the server's flags.
COLOUR_ENVIRONMENT=$(env | grep '^TURNSTILE_' || true)

# What deploy/compose.yml refers to.
for name in "${SETTINGS[@]}"; do
	export "TURNSTILE_$name=${SETTING[$name]}"
done
export TURNSTILE_RUN_DIR=$RUN TURNSTILE_USER
if ((EUID == 0)); then TURNSTILE_USER=65532:65532; else TURNSTILE_USER=$(id -u):$(id -g); fi

want_programs() {
	have_docker || die "no Docker engine answers: start it, see that you may use its socket, or set TURNSTILE_BACKEND=processes"
	have_compose || die "the Docker engine has no compose plugin: install docker-compose-plugin"
	want_version "the Docker engine" 20.10 "$(docker version --format '{{.Server.Version}}')"
	want_version "the compose plugin" 2.24 "$(docker compose version --short)"
	command -v curl >/dev/null || die "curl is not installed: install it (as root: apt-get install curl)"
}

# want_version WHAT NEEDED VERSION ends the script if the version is an older one.
want_version() {
	printf '%s\n' "$2" "${3#v}" | sort --version-sort --check=quiet || die "$1 is $3: the stack needs $2 or later"
}

compose() { docker compose --file "$ROOT/deploy/compose.yml" --progress quiet "$@"; }

# prepare makes what the containers find in the folder that they share.
prepare() {
	mkdir -p "$RUN"/{log,redis,victoria-metrics,loki,grafana}
	copy_nginx
	(umask 077 && echo "$COLOUR_ENVIRONMENT" >"$RUN/colour.env")
	((EUID != 0)) || chown -R "$TURNSTILE_USER" "$RUN"
}

# build does not use Bake, which needs one more plugin.
build() {
	prepare
	COMPOSE_BAKE=false REVISION=$(git -C "$ROOT" describe --always --dirty 2>/dev/null || echo unknown) compose build blue
}

flag_error() { :; } # the server is in an image: what it says is in its log

start_colour() { compose up --detach --no-deps --no-build --force-recreate "$1"; }

# stop_colour fails if the container had to be killed.
stop_colour() {
	compose stop --timeout "$2" "$1"
	[[ $(compose ps --all --format '{{.ExitCode}}' "$1") != 137 ]]
}

part_runs() { [[ -n $(compose ps --quiet --status running "$1") ]]; }
start_command() { echo "make dev-up"; }
keep() { :; } # after a reboot, make dev-up starts the one that served
colour_log() { compose logs --no-color --no-log-prefix --tail 10 "$1" | sed 's/^/  /'; }

# colour_tool runs a program of the image in the colour's own container, which
# knows nginx by its name.
colour_tool() {
	local colour=$1 program=$2
	shift 2
	compose exec --no-TTY "$colour" "$program" "${@/#$SITE/http://nginx:8080}"
}

# start_part fails, and says so, if the part does not start. It asks the part
# itself: the engine's health checks come so seldom that waiting for one is slow.
start_part() {
	if ! compose up --detach --no-deps --no-build "$1" || ! await 60 answers "$1"; then
		complain "$1 does not start: see make logs"
		return 1
	fi
	echo "  $1 runs"
}

answers() {
	case $1 in
	redis) compose exec --no-TTY redis redis-cli -s "$SOCKETS/redis.sock" ping ;;
	nginx) compose exec --no-TTY nginx wget -q -O /dev/null http://127.0.0.1:8080/healthz/ ;;
	victoriametrics) colour_tool "$(active_colour)" server -healthcheck http://victoriametrics:8428/health ;;
	vmalert) colour_tool "$(active_colour)" server -healthcheck http://vmalert:8880/health ;;
	*) part_runs "$1" ;;
	esac
}

prepare_watchers() { :; } # their images come when they are started

stop_parts() { compose down --timeout 10; }
watchers_say() {
	look_at grafana "http://$(address_of grafana)/" "dashboards and logs: Grafana"
	look_at victoriametrics "http://$(address_of victoriametrics)/vmui/" "metrics, one by one"
	look_at vmalert "http://$(address_of vmalert)/" alerts
}

has_logs() { [[ -n $(compose logs --no-color --tail 1 "$1" 2>/dev/null) ]]; }
show_logs() { compose logs --follow --tail 20 "$@"; }
