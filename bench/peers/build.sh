#!/usr/bin/env bash
# Builds the named peers, or all of them, into .build/. What cannot be built
# here is left out with a word, and that is no error. Python and npm parts are
# copied there too, so that a peer is built when its file in .build/ exists.
set -euo pipefail
cd "$(dirname "$0")"

peers=(gorilla coder gobwas gws nbio gnet nodews channels floor)

skip() {
	echo "skipped $1: $2"
}

has() {
	command -v "$1" >/dev/null
}

build_go() {
	has go || { skip "$1" "go is not installed"; return; }
	CGO_ENABLED=0 go build -trimpath -o ".build/$1" "./$1" || skip "$1" "go build failed"
}

# bufferutil brings its binaries along: no script of a package has to run.
build_nodews() {
	if ! has node || ! has npm; then
		skip nodews "node and npm are not installed"
		return
	fi
	mkdir .build/nodews
	cp nodews/package.json nodews/package-lock.json .build/nodews/
	if npm ci --prefix .build/nodews --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null; then
		cp nodews/server.js .build/nodews/
	else
		skip nodews "npm ci failed"
	fi
}

build_channels() {
	if /usr/bin/python3 -c 'import channels, uvicorn, uvloop, httptools, websockets' 2>/dev/null; then
		mkdir .build/channels
		cp channels/asgi.py channels/serve.py .build/channels/
	else
		skip channels "install Debian's python3-django-channels, python3-uvicorn, python3-uvloop, python3-httptools, python3-websockets"
	fi
}

build_floor() {
	has cc || { skip floor "no C compiler (cc)"; return; }
	cc -std=c17 -O2 -Wall -Wextra -pthread -o .build/floor floor/floor.c || skip floor "cc failed"
}

# A peer that was built before must not stay when it cannot be built now.
build() {
	rm -rf ".build/${1:?}"
	case $1 in
	gorilla | coder | gobwas | gws | nbio | gnet) build_go "$1" ;;
	nodews | channels | floor) "build_$1" ;;
	*)
		echo "no such peer: $1 (there are: ${peers[*]})" >&2
		exit 2
		;;
	esac
}

mkdir -p .build
if [[ $# -eq 0 ]]; then
	set -- "${peers[@]}"
fi
for peer; do
	build "$peer"
done
