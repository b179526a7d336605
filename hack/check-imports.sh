#!/usr/bin/env bash
# Checks what a room may not import, however far away: imports run one way, as the table
# in CONTRIBUTING.md says, and the plugin, which is a new process for every call, stays
# small and quick to start.
# It also checks that only pool names the kinds of pool.
set -euo pipefail
cd "$(dirname "$0")/.."
module=github.com/crd-ipam/crd-ipam
bad=0

# never PACKAGE REGEXP: none of what PACKAGE imports, however far away, matches.
never() {
	local deps hits
	deps=$(go list -deps "./$1")
	hits=$(grep -v "^$module/$1\$" <<<"$deps" | grep -E "$2" || true)
	[ -z "$hits" ] || report "$1" "$hits"
}

# never_itself PACKAGE REGEXP: no direct import of PACKAGE matches.
never_itself() {
	local deps hits
	deps=$(go list -f '{{join .Imports "\n"}}' "./$1")
	hits=$(grep -E "$2" <<<"$deps" || true)
	[ -z "$hits" ] || report "$1" "$hits"
}

report() {
	sed "s|^|$1 must not import |" <<<"$2" | head -5 >&2
	bad=1
}

ours="^$module"
never apis/nvipam/v1alpha1 "$ours/(generated|pkg|cmd)"
never generated/clientset/versioned "$ours/(pkg|cmd)"
never generated/informers/externalversions "$ours/(pkg|cmd)"
never pkg/pool "$ours/(generated|pkg|cmd)|^k8s.io/client-go"
never_itself pkg/pool '^(os|io|log|syscall|context)(/|$)|^net(/[^n].*)?$'
never pkg/hint "$ours/(generated|pkg/(claim|ledger|cni|controller)|cmd)|^k8s.io/client-go"
never pkg/ledger "$ours/(pkg/(claim|hint|cni|controller|install|migrate|reclaim)|cmd)"
# The verdict depends on the evidence alone.
never pkg/reclaim "$ours/(generated|pkg|cmd)|^k8s.io/client-go/"
never_itself pkg/reclaim '^(os|io|log|syscall|context|net|time)(/|$)|^k8s.io/api/'
never pkg/claim "$ours/(pkg/cni|pkg/controller|cmd)"
never pkg/cni "$ours/(pkg/controller|cmd)"
never pkg/controller "$ours/(pkg/cni|cmd)"
never pkg/migrate/whereabouts "$ours/(pkg/(claim|hint|cni|controller|install)|cmd)"
never pkg/inspect "$ours/(pkg/(controller|install|migrate)|cmd)"
never_itself pkg/inspect '^(os|log)(/|$)' # it returns what it has to say
never pkg/web "$ours/(pkg/(controller|install|migrate)|cmd)"
never_itself pkg/web '^os(/|$)|^k8s.io/client-go/' # it asks inspect
never cmd/internal/program "$ours/(generated|pkg)"
# The typed clients of Kubernetes alone would double the plugin's start-up time and size;
# what fakes and OpenAPI need would add a quarter.
never cmd/nv-ipam "$ours/pkg/(controller|inspect|web)|^github.com/spf13/cobra|^k8s.io/cli-runtime|^k8s.io/client-go/(kubernetes|testing|gentype|informers)(/|$)|^k8s.io/kube-openapi/pkg/validation|^github.com/(prometheus|google/gnostic-models)/"

# A new kind of pool is a row of the table in pkg/pool/kinds.go, and nothing elsewhere.
# The migration from whereabouts is about its kinds, and makes one of ours.
named=$(grep -rnE '(IP|CIDR)Pool' --include='*.go' --exclude='*_test.go' pkg cmd | grep -vE '^pkg/(pool|migrate/whereabouts)/' || true)
[ -z "$named" ] || {
	sed 's|$|   <- only pkg/pool may name a kind of pool|' <<<"$named" | head -5 >&2
	bad=1
}

exit $bad
