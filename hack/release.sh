#!/usr/bin/env bash
# Writes what a user downloads, as docs/release.md lists it: the image, a manifest for each
# overlay with the image pinned by its digest, kubectl-ipam with a manifest for krew, bills of
# materials, checksums. The same commit, VERSION and Go release give the same checksums.
#
# Usage: VERSION=v1.2.3 [IMAGE=NAME[:TAG]] [URL=...] [SOURCE_DATE_EPOCH=SECONDS] [OUT=dist] hack/release.sh
# IMAGE is where you push the image, URL where you put the rest. OUT is replaced.
# SOURCE_DATE_EPOCH is the time that files in the archives have: by default the commit's.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C # in which files are sorted

homepage=https://github.com/crd-ipam/crd-ipam
VERSION=${VERSION:-dev}
# What git describe says if there is no tag. krew takes semantic versions only.
[[ $VERSION =~ ^v[0-9]+\.[0-9]+\.[0-9]+ ]] || VERSION=v0.0.0-g$VERSION
# Whoever serves this name can withhold the image, and not change it: it is pinned.
IMAGE=${IMAGE:-ghcr.io/crd-ipam/crd-ipam:$VERSION}
URL=${URL:-$homepage/releases/download/$VERSION}
OUT=${OUT:-dist}
platforms=(darwin/amd64 darwin/arm64 linux/amd64 linux/arm64)

say() { echo "release: $*" >&2; }
fail() { say "$*"; exit 1; }

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
[[ $epoch =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH has to be the seconds since 1970 of the commit: git log -1 --format=%ct says it where the repository is"
[ -z "$(ls -A "$OUT" 2>/dev/null)" ] || [ -e "$OUT/SHA256SUMS" ] || fail "$OUT has files, and none of them is SHA256SUMS: it would be replaced"
case $VERSION in *-dirty) say "the tree has changes that no commit has: nobody else can build this" ;; esac

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
to=$stage/dist
mkdir "$to"

archive() { # FILE DIR NAME...: a tar.gz that does not depend on who makes it, and when
	tar --create --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$epoch" \
		--directory="$2" "${@:3}" | gzip --no-name --best >"$to/$1"
}

image() {
	VERSION=$VERSION IMAGE=$IMAGE OUT=$stage hack/image.sh >/dev/null
	local file
	for file in "$stage"/image*.tar "$stage"/image*.json; do mv "$file" "$to/crd-ipam-${file##*/}"; done
}

manifests() {
	local kubectl overlay says
	kubectl=$(KUBE='' hack/parts.sh kubectl)/kubectl
	for overlay in manifests/overlays/*/; do
		overlay=$(basename "$overlay")
		says=$(IMAGE=$IMAGE OVERLAY=$overlay NAMESPACE='' OUT=$stage hack/manifests.sh 2>&1) || fail "$says"
		"$kubectl" kustomize "$stage/manifests" >"$to/crd-ipam-$overlay.yaml"
	done
	# For those who write kustomizations of their own, with components.
	archive crd-ipam-manifests.tar.gz . LICENSE manifests
}

plugin() {
	local platform os arch dir name
	for platform in "${platforms[@]}"; do
		os=${platform%/*} arch=${platform#*/} dir=$stage/kubectl-ipam/$platform name=kubectl-ipam_${platform/\//_}
		VERSION=$VERSION GOOS=$os GOARCH=$arch hack/build.sh "$dir" ./cmd/kubectl-ipam
		(cd hack/image && GOWORK=off GOFLAGS='' go run . -bill-of "$dir" -version "$VERSION") >"$to/$name.spdx.json"
		cp LICENSE "$dir"
		archive "$name.tar.gz" "$dir" LICENSE kubectl-ipam
	done
}

# The file's name is the plugin's, as krew's index wants it.
krew() {
	cat <<EOF
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: ipam
spec:
  version: $VERSION
  homepage: $homepage
  shortDescription: Explain the addresses of secondary networks
  description: |
    Answers an operator's questions about the IP addresses of secondary networks that
    crd-ipam gives: who has an address, why a pod does not start, what is full, what
    is leaked, what an edit of a pool would strand. It works with the rights of the
    kubeconfig. $homepage has the controller and the CNI plugin that it is for.
  platforms:
EOF
	local platform name sum
	for platform in "${platforms[@]}"; do
		name=kubectl-ipam_${platform/\//_}.tar.gz
		read -r sum _ < <(sha256sum "$to/$name")
		cat <<EOF
  - selector:
      matchLabels:
        os: ${platform%/*}
        arch: ${platform#*/}
    uri: $URL/$name
    sha256: $sum
    bin: kubectl-ipam
EOF
	done
}

say "$VERSION, image $IMAGE"
image
manifests
plugin
krew >"$to/ipam.yaml"
(cd "$to" && sha256sum -- * >SHA256SUMS)
rm -rf "$OUT"
mkdir -p "$(dirname "$OUT")"
mv "$to" "$OUT"
say "wrote $(wc -l <"$OUT/SHA256SUMS") files and SHA256SUMS to $OUT: docs/release.md says what is next"
