# shellcheck shell=bash
# The stack as containers: deploy/compose.yml; sourced by stack.sh.

# shellcheck disable=SC2034 # for the scripts
SOCKETS=/run/turnstile

# shellcheck disable=SC2034
PARTS=(redis nginx)

export TURNSTILE_RUN_DIR=$RUN TURNSTILE_USER
if ((EUID == 0)); then TURNSTILE_USER=65532:65532; else TURNSTILE_USER=$(id -u):$(id -g); fi

compose() { docker compose --file "$ROOT/deploy/compose.yml" --progress quiet "$@"; }

# prepare makes what the containers find in the folder that they share.
prepare() {
	mkdir -p "$RUN/redis" "$RUN/nginx/temp"
	(umask 077 && env | grep '^TURNSTILE_' >"$RUN/colour.env")
	((EUID != 0)) || chown -R "$TURNSTILE_USER" "$RUN"
}

build() {
	prepare
	REVISION=$(git -C "$ROOT" describe --always --dirty 2>/dev/null || echo unknown) compose build blue
}

start_colour() { compose up --detach --no-deps --no-build --force-recreate "$1"; }

# stop_colour fails if the container had to be killed.
stop_colour() {
	compose stop --timeout "$2" "$1"
	[[ $(compose ps --all --format '{{.ExitCode}}' "$1") != 137 ]]
}

colour_runs() { [[ -n $(compose ps --quiet --status running "$1") ]]; }
colour_log() { compose logs --no-color --no-log-prefix --tail 10 "$1" | sed 's/^/  /'; }

# colour_tool runs a program of the image in the colour's own container, which
# knows nginx by its name.
colour_tool() {
	local colour=$1 program=$2
	shift 2
	compose exec --no-TTY "$colour" "$program" "${@/#$SITE/http://nginx:8080}"
}

start_part() {
	compose up --detach --no-deps --no-build --wait --wait-timeout 60 "$1" || die "$1 does not start: see make logs"
	echo "  $1 runs"
}

stop_parts() { compose down --timeout 10; }
show_logs() { compose logs --follow --tail 20; }
