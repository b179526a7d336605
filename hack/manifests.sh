#!/usr/bin/env bash
# Writes a kustomization that installs an overlay with an image of yours, pinned by its
# digest: what runs is what was built, even if the tag moves.
#
# Usage: IMAGE=NAME[:TAG][@DIGEST] [OVERLAY=default] [OUT=bin] hack/manifests.sh
# Without a digest it takes that of the image which hack/image.sh has built in OUT, and
# which you push under that name. Writes OUT/manifests/kustomization.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-}
OVERLAY=${OVERLAY:-default}
OUT=${OUT:-bin}

fail() { echo "manifests: $*" >&2; exit 1; }

name=${IMAGE%%@*}
case $name in
"" | *.invalid/*) fail "IMAGE has to be the name of an image in a registry of yours, as registry.example.com/crd-ipam:v1" ;;
esac
case $IMAGE in
*@sha256:*) digest=${IMAGE#*@} ;;
*) digest=$(cat "$OUT/image.digest" 2>/dev/null) || fail "no digest: make image IMAGE=$IMAGE builds the image, or say IMAGE=$name@sha256:..." ;;
esac
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || fail "$digest is not a digest"
[[ -d manifests/overlays/$OVERLAY ]] || fail "there is no manifests/overlays/$OVERLAY"
# The tag is what follows a colon after the last slash; before it, that is a port.
[[ ${name##*/} != *:* ]] || name=${name%:*}

mkdir -p "$OUT/manifests"
cat >"$OUT/manifests/kustomization.yaml" <<EOF
# Written by make manifests. Another namespace is one line here: namespace: NAME.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- $(realpath --relative-to="$OUT/manifests" "manifests/overlays/$OVERLAY")
images:
- name: crd-ipam.invalid/crd-ipam
  newName: $name
  digest: $digest
EOF
echo "manifests: wrote $OUT/manifests for $name@$digest: kubectl apply -k $OUT/manifests" >&2
