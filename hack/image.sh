#!/usr/bin/env bash
# Builds the container image without Docker: hack/image assembles it from static binaries
# for each platform. Same source, VERSION and Go release: same digest.
#
# Usage: [VERSION=...] [IMAGE=NAME:TAG] [IMAGE_USER=UID:GID] [OUT=bin] hack/image.sh
# Writes OUT/image.tar (OCI layout, all platforms), OUT/image-ARCH.docker.tar,
# OUT/image-ARCH.spdx.json and, for hack/manifests.sh, OUT/image.digest, and prints the
# digest on stdout; progress goes to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=${VERSION:-dev}
IMAGE=${IMAGE:-crd-ipam.invalid/crd-ipam:dev}
# nonroot. The manifest of a container that has to run as root says so.
IMAGE_USER=${IMAGE_USER:-65532:65532}
OUT=${OUT:-bin}
arches=(amd64 arm64)
# The caller's environment must not change what comes out; hack/build.sh has its own.
export GOWORK=off CGO_ENABLED=0 GOFLAGS=

say() { echo "image: $*" >&2; }

mkdir -p "$OUT"
for arch in "${arches[@]}"; do
	rm -rf "$OUT/image/$arch"
	VERSION=$VERSION GOOS=linux GOARCH=$arch hack/build.sh "$OUT/image/$arch" ./cmd/...
done

say "putting together $IMAGE, version $VERSION, built by $(go env GOVERSION)"
out=$(cd "$OUT" && pwd)
cd hack/image
go run . -binaries "$out/image" -arches "$(IFS=,; echo "${arches[*]}")" -tag "$IMAGE" -version "$VERSION" -user "$IMAGE_USER" -out "$out" | tee "$out/image.digest"
say "wrote $(cd "$out" && du -h image*.tar | awk '{printf "%s%s (%s)", sep, $2, $1; sep = ", "}') to $OUT"
