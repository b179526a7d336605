#!/usr/bin/env bash
# Builds static commands. The same source, VERSION and Go release give the same bits,
# whatever the machine, the directory and the caller's environment.
#
# Usage: [VERSION=...] GOOS=linux GOARCH=amd64 hack/build.sh DIR PACKAGE...
set -euo pipefail
cd "$(dirname "$0")/.."

export GOOS GOARCH GOWORK=off CGO_ENABLED=0 GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0
echo "build: $GOOS/$GOARCH: ${*:2}" >&2
mkdir -p "$1"
go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION:-dev}" -o "$1/" "${@:2}"
