#!/usr/bin/env bash
# Writes everything that is generated from apis/: deepcopy and register
# functions, the typed client with its informers and listers, and the CRDs.
#
# Usage: hack/generate.sh [ROOT]
# ROOT is the tree to write into, by default this one. `make verify` passes a copy, so
# that it does not change the tree.
#
# The generators are called one by one and not through kube_codegen.sh: that uses the
# versions in its own go.mod, not those that hack/tools pins.
set -euo pipefail

root=$(cd "${1:-$(dirname "$0")/..}" && pwd)
module=github.com/crd-ipam/crd-ipam
api=$module/apis/nvipam/v1alpha1
client=$module/generated
export GOWORK=off

bin=${XDG_CACHE_HOME:-$HOME/.cache}/crd-ipam/codegen
mkdir -p "$bin"
for tools in tools tools/client-gen; do
	(cd "$root/hack/$tools" && go build -o "$bin/" tool)
done

cd "$root"
# Written beside the tree and then swapped: files without a source are removed, and the
# tree always has a client.
new=$(mktemp -d "$root/.generated.XXXXXX")
trap 'rm -rf "$new"' EXIT
header=(--go-header-file hack/boilerplate.go.txt)

"$bin/deepcopy-gen" "${header[@]}" --output-file zz_generated.deepcopy.go "$api"
"$bin/register-gen" "${header[@]}" --output-file zz_generated.register.go "$api"
"$bin/client-gen" "${header[@]}" --clientset-name versioned --input-base "$module/apis" --input nvipam/v1alpha1 \
	--output-dir "$new/generated/clientset" --output-pkg "$client/clientset"
"$bin/lister-gen" "${header[@]}" --output-dir "$new/generated/listers" --output-pkg "$client/listers" "$api"
"$bin/informer-gen" "${header[@]}" --output-dir "$new/generated/informers" --output-pkg "$client/informers" \
	--versioned-clientset-package "$client/clientset/versioned" --listers-package "$client/listers" "$api"

"$bin/controller-gen" crd:generateEmbeddedObjectMeta=false paths=./apis/... output:crd:artifacts:config="$new/crds"
# The length of a name, which no marker can say. Without it the server estimates the cost
# of a rule about the name from the longest possible request. It accepts the length only
# if both names are described.
sed -i '/^          metadata:$/{n;s/.*/            properties:\n              generateName:\n                type: string\n              name:\n                maxLength: 253\n                type: string\n            type: object/}' \
	"$new/crds/nv-ipam.nvidia.com_ipallocations.yaml"
# The form of each metav1.Time, also of conditions, whose markers are not ours. The format allows
# more than Go reads, such as a lower-case t or an offset of 99 hours. A metav1.MicroTime has its own
# pattern.
sed -i '/^ *format: date-time$/{n;s/^\( *\)type: string$/\1pattern: ^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$\n&/}' \
	"$new"/crds/*.yaml

rm -rf generated manifests/base/crds/nv-ipam.nvidia.com_*.yaml
mv "$new/generated" generated
mv "$new"/crds/*.yaml manifests/base/crds/
