#!/usr/bin/env bash
# Builds the real components that tests and the demo run, from the pinned tool
# modules below hack/, once for every version, into the user's cache directory.
#
# Usage: [KUBE=1.37.2] hack/parts.sh [-n] PART...
# With -n it builds nothing, and fails if a part has not been built.
#   assets          a directory with etcd, kube-apiserver and kubectl, as envtest
#                   needs it; if KUBEBUILDER_ASSETS is set, that directory is used
#                   and nothing is built
#   etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl,
#   kubelet         one of those
#   cni             the CNI plugins
#   containerd      containerd, its shim and ctr
#   containerd-debian   the same of Debian's package, unpacked, not installed
#   multus          multus, the thin plugin
#   multus-thick    multus' daemon, its shim, what installs that, and the manifest
#   network-operator    its controllers of networks, with their manifests
#   prometheus      prometheus, without its web pages, and promtool
#   prometheus-operator    its CRDs, nothing else
#   krew            kubectl's plugin manager
#   whereabouts     whereabouts' plugin and node slice controller, with its CRDs
#   pause           the sandbox container's program; needs gcc
#   debian          runc, bash-static and busybox-static, unpacked, not installed;
#                   needs apt-get and dpkg-deb
#   chromium        Debian's chromium and two fonts, with the libraries that this machine
#                   lacks, unpacked, not installed; needs apt-get and dpkg-deb
#   golangci-lint   the linter
# Prints the directory of each PART on stdout, and nothing else; progress goes to
# stderr.
set -euo pipefail

KUBE=${KUBE:-1.37.2}
hack=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/crd-ipam
export CGO_ENABLED=0 GOWORK=off

say() { echo "parts: $*" >&2; }

# version MODULE-DIR MODULE: the version that the module's go.mod pins.
version() {
	awk -v m="$2" '{sub("^require ", "")} $1 == m {print $2; found = 1; exit} END {exit !found}' "$1/go.mod" ||
		{ say "$1/go.mod does not require $2"; return 1; }
}

# describe PART sets how the part is built:
#   module   the tool module that pins it
#   dir      where its binaries go; the version is in the name, so that another
#            version is another directory
#   packages what go builds, and binaries, the names of the results
#   flags    more arguments of go build
#   make     a function that builds it, if go build of the packages is not enough
describe() {
	flags=(-trimpath -ldflags "-s -w")
	make=go_build
	case $1 in
	etcd)
		module=$hack/parts/etcd
		dir=$cache/etcd-$(version "$module" go.etcd.io/etcd/server/v3)
		packages=(go.etcd.io/etcd/server/v3)
		;;
	kube-apiserver | kube-controller-manager | kube-scheduler | kubectl | kubelet)
		module=$hack/parts/kube-$KUBE
		[ -d "$module" ] || { say "KUBE=$KUBE: there is no $module"; return 1; }
		local v
		v=$(version "$module" k8s.io/kubernetes)
		dir=$cache/kube-$v
		packages=("k8s.io/kubernetes/cmd/$1")
		flags=(-trimpath -ldflags "-s -w $(kube_version k8s.io/component-base/version "$v") $(kube_version k8s.io/client-go/pkg/version "$v")")
		;;
	cni)
		module=$hack/parts/cni
		dir=$cache/cni-$(version "$module" github.com/containernetworking/plugins)
		mapfile -t packages < <(awk '/^\)/ {on = 0} on {print $1} /^tool \(/ {on = 1}' "$module/go.mod")
		;;
	containerd)
		module=$hack/parts/containerd
		dir=$cache/containerd-$(version "$module" github.com/containerd/containerd/v2)
		packages=(github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr})
		flags+=(-tags no_btrfs,no_devmapper,no_zfs)
		;;
	multus)
		module=$hack/parts/multus
		dir=$cache/multus-$(version "$module" gopkg.in/k8snetworkplumbingwg/multus-cni.v4)
		packages=(gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus)
		;;
	multus-thick)
		module=$hack/parts/multus
		dir=$cache/multus-thick-$(version "$module" gopkg.in/k8snetworkplumbingwg/multus-cni.v4)
		packages=(gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/{multus-daemon,multus-shim,install_multus,passthru-cni})
		make=multus_thick
		;;
	network-operator)
		module=$hack/parts/network-operator
		dir=$cache/network-operator-$(version "$module" github.com/Mellanox/network-operator)-$(cksum <"$module/main.go" | cut -d' ' -f1)
		packages=(github.com/crd-ipam/crd-ipam/hack/parts/network-operator)
		make=network_operator
		;;
	prometheus)
		module=$hack/parts/prometheus
		dir=$cache/prometheus-$(version "$module" github.com/prometheus/prometheus)
		packages=(github.com/prometheus/prometheus/cmd/{prometheus,promtool})
		# Without the discovery of any cloud: there is less to compile.
		flags+=(-tags remove_all_sd)
		;;
	prometheus-operator)
		module=$hack/parts/prometheus-operator
		dir=$cache/prometheus-operator-$(version "$module" github.com/prometheus-operator/prometheus-operator)
		packages=(crds)
		make=prometheus_operator
		;;
	krew)
		module=$hack/parts/krew
		dir=$cache/krew-$(version "$module" sigs.k8s.io/krew)
		packages=(sigs.k8s.io/krew/cmd/krew)
		;;
	whereabouts)
		module=$hack/parts/whereabouts
		dir=$cache/whereabouts-$(version "$module" github.com/k8snetworkplumbingwg/whereabouts)
		packages=(github.com/k8snetworkplumbingwg/whereabouts/cmd{,/nodeslicecontroller})
		make=whereabouts
		;;
	pause)
		module=$hack/parts/kube-$KUBE
		dir=$cache/pause-$(version "$module" k8s.io/kubernetes)
		packages=(pause)
		make=pause
		;;
	debian)
		# From the Debian release of this machine.
		dir=$cache/debian-$(. /etc/os-release && echo "$VERSION_ID")
		packages=(runc bash-static busybox)
		make=debian
		;;
	containerd-debian)
		dir=$cache/containerd-debian-$(. /etc/os-release && echo "$VERSION_ID")
		packages=(containerd containerd-shim-runc-v2 ctr)
		make=containerd_debian
		;;
	chromium)
		dir=$cache/chromium-debian-$(. /etc/os-release && echo "$VERSION_ID")
		packages=(browser)
		make=chromium
		;;
	golangci-lint)
		module=$hack/lint
		dir=$cache/golangci-lint-$(version "$module" github.com/golangci/golangci-lint/v2)
		packages=(github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
		;;
	*)
		say "unknown part: $1"
		return 1
		;;
	esac
	binaries=("${packages[@]##*/}")
	# The names of these packages do not say what they are.
	case $1 in
	etcd | whereabouts) binaries[0]=$1 ;;
	multus-thick) binaries[3]=passthru ;;
	esac
}

# kube_version PACKAGE VERSION: linker flags that set the version. Without them an API
# server reports v0.0.0 and does not become ready.
kube_version() {
	local major minor
	IFS=. read -r major minor _ <<<"${2#v}"
	echo "-X $1.gitVersion=$2 -X $1.gitMajor=$major -X $1.gitMinor=$minor"
}

built() {
	local b
	for b in "${binaries[@]}"; do [ -x "$dir/$b" ] || return 1; done
}

# build PART makes sure that the part is in its directory.
build() {
	describe "$1"
	if built; then return; fi
	if $dry; then say "$1 (${dir##*/}) has not been built"; return 1; fi
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock -n 9 || { say "waiting for another build to finish"; flock 9; }
	if ! built; then # by that other one
		local start=$SECONDS
		say "building $1 (${dir##*/}); the first time this takes from seconds to some minutes"
		rm -rf "$cache"/.build.* # of one that was killed
		tmp=$(mktemp -d "$cache/.build.XXXXXX")
		heartbeat "$1" 9>&- &
		beat=$!
		trap 'kill "$beat" 2>/dev/null || true; rm -rf "$tmp"' EXIT
		"$make" "$tmp" 9>&-
		# A rename is atomic, so the directory never has half a file.
		mkdir -p "$dir"
		mv "$tmp"/* "$dir"
		kill "$beat" 2>/dev/null || true
		wait "$beat" 2>/dev/null || true
		rm -rf "$tmp"
		trap - EXIT
		say "built $1 in $((SECONDS - start)) s"
	fi
	exec 9>&-
}

# go_build TO builds the packages into the directory TO.
go_build() {
	local i
	for i in "${!packages[@]}"; do
		(cd "$module" && go build "${flags[@]}" -o "$1/${binaries[$i]}" "${packages[$i]}")
	done
}

# source_of MODULE: the directory of a module's source.
source_of() {
	(cd "$module" && go mod download "$1" && go list -m -f '{{.Dir}}' "$1")
}

# network_operator TO: the program, with its templates and the CRDs.
network_operator() {
	go_build "$1"
	local source
	source=$(source_of github.com/Mellanox/network-operator)
	cp -r --no-preserve=mode "$source/manifests" "$source/deployment/network-operator/crds" "$1"
}

# multus_thick TO: the programs, with the manifest that runs them.
multus_thick() {
	go_build "$1"
	local source
	source=$(source_of gopkg.in/k8snetworkplumbingwg/multus-cni.v4)
	cp --no-preserve=mode "$source/deployments/multus-daemonset-thick.yml" "$1"
}

# prometheus_operator TO: the CRDs.
prometheus_operator() {
	local source
	source=$(source_of github.com/prometheus-operator/prometheus-operator)
	cp -r --no-preserve=mode "$source/example/prometheus-operator-crd" "$1/crds"
}

# whereabouts TO: the programs, with the CRDs.
whereabouts() {
	go_build "$1"
	local source
	source=$(source_of github.com/k8snetworkplumbingwg/whereabouts)
	mkdir "$1/crds"
	cp --no-preserve=mode "$source"/doc/crds/whereabouts.cni.cncf.io_*.yaml "$1/crds"
}

pause() {
	local source
	source=$(source_of k8s.io/kubernetes)
	gcc -Os -Wall -static -DVERSION="${dir##*-}" -o "$1/pause" "$source/build/pause/linux/pause.c"
}

# debian TO: programs that are not Go modules, from Debian's packages.
debian() { programs "$1" runc bash-static busybox-static; }

containerd_debian() { programs "$1" containerd; }

# programs TO PACKAGE...: what is wanted of the programs in Debian's packages.
programs() {
	local b
	unpack "$@"
	for b in "${packages[@]}"; do find "$1/root" -type f -path "*bin/$b" -exec mv {} "$1" \;; done
	rm -r "$1/root"
}

# unpack TO PACKAGE...: the files of Debian's packages, in TO/root.
unpack() {
	local deb
	(
		cd "$1"
		apt-get download "${@:2}" >&2 || { # no lists of packages yet, or old ones
			apt-get update >&2
			apt-get download "${@:2}" >&2
		}
		for deb in *.deb; do dpkg-deb -x "$deb" root; done
		rm ./*.deb
	)
}

# chromium TO: the browser as TO/root, and TO/browser, which starts it. Its libraries are
# those that an installation would add here. It sees no fonts of the machine's, on which
# pictures would depend.
chromium() {
	local wanted=(chromium chromium-common fonts-dejavu-core fonts-inter) missing
	missing=$(added "${wanted[@]}") || { # no lists of packages yet
		apt-get update >&2
		missing=$(added "${wanted[@]}")
	}
	mapfile -t missing <<<"$missing"
	unpack "$1" "${wanted[@]}" $(comm -13 <(printf '%s\n' "${wanted[@]}" | sort) <(printf '%s\n' "${missing[@]}" | sort))
	cat >"$1/root/fonts.conf" <<-END
		<?xml version="1.0"?>
		<fontconfig><dir prefix="relative">usr/share/fonts</dir><cachedir prefix="xdg">crd-ipam/fontconfig</cachedir>
		<alias binding="strong"><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
		<alias binding="strong"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
		<alias binding="strong"><family>system-ui</family><prefer><family>Inter</family></prefer></alias></fontconfig>
	END
	cat >"$1/browser" <<-'END'
		#!/bin/sh
		root=$(dirname "$(readlink -f "$0")")/root
		lib=$root/usr/lib/$(uname -m)-linux-gnu
		LD_LIBRARY_PATH=$lib:$lib/pulseaudio FONTCONFIG_FILE=$root/fonts.conf exec "$root/usr/lib/chromium/chromium" "$@"
	END
	chmod +x "$1/browser"
}

# added PACKAGE...: what an installation of the packages would add, one a line.
added() {
	apt-get --simulate --no-install-recommends install "$@" | awk '/^Inst / {print $2}'
}

# heartbeat PART says every 30 s that PART is still being built. It ends with this script,
# however that ends.
heartbeat() {
	local n=0
	while sleep 1 && kill -0 $$ 2>/dev/null; do
		n=$((n + 1))
		[ $((n % 30)) -ne 0 ] || say "still building $1 after $n s"
	done
}

# assets makes the directory for envtest: links to the directories of the parts, so that
# two versions of kube share one etcd.
assets() {
	if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
		dir=$KUBEBUILDER_ASSETS
		return
	fi
	local p links=$cache/assets-$KUBE
	mkdir -p "$links"
	for p in etcd kube-apiserver kubectl; do
		build "$p"
		ln -sfn "$dir/$p" "$links/$p.$$"
		mv -T "$links/$p.$$" "$links/$p"
	done
	dir=$links
}

dry=false
if [ "${1-}" = -n ]; then
	dry=true
	shift
fi
[ $# -gt 0 ] || { sed -n '2,/^set /{/^#/p}' "$0" >&2; exit 2; }
for part in "$@"; do
	if [ "$part" = assets ]; then assets; else build "$part"; fi
	echo "$dir"
done
