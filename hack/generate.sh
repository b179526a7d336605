#!/usr/bin/env bash
# Writes everything that is generated from apis/: deepcopy and register
# functions, the typed client with its informers and listers, and the CRDs.
#
# Usage: hack/generate.sh [ROOT]
# ROOT is the tree to write into, by default this one; `make verify` passes a
# copy, so that checking leaves the tree as it was.
set -euo pipefail

root=$(cd "${1:-$(dirname "$0")/..}" && pwd)
tools=$root/hack/tools
module=github.com/crd-ipam/crd-ipam
boilerplate=$root/hack/boilerplate.go.txt

codegen=$(cd "$tools" && go list -m -f '{{.Dir}}' k8s.io/code-generator)
if [ -z "$codegen" ]; then
	(cd "$tools" && go mod download k8s.io/code-generator)
	codegen=$(cd "$tools" && go list -m -f '{{.Dir}}' k8s.io/code-generator)
fi

# The generators are installed outside of the tree and of the user's GOBIN.
export GOBIN=${XDG_CACHE_HOME:-$HOME/.cache}/crd-ipam/codegen
mkdir -p "$GOBIN"

cd "$root"
# shellcheck source=/dev/null
source "$codegen/kube_codegen.sh"
kube::codegen::gen_helpers --boilerplate "$boilerplate" apis
kube::codegen::gen_register --boilerplate "$boilerplate" apis
kube::codegen::gen_client \
	--boilerplate "$boilerplate" \
	--with-watch \
	--output-dir "$root/generated" \
	--output-pkg "$module/generated" \
	apis

(cd "$tools" && go build -o "$GOBIN/controller-gen" sigs.k8s.io/controller-tools/cmd/controller-gen)
"$GOBIN/controller-gen" crd:generateEmbeddedObjectMeta=false paths=./apis/... output:crd:artifacts:config=manifests/crds
