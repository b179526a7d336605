// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// nvIpam is nv-ipam on the nodes, as far as a migration sees it: its plugin, which is a
// stand-in (./nvipam), its configuration and its store. Its controller is this project's:
// both carve the same blocks.
type nvIpam struct{ plugin string }

// newNvIpam gives each node an empty store of nv-ipam with the node's block of a pool.
func newNvIpam(t *testing.T, pool string) *nvIpam {
	t.Helper()
	n := &nvIpam{filepath.Join(t.TempDir(), "nv-ipam")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", n.plugin, "./nvipam")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var obj v1alpha1.IPPool
	if err := json.Unmarshal([]byte(kubectl(t, "get", "-n", poolsNamespace, "ippool", pool, "-o", "json")), &obj); err != nil {
		t.Fatal(err)
	}
	for _, block := range obj.Status.Allocations {
		config := fmt.Sprintf(`{"subnet":%q,"startIP":%q,"endIP":%q,"gateway":%q,"exclusions":[],"routes":[],"defaultGateway":false}`,
			obj.Spec.Subnet, block.StartIP, block.EndIP, obj.Spec.Gateway)
		store, err := json.Marshal(map[string]any{"version": 1, "checksum": 0, "pools": map[string]any{
			pool: map[string]any{"name": pool, "entries": map[string]any{}, "last_pool_config": config, "last_reserved_ip": ""},
		}})
		if err != nil {
			t.Fatal(err)
		}
		dir := c.Node(block.NodeName).Disk("/var/lib/cni/nv-ipam")
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "store"), store, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // nobody is to migrate what is over
		for _, node := range c.Nodes {
			left, err := filepath.Glob(node.Disk("/var/lib/cni/nv-ipam/store*"))
			for _, file := range left {
				err = errors.Join(err, os.Remove(file))
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

// start does what nv-ipam's DaemonSet does on each node.
func (n *nvIpam) start(t *testing.T) {
	t.Helper()
	plugin, err := os.ReadFile(n.plugin)
	if err != nil {
		t.Fatal(err)
	}
	const conf = `{"cniVersion": "0.4.0", "type": "nv-ipam", "daemonSocket": "unix:///var/lib/cni/nv-ipam/daemon.sock", "logFile": "/var/log/nv-ipam-cni.log"}`
	for _, node := range c.Nodes {
		bin, dir := node.Disk("/opt/cni/bin/nv-ipam"), node.Disk("/etc/cni/net.d/nv-ipam.d")
		if err := errors.Join(os.WriteFile(bin+".new", plugin, 0o755), os.Rename(bin+".new", bin),
			os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "nv-ipam.conf"), []byte(conf), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// byNvIpam is the state in which nv-ipam serves; nobody enters it by itself.
var byNvIpam = state{"nv-ipam", nil, ownFiles, true}

// From nv-ipam to this project, back, and forward again, by the steps of
// docs/migration.md, under pods that run: they keep their addresses, new pods start, and
// nothing of what served before is on a node.
func TestMigration(t *testing.T) {
	needsOwnCluster(t, "it writes nv-ipam's store on the nodes' disks")
	s := newScene(t)
	s.pool("migrated", "10.31.0.0/16", "10.31.0.1")
	s.network("migrated", `"poolName": "migrated"`)
	defer reinstall(t)
	uninstall(t)
	theirs := newNvIpam(t, "migrated")
	theirs.start(t)
	w := &walk{scene: s, network: "migrated", has: map[string]string{}}
	for i, node := range c.Nodes {
		w.start(fmt.Sprintf("of-nv-ipam-%d", i), node.Name)
	}
	s.pod("static", "kind-worker2", `[{"name": "migrated", "ips": ["10.31.0.5"]}]`)
	w.running("static")
	w.at = byNvIpam.name
	if held := s.held(); len(held) > 0 {
		t.Fatalf("under nv-ipam %v are allocated", held)
	}

	w.forward(t)
	// A pod that nv-ipam started ends, one starts: as if nothing had been.
	w.end("of-nv-ipam-0")
	w.start("of-crd-ipam", "kind-worker")
	w.haveAndHold(w.has)
	if t.Failed() {
		t.Fatal("after the migration")
	}
	w.back(t, theirs)
	w.forwardAgain(t)
}

// forward is "Step by step" of docs/migration.md, from step 2 on.
func (w *walk) forward(t *testing.T) {
	t.Helper()
	defer phase(t.Name() + " forward")()
	kubectl(t, "apply", "-k", "../../manifests/overlays/crds")
	apply(t, kubectl(t, "kustomize", "testdata/install"), "-l", "!component") // 2
	w.once(t, "migrate-dry-run", func(log string) {                           // 3
		for pod, address := range w.has {
			if !strings.Contains(log, address+" ") || !strings.Contains(log, w.name+"/"+pod+" ") {
				t.Errorf("the plan does not have %s of %s:\n%s", address, pod, log)
			}
		}
	})
	if held := w.held(); len(held) > 0 {
		t.Errorf("after the dry run %v are allocated", held)
	}
	w.once(t, "migrate-only", func(string) {}) // 4
	w.onNodes(byNvIpam)
	w.haveAndHold(w.has)
	w.start("meanwhile", "kind-worker")           // nv-ipam serves
	kubectl(t, "apply", "-k", "testdata/install") // 5, 6
	if err := installed(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.onNodes(byDefault)
	w.haveAndHold(w.has)
	log := kubectl(t, "logs", "-n", poolsNamespace, "-l", "component=nv-ipam-node", "--tail=-1") // 7
	if n := strings.Count(log, "migration: "); n != len(c.Nodes) || !strings.Contains(log, " 0 conflicts") {
		t.Errorf("%d nodes say that they have migrated:\n%s", n, log)
	}
	if t.Failed() {
		t.Fatal("after the way forward")
	}
}

// once runs a DaemonSet of the migration on every node, and hands over what it logs.
func (w *walk) once(t *testing.T, overlay string, check func(log string)) {
	t.Helper()
	kubectl(t, "apply", "-k", "testdata/"+overlay)
	kubectl(t, "rollout", "status", "-n", poolsNamespace, "--timeout=3m", "daemonset/crd-ipam-migration")
	check(kubectl(t, "logs", "-n", poolsNamespace, "-l", "name=crd-ipam-migration", "--tail=-1"))
	kubectl(t, "delete", "-n", poolsNamespace, "daemonset", "crd-ipam-migration", "--cascade=foreground", "--timeout=3m")
}

// end deletes a pod.
func (w *walk) end(pod string) {
	w.t.Helper()
	kubectl(w.t, "delete", "pod", "-n", w.name, pod, "--timeout=3m")
	delete(w.has, pod)
}

// back is "Rollback" of docs/migration.md.
func (w *walk) back(t *testing.T, theirs *nvIpam) {
	t.Helper()
	defer phase(t.Name() + " back")()
	before := maps.Clone(w.has)
	kubectl(t, "apply", "-k", "testdata/uninstall") // 1
	kubectl(t, "rollout", "status", "-n", poolsNamespace, "--timeout=3m", "daemonset/nv-ipam-node")
	kubectl(t, "delete", "-n", poolsNamespace, "daemonset", "nv-ipam-node", "--cascade=foreground", "--timeout=3m")
	w.onNodes(uninstalled)
	theirs.start(t) // 2
	// Pods that started under this project are to be restarted: nv-ipam does not know them.
	var ours []string
	for _, a := range allocations(t, w.name) {
		if a.Spec.NetworkName != "" {
			ours = append(ours, a.Spec.PodRef.Name)
		}
	}
	if !slices.Equal(ours, []string{"of-crd-ipam"}) {
		t.Errorf("pods to restart: %v", ours)
	}
	for _, pod := range ours {
		w.end(pod)
		w.start(pod, "kind-worker")
	}
	kubectl(t, "scale", "-n", poolsNamespace, "deployment/nv-ipam-controller", "--replicas=0") // 3
	w.onNodes(byNvIpam)
	w.end("of-nv-ipam-1")
	w.start("back", "kind-worker2")
	for pod, address := range before {
		if slices.Contains(ours, pod) || pod == "of-nv-ipam-1" {
			continue
		}
		if w.has[pod] != address {
			t.Errorf("%s has %s, and had %s", pod, w.has[pod], address)
		}
	}
	w.have(w.has)
	w.apart()
	if t.Failed() {
		t.Fatal("after the rollback")
	}
}

// forwardAgain is "Forward again" there.
func (w *walk) forwardAgain(t *testing.T) {
	t.Helper()
	defer phase(t.Name() + " forward again")()
	kubectl(t, "delete", "-n", poolsNamespace, "ipallocations", "--all")
	kubectl(t, "apply", "-k", "testdata/install")
	if err := installed(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.onNodes(byDefault)
	w.haveAndHold(w.has)
	for i, node := range c.Nodes {
		w.start(fmt.Sprintf("again-%d", i), node.Name)
	}
	w.haveAndHold(w.has)
	w.apart()
	w.believed()
}

// believed checks that the nodes take nobody for the holder of an address whose end nv-ipam
// has seen: it would be written again when the pool goes.
func (w *walk) believed() {
	w.t.Helper()
	var claims []string
	for _, node := range c.Nodes {
		all, err := filepath.Glob(node.Disk("/var/lib/cni/nv-ipam/*@*/claims/" + w.network + ".10.*"))
		if err != nil {
			w.t.Fatal(err)
		}
		claims = append(claims, all...)
	}
	if len(claims) != len(w.has) {
		w.t.Errorf("the nodes believe in %v, and the pods have %v", claims, w.has)
	}
}

// apart checks that no two pods have one address.
func (w *walk) apart() {
	w.t.Helper()
	by := map[string]string{}
	for pod, address := range w.has {
		if other, taken := by[address]; taken {
			w.t.Errorf("%s and %s have %s", pod, other, address)
		}
		by[address] = pod
	}
}
