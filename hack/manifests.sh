#!/usr/bin/env bash
# Writes a kustomization that installs an overlay with an image of yours, pinned by its
# digest: what runs is what was built, even if the tag moves.
#
# Usage: IMAGE=NAME[:TAG][@DIGEST] [OVERLAY=default] [NAMESPACE=...] [CNI_BIN_DIR=...] [OUT=bin] hack/manifests.sh
# Without a digest it takes that of the image which hack/image.sh has built in OUT, and
# which you push under that name. Without a namespace it takes the overlay's own. Writes
# OUT/manifests and, with what has to outlive it, OUT/manifests/crds: the CRDs and, if it is
# not kube-system, the namespace.
# OUT/manifests/uninstall removes what the installer has put on the nodes;
# OUT/manifests/migrate-dry-run and migrate-only prepare them, see docs/migration.md.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-}
OVERLAY=${OVERLAY:-default}
NAMESPACE=${NAMESPACE:-}
CNI_BIN_DIR=${CNI_BIN_DIR:-}
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

case $NAMESPACE in
*[!-a-z0-9]* | -* | *-) fail "NAMESPACE=$NAMESPACE is no name of a namespace" ;;
kube-system) [ "$OVERLAY" != openshift ] || fail "NAMESPACE=kube-system: OpenShift's security context constraints do not count there; without NAMESPACE it is crd-ipam" ;;
esac

case $CNI_BIN_DIR in
"") ;;
*[!-_./a-zA-Z0-9]* | [!/]* | */../* | */..) fail "CNI_BIN_DIR=$CNI_BIN_DIR has to be an absolute path on the nodes, of letters, digits and -_./" ;;
esac

to=$OUT/manifests
overlays=$(realpath -m --relative-to="$to" manifests/overlays)

# of NAME: the overlay NAME, or the one of the name that goes with OVERLAY.
of() {
	if [ -d "manifests/overlays/$1-$OVERLAY" ]; then echo "$overlays/$1-$OVERLAY"; else echo "$overlays/$1"; fi
}

# Its namespace is network-operator's, and one line in the overlay.
[ "$OVERLAY" != network-operator ] || NAMESPACE=

rm -rf "$to"
mkdir -p "$to/crds" "$to/uninstall" "$to/migrate-dry-run" "$to/migrate-only"
kustomization() { # DIR RESOURCE; the rest on stdin
	printf '# Written by make manifests.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- %s\n' "$2" >"$1/kustomization.yaml"
	[ -z "$NAMESPACE" ] || echo "namespace: $NAMESPACE" >>"$1/kustomization.yaml"
	cat >>"$1/kustomization.yaml"
}
parts() { # DIR OVERLAY
	kustomization "$1" "$2" <<EOF
images:
- name: crd-ipam.invalid/crd-ipam
  newName: $name
  digest: $digest
$([ -z "$CNI_BIN_DIR" ] || bin_dir)
EOF
}
# bin_dir: the patch for the directory of CNI plugins. The installer has the host's own path,
# because it runs the plugin in the host's root directory.
bin_dir() {
	local spec=/spec/template/spec
	cat <<EOF
patches:
- target:
    kind: DaemonSet
  patch: |-
    - {op: replace, path: $spec/containers/0/args/2, value: --cni-bin-dir=$CNI_BIN_DIR}
    - {op: test, path: $spec/containers/0/volumeMounts/0/name, value: cnibin}
    - {op: replace, path: $spec/containers/0/volumeMounts/0/mountPath, value: $CNI_BIN_DIR}
    - {op: test, path: $spec/volumes/0/name, value: cnibin}
    - {op: replace, path: $spec/volumes/0/hostPath/path, value: $CNI_BIN_DIR}
EOF
}
parts "$to" "$overlays/$OVERLAY"
for once in uninstall migrate-dry-run migrate-only; do parts "$to/$once" "../$(of $once)"; done
kustomization "$to/crds" "../$(of crds)" </dev/null
case $OVERLAY/$NAMESPACE in
openshift/* | */ | */kube-system) ;; # the overlay has its namespace, or the cluster has
*) printf 'components:\n- ../%s/components/namespace\n' "$(dirname "$overlays")" >>"$to/crds/kustomization.yaml" ;;
esac
echo "manifests: wrote $to for $name@$digest: kubectl apply -k $to/crds, then kubectl apply -k $to" >&2
