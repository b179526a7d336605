#!/usr/bin/env bash
# Checks what a reviewer should not have to: generated files are current, modules are
# tidy, the code is formatted and has its header, imports run one way, and the plugin is
# small. It changes nothing in the tree, reports everything that is wrong, and fails if
# anything is.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off
max_plugin_mb=16
failed=()

check() { # NAME COMMAND...
	echo "verify: $1"
	"${@:2}" || failed+=("$1")
}

files() { # PATTERN...: the tree's files, committed or about to be
	git ls-files --cached --others --exclude-standard --deduplicate -- "$@" |
		while IFS= read -r f; do [ ! -e "$f" ] || echo "$f"; done
}

generated() (
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	mkdir "$tmp/tree"
	files . | tar -cf - -T - | tar -xf - -C "$tmp/tree"
	cp -r "$tmp/tree" "$tmp/fresh"
	hack/generate.sh "$tmp/fresh" || return 1
	diff -ruN "$tmp/tree" "$tmp/fresh" && return
	echo "generated files are stale: run make generate"
	return 1
)

tidy() {
	local mod bad=0
	for mod in $(files 'go.mod' '*/go.mod'); do
		(cd "$(dirname "$mod")" && go mod tidy -diff) || { echo "$mod is not tidy"; bad=1; }
	done
	return $bad
}

formatted() {
	local bad
	bad=$(files '*.go' | xargs gofmt -l)
	[ -z "$bad" ] || { echo "not formatted: run gofmt -w on"; echo "$bad"; return 1; }
}

headers() {
	local f bad=0 want
	want=$(head -2 hack/boilerplate.go.txt)
	for f in $(files '*.go'); do
		# A generator may put a build tag first.
		[[ $(head -5 "$f") == *"$want"* ]] || { echo "$f does not begin with hack/boilerplate.go.txt"; bad=1; }
	done
	return $bad
}

plugin_size() (
	tmp=$(mktemp)
	trap 'rm -f "$tmp"' EXIT
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$tmp" ./cmd/nv-ipam || return 1
	size=$(stat -c %s "$tmp")
	echo "stripped nv-ipam: $((size / 1000000)) MB"
	[ "$size" -lt $((max_plugin_mb * 1000000)) ] || { echo "that is not below $max_plugin_mb MB"; return 1; }
)

check "format" formatted
check "headers" headers
check "imports" hack/check-imports.sh
check "plugin size" plugin_size
check "generated files" generated
check "go.mod and go.sum" tidy

[ ${#failed[@]} -eq 0 ] || { printf 'verify: FAILED: %s\n' "${failed[@]}" >&2; exit 1; }
