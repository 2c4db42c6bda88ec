# shellcheck shell=bash
# The arguments of the scripts beside it, which source this file: what --help
# prints, and how a script ends that cannot do its work.

complain() { echo "${0##*/}: $*" >&2; }

# die ends a script whose work has failed.
die() {
	complain "$@"
	exit 1
}

# refuse ends a script that was called in a wrong way: before it does anything.
refuse() {
	complain "$@"
	exit 2
}

# refuse_argument ARGUMENT WHY names the argument, and where to read on.
refuse_argument() { refuse "unexpected argument \"$1\": $2; see scripts/${0##*/} --help"; }

# no_arguments is for a script that takes none.
no_arguments() { (($# == 0)) || refuse_argument "$1" "this script takes none"; }

# no_options refuses whatever begins with a dash.
no_options() {
	local argument
	for argument; do
		[[ $argument != -* ]] || refuse_argument "$argument" "there is no such option"
	done
}

wants_help() {
	local argument
	for argument; do
		[[ $argument != --help && $argument != -h ]] || return 0
	done
	return 1
}

# show_help prints the comment at the top of the script.
show_help() {
	awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$(dirname "${BASH_SOURCE[0]}")/${0##*/}"
}
