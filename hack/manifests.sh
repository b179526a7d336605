#!/usr/bin/env bash
# Writes a kustomization that installs an overlay with an image of yours, pinned by its
# digest: what runs is what was built, even if the tag moves.
#
# Usage: IMAGE=NAME[:TAG][@DIGEST] [OVERLAY=default] [NAMESPACE=kube-system] [OUT=bin] hack/manifests.sh
# Without a digest it takes that of the image which hack/image.sh has built in OUT, and
# which you push under that name. Writes OUT/manifests and, with what has to outlive it,
# OUT/manifests/crds: the CRDs and, if it is not kube-system, the namespace.
# OUT/manifests/uninstall removes what the installer has put on the nodes;
# OUT/manifests/migrate-dry-run and migrate-only prepare them, see docs/migration.md.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-}
OVERLAY=${OVERLAY:-default}
NAMESPACE=${NAMESPACE:-kube-system}
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

[[ $NAMESPACE =~ ^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || fail "NAMESPACE=$NAMESPACE is no name of a namespace"

case $OVERLAY in
k8s-1.30 | network-operator) crds=crds-$OVERLAY ;;
*) crds=crds ;;
esac
to=$OUT/manifests
overlays=$(realpath -m --relative-to="$to" manifests/overlays)

# Its namespace is network-operator's, and one line in the overlay.
namespace="namespace: $NAMESPACE"
[ "$OVERLAY" != network-operator ] || namespace= NAMESPACE=kube-system

rm -rf "$to"
mkdir -p "$to/crds" "$to/uninstall" "$to/migrate-dry-run" "$to/migrate-only"
kustomization() { # DIR; the rest on stdin
	printf '# Written by make manifests.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n' >"$1/kustomization.yaml"
	cat >>"$1/kustomization.yaml"
}
parts() { # DIR OVERLAY
	kustomization "$1" <<EOF
$namespace
resources:
- $2
images:
- name: crd-ipam.invalid/crd-ipam
  newName: $name
  digest: $digest
EOF
}
parts "$to" "$overlays/$OVERLAY"
for once in uninstall migrate-dry-run migrate-only; do parts "$to/$once" "../$overlays/$once"; done
kustomization "$to/crds" <<EOF
resources:
- ../$overlays/$crds
EOF
if [ "$NAMESPACE" != kube-system ]; then
	echo "- namespace.yaml" >>"$to/crds/kustomization.yaml"
	cat >"$to/crds/namespace.yaml" <<EOF
apiVersion: v1
kind: Namespace
metadata:
  name: $NAMESPACE
  labels:
    # The policy crd-ipam-deletion refuses to delete it.
    nv-ipam.nvidia.com/protected: ""
    # The installer mounts directories of the host.
    pod-security.kubernetes.io/enforce: privileged
  annotations:
    argocd.argoproj.io/sync-options: Prune=false,Delete=false
    kustomize.toolkit.fluxcd.io/prune: disabled
EOF
fi
echo "manifests: wrote $to for $name@$digest: kubectl apply -k $to/crds, then kubectl apply -k $to" >&2
