#!/usr/bin/env bash
# Succeeds, with a warning, if FILE waives a check today; fails if it does not, or no
# longer does. The file has four lines, in any order, and comments:
#
#   by: who waives it
#   since: YYYY-MM-DD
#   until: YYYY-MM-DD, the last day, at most 90 days after since
#   reason: why
#
# Usage: hack/waiver.sh FILE
set -euo pipefail
file=${1:?}
longest=90 # days

refuse() {
	echo "waiver: $file: $*" >&2
	exit 1
}

# field NAME: its value. The field must be in the file exactly once.
field() {
	local lines
	lines=$(sed -nE "s/^$1:[[:space:]]*(.*[^[:space:]])[[:space:]]*$/\1/p" "$file")
	[ -n "$lines" ] || refuse "has no line \"$1:\""
	[ "$(wc -l <<<"$lines")" -eq 1 ] || refuse "has more than one line \"$1:\""
	echo "$lines"
}

# day DATE: its number.
day() {
	local seconds
	[[ $1 =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]] || refuse "$1 is not a date YYYY-MM-DD"
	seconds=$(date -u -d "$1" +%s 2>/dev/null) || refuse "$1 is not a date"
	echo $((seconds / 86400))
}

[ -f "$file" ] || refuse "is missing: nobody has waived this check"
by=$(field by)
since=$(field since)
until=$(field until)
reason=$(field reason)
from=$(day "$since")
to=$(day "$until")
today=$(($(date -u +%s) / 86400))
[ "$from" -le "$today" ] || refuse "begins on $since, which is not yet"
[ "$to" -ge "$from" ] || refuse "ends before it begins"
[ $((to - from)) -le "$longest" ] || refuse "is for $((to - from)) days, more than $longest"
[ "$today" -le "$to" ] || refuse "EXPIRED on $until: check again, or have somebody waive it again"

{
	echo "######################################################################"
	echo "# WAIVED until $until ($((to - today)) days left), by $by:"
	echo "# $reason"
	echo "# ($file)"
	echo "######################################################################"
} >&2
