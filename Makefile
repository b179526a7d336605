# Each target builds what it needs. The real components (etcd, kube-apiserver) are
# built from source once, which takes some minutes, and kept in the user's cache
# directory: see hack/parts.sh.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# KUBE is the version of the API server that tests and the demo run against.
KUBE ?= 1.37.2
# KUBE_OLDEST is the oldest supported version, and API_TESTS are the tests that must
# pass on both.
KUBE_OLDEST ?= 1.30.14
API_TESTS ?= ./internal/testenv/... ./attack/... ./claim/... ./controller/... ./crd/... ./identity/... ./inspect/... ./manifests/...
# TEST is how much is tested: -short takes a sample of what is enumerated (kills,
# random histories, many nodes) and does not build images; TEST=-race takes all of it,
# with the race detector.
TEST ?= -short
# TESTFLAGS are passed to every go test: make test TESTFLAGS='-run Race -v'
TESTFLAGS ?=
FUZZTIME ?= 30s
SOAK ?= 10m
# BENCHFLAGS are the flags of tests/perf; -write needs all phases.
BENCHFLAGS ?= -write
# CHAOS are the arguments of make chaos: how many attachments at once, how often; -shared
# for a pool without blocks, -kept for one in which addresses rest and are kept. make test
# runs the same, with fewer of them.
CHAOS ?= -attachments 1000 -rounds 3
# IMAGE is the image's name. By default it is the manifests' placeholder, which no
# registry serves: see manifests/base/kustomization.yaml.
IMAGE ?= crd-ipam.invalid/crd-ipam:dev
# OVERLAY is the directory of manifests/overlays that make manifests uses.
OVERLAY ?= default
# NAMESPACE is where that installs, and where the pools are. Nothing stands for the
# overlay's own: kube-system, except for openshift and network-operator.
NAMESPACE ?=
# CNI_BIN_DIR is where the nodes have their CNI plugins. Nothing stands for the overlay's:
# /opt/cni/bin, except for openshift.
CNI_BIN_DIR ?=
# IMAGE_USER is the user of a container whose manifest names none.
IMAGE_USER ?= 65532:65532
# URL is where the files of a release are: see docs/release.md.
URL ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

export KUBE
export GOWORK := off

# In the same shell as the tests, so that a failed build is a failed target.
with_parts = KUBEBUILDER_ASSETS=$$(hack/parts.sh assets); CNI_PLUGINS=$$(hack/parts.sh cni); export KUBEBUILDER_ASSETS CNI_PLUGINS; \
	echo "API server: $$KUBEBUILDER_ASSETS/kube-apiserver"; cd tests;

# What the tests run beside that.
with_tests = PROMETHEUS=$$(hack/parts.sh prometheus); PROMETHEUS_OPERATOR=$$(hack/parts.sh prometheus-operator); \
	WHEREABOUTS=$$(hack/parts.sh whereabouts); KREW=$$(hack/parts.sh krew); CHROMIUM=$$(hack/parts.sh chromium); \
	export PROMETHEUS PROMETHEUS_OPERATOR WHEREABOUTS KREW CHROMIUM; $(with_parts)

# What a cluster is made of: see docs/cluster.md.
CLUSTER_PARTS := etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet cni containerd multus network-operator pause debian
with_cluster = CLUSTER_PATH=$$(hack/parts.sh $(CLUSTER_PARTS) | sort -u | paste -sd:); export CLUSTER_PATH; cd tests;

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.* ## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: build
build: ## Build the commands into bin/
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/ ./cmd/...

.PHONY: image
image: ## Build the container image for amd64 and arm64 into bin/image.tar, without Docker, and print its digest
	@VERSION='$(VERSION)' IMAGE='$(IMAGE)' IMAGE_USER='$(IMAGE_USER)' hack/image.sh

.PHONY: manifests
manifests: ## Write bin/manifests, which installs OVERLAY in NAMESPACE with IMAGE, pinned by its digest, and bin/manifests/crds
	@IMAGE='$(IMAGE)' OVERLAY='$(OVERLAY)' NAMESPACE='$(NAMESPACE)' CNI_BIN_DIR='$(CNI_BIN_DIR)' hack/manifests.sh

.PHONY: release
release: IMAGE :=
release: ## Write dist/, what a user downloads of VERSION, reproducibly; IMAGE and URL are where you put it: docs/release.md
	@VERSION='$(VERSION)' IMAGE='$(IMAGE)' URL='$(URL)' hack/release.sh

.PHONY: test-release
test-release: build ## Make the release twice, compare the two, and try what is in it
	@KREW=$$(hack/parts.sh krew); export KREW; $(with_parts) set -x; go test -count=1 -timeout 20m $(TESTFLAGS) ./release

.PHONY: test
test: build ## Run tests of all packages against the newest API server, in a few minutes; TEST=-race for all of each
	go test $(TEST) $(TESTFLAGS) ./...
	@$(with_tests) set -x; go test $(TEST) -count=1 -timeout 30m $(TESTFLAGS) ./...

# What runs the code in the process of the test; the others start commands.
RACE_TESTS ?= ./chaos/... ./claim/... ./controller/... ./loss/...

.PHONY: race
race: build ## Run the tests with the race detector that it can see anything in; RACE_TESTS chooses packages
	go test -race $(TESTFLAGS) ./...
	@$(with_parts) set -x; go test -race $(filter -short,$(TEST)) -count=1 -timeout 20m $(TESTFLAGS) $(RACE_TESTS)

.PHONY: test-oldest
test-oldest: KUBE := $(KUBE_OLDEST)
test-oldest: build ## Run the tests of the API's behaviour against the oldest supported server; TEST as above
	@$(with_parts) set -x; go test $(TEST) -count=1 -timeout 30m $(TESTFLAGS) $(API_TESTS)

.PHONY: test-all
test-all: ## Run all tests with the race detector, both servers, and make crash: over an hour
	@$(MAKE) test TEST=-race
	@$(MAKE) test-oldest TEST=-race
	@$(MAKE) crash

.PHONY: crash
crash: build ## Kill the plugin at every step and play every sequel to each, which takes 40 minutes; CRASH='power loss' for that one
	@$(with_parts) set -x; CRASH="$${CRASH:-all}" go test ./crash -count=1 -v -timeout 2h $(TESTFLAGS)

.PHONY: fuzz
fuzz: ## Fuzz the input of the plugin, FUZZTIME (30s) for each target
	go test -run '^$$' -fuzz FuzzConfiguration -fuzztime $(FUZZTIME) ./pkg/cni
	go test -run '^$$' -fuzz FuzzCNIArgs -fuzztime $(FUZZTIME) ./pkg/cni
	go test -run '^$$' -fuzz FuzzNameIsInjective -fuzztime $(FUZZTIME) ./apis/nvipam/v1alpha1

.PHONY: chaos
chaos: build ## Run 1,000 attachments while API server, controllers and plugins are killed; CHAOS='-attachments 1000 -rounds 3 -seed N'
	@$(with_parts) set -x; go test ./chaos -run TestChaos -count=1 -v -timeout 30m $(TESTFLAGS) -args $(CHAOS)

.PHONY: versions
versions: build ## Change versions in random order under load: plugins, controllers, CRDs and policies of this one and of the one before
	@$(with_parts) set -x; go test ./chaos -run TestVersions -count=1 -v -timeout 20m $(TESTFLAGS)

.PHONY: soak
soak: build ## Check random histories of claims for SOAK (10m), new ones each time
	@$(with_parts) set -x; go test ./claim -run 'Histories$$|TestLinearizable' -count=1 -v -timeout 24h $(TESTFLAGS) -args -soak $(SOAK)

.PHONY: demo
demo: root build ## Walk through what it does, on a real API server on this machine (as root)
	@$(with_parts) go build -o ../bin/demo ./demo; exec ../bin/demo

.PHONY: cluster
cluster: root ## Start a Kubernetes cluster of three nodes on this machine (as root); KUBE=1.30.14 for that version
	@$(with_cluster) go build -o ../bin/cluster ./cluster; exec ../bin/cluster up

.PHONY: cluster-down
cluster-down: root ## Stop that cluster and remove it
	@cd tests; go build -o ../bin/cluster ./cluster; exec ../bin/cluster down

# The name that tests/e2e/testdata has, and docs/install.md.
e2e e2e-oldest e2e-matrix: IMAGE := registry.example.com/crd-ipam:v1

# On a cluster of the user's: with neither root's rights nor the parts of one.
e2e: CLUSTER_PARTS := $(if $(KUBECONFIG),kubectl,$(CLUSTER_PARTS))

.PHONY: e2e
e2e: $(if $(KUBECONFIG),,root) build image ## Run pods on that cluster (as root), or on that of KUBECONFIG, with this project installed by its manifests and image
	@$(with_cluster) set -x; go test ./e2e -count=1 -v -timeout 75m $(TESTFLAGS)

.PHONY: e2e-oldest
e2e-oldest: KUBE := $(KUBE_OLDEST)
e2e-oldest: root image ## Run the walkthrough of the e2e tests on the oldest supported version
	@$(with_cluster) set -x; unset KUBECONFIG; E2E_WALKTHROUGH_ONLY=1 go test ./e2e -run TestWalkthrough -count=1 -v -timeout 20m $(TESTFLAGS)

# MATRIX are the flags of tests/matrix: -slice N for one cell, -write for the table in
# docs/compatibility-matrix.md.
MATRIX ?= -write

.PHONY: e2e-matrix
e2e-matrix: root image ## Run a selection of the e2e tests on each kind of cluster in the matrix, and write docs/compatibility-matrix.md; MATRIX='-slice 3' for one cell
	@cd tests; go build -o ../bin/ ./matrix; unset KUBECONFIG; exec ../bin/matrix $(MATRIX)

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) creates namespaces and must run as root: sudo env PATH=\$$PATH make $(MAKECMDGOALS)" >&2; exit 1; }

.PHONY: bench
bench: build ## Measure what addresses cost, in 15 to 30 minutes, and write docs/benchmarks.md (BENCHFLAGS chooses phases)
	@$(with_parts) CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o ../bin/bench/ ./perf/...; exec ../bin/bench/perf $(BENCHFLAGS)

.PHONY: generate
generate: ## Generate clients, deep copies and CRDs from apis/
	hack/generate.sh

.PHONY: verify
verify: ## Check generated files, modules, format and imports
	hack/verify.sh

.PHONY: lint
lint: ## Run go vet, golangci-lint, a syntax check of the scripts and a search for names that nobody needs exported
	for f in $$(git ls-files '*.sh' .ci/run); do bash -n "$$f"; done
	go vet ./...
	cd tests && go vet ./...
	@lint=$$(hack/parts.sh golangci-lint)/golangci-lint; set -x; ok=true; \
	"$$lint" run ./... || ok=false; (cd tests; "$$lint" run ./...) || ok=false; \
	(cd hack/tools; go build -o ../../bin/ ./check-exports); bin/check-exports . tests || ok=false; $$ok

.PHONY: vulncheck
vulncheck: ## Check what ships against Go's vulnerability database (GOVULNDB); fails if it cannot, unless hack/vulncheck-waiver waives that
	hack/vulncheck.sh

.PHONY: clean
clean: ## Remove bin/ and dist/; the real components stay in the cache
	rm -rf bin dist
