#!/usr/bin/env bash
# Checks what ships, the root module, against Go's vulnerability database. It fails for a
# known vulnerability in code that is called, and if nothing could be checked. Only an
# unreachable database can be waived, by a named person and for a limited time: see
# hack/waiver.sh.
#
# Usage: [GOVULNDB=https://vuln.go.dev] [GOVULNCHECK=PROGRAM] [VULNCHECK_WAIVER=FILE] hack/vulncheck.sh
#   GOVULNCHECK       a govulncheck to run; default is the one that hack/vulncheck pins
#   VULNCHECK_WAIVER  default is hack/vulncheck-waiver
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off
waiver=${VULNCHECK_WAIVER:-hack/vulncheck-waiver}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

if [ -z "${GOVULNCHECK:-}" ]; then
	GOVULNCHECK=$tmp/govulncheck
	go build -C hack/vulncheck -o "$GOVULNCHECK" golang.org/x/vuln/cmd/govulncheck
fi
status=0
"$GOVULNCHECK" ${GOVULNDB:+-db "$GOVULNDB"} ./... 2>"$tmp/stderr" || status=$?
cat "$tmp/stderr" >&2
if [ "$status" -eq 1 ] && grep -q 'fetching vulnerabilities' "$tmp/stderr"; then
	echo "vulncheck: NOT CHECKED: the vulnerability database cannot be reached from here" >&2
	hack/waiver.sh "$waiver"
	exit 0
fi
exit "$status"
