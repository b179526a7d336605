// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// state is one in which an operator may find or leave the nodes.
type state struct {
	name string
	// enter goes there from any other state.
	enter func(t *testing.T)
	// files that are in the plugin's configuration directory of every node then.
	files []string
	// pods can get addresses.
	serves bool
}

var (
	ownFiles   = []string{"nv-ipam.conf"}
	tokenFiles = []string{"nv-ipam.conf", "nv-ipam.kubeconfig", "nv-ipam.token"}

	byDefault        = state{"default", applied("testdata/install"), ownFiles, true}
	byOldest         = state{"k8s-1.30", applied("testdata/install-1.30"), ownFiles, true}
	byServiceAccount = state{"serviceaccount", applied("testdata/install-serviceaccount"), tokenFiles, true}
	byOperator       = state{"network-operator", operatorInstalls, ownFiles, true}
	uninstalled      = state{"uninstalled", uninstall, nil, false}
)

// Each way from one installed state to another, with live pods: those that run keep
// their addresses, new ones start, nothing of an earlier state is on a node, and the
// allocations are what the pods' interfaces have.
func TestTransitions(t *testing.T) {
	s := newScene(t)
	s.pool("switch", "10.30.0.0/16", "10.30.0.1")
	s.network("switch", `"poolName": "switch"`)
	defer reinstall(t)
	w := &walk{scene: s, network: "switch", has: map[string]string{}, at: "installed by TestMain"}
	s.pod("static", "kind-worker2", `[{"name": "switch", "ips": ["10.30.0.5"]}]`)
	w.running("static")
	w.through(byServiceAccount, byDefault, uninstalled, byDefault, byOperator, byServiceAccount, uninstalled, byOldest, byDefault)
}

// walk goes from one installed state to another under the pods of a scene.
type walk struct {
	*scene

	network string
	has     map[string]string // address by pod, of those that run
	at      string            // the state's name
	steps   int
}

// through enters one state after the other, and starts a pod in each that serves.
func (w *walk) through(states ...state) {
	w.t.Helper()
	for _, to := range states {
		w.steps++
		name := fmt.Sprintf("%d: %s to %s", w.steps, w.at, to.name)
		done := phase(w.t.Name() + " " + name)
		to.enter(w.t)
		w.onNodes(to)
		if to.serves {
			w.start(fmt.Sprintf("p%d", w.steps), c.Nodes[w.steps%len(c.Nodes)].Name)
		}
		w.haveAndHold(w.has)
		if w.t.Failed() {
			w.t.Fatalf("after %s", name)
		}
		done()
		w.at = to.name
	}
}

// start starts a pod on a node.
func (w *walk) start(pod, node string) {
	w.t.Helper()
	w.pod(pod, node, w.network)
	w.running(pod)
}

// running waits for a pod and notes its address.
func (w *walk) running(pod string) {
	w.t.Helper()
	w.scene.running(pod)
	w.has[pod] = w.addresses(pod, "net1")[0]
}

// onNodes checks what is on the nodes' disks.
func (s *scene) onNodes(to state) {
	s.t.Helper()
	for _, node := range c.Nodes {
		var names []string
		entries, err := os.ReadDir(node.Disk("/etc/cni/net.d/nv-ipam.d"))
		if err != nil && !os.IsNotExist(err) {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if !slices.Equal(names, to.files) {
			s.t.Errorf("%s: %s has %v, expected %v", to.name, node.Name, names, to.files)
		}
		if _, err := os.Stat(node.Disk("/opt/cni/bin/nv-ipam")); (err == nil) != to.serves {
			s.t.Errorf("%s: plugin on %s: %v", to.name, node.Name, err)
		}
	}
}

// haveAndHold checks that each pod's interface has its address, and that the
// allocations are exactly those.
func (s *scene) haveAndHold(has map[string]string) {
	s.t.Helper()
	if held := s.held(); !maps.Equal(held, has) {
		s.t.Errorf("allocated %v, the pods have %v", held, has)
	}
	s.have(has)
}

// held are the addresses that are allocated to the scene's pods, by pod.
func (s *scene) held() map[string]string {
	s.t.Helper()
	held := map[string]string{}
	for _, a := range allocations(s.t, s.name) {
		held[a.Spec.PodRef.Name] = a.Spec.Address
	}
	return held
}

// have checks that each pod's interface has its address.
func (s *scene) have(has map[string]string) {
	s.t.Helper()
	for pod, address := range has {
		if ip := kubectl(s.t, "exec", "-n", s.name, pod, "--", "ip", "addr", "show", "net1"); !strings.Contains(ip, address+"/") {
			s.t.Errorf("%s has not %s any more:\n%s", pod, address, ip)
		}
	}
}

// applied applies a kustomization in the place of whatever there is of ours.
func applied(dir string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		operatorLeaves(t)
		kubectl(t, "apply", "-k", "../../manifests/overlays/crds")
		kubectl(t, "apply", "-k", dir)
		if err := installed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// uninstall is what docs/install.md says, and deletes what any of the overlays has.
func uninstall(t *testing.T) {
	t.Helper()
	kubectl(t, "apply", "-k", "testdata/uninstall")
	kubectl(t, "rollout", "status", "-n", poolsNamespace, "--timeout=3m", "daemonset/nv-ipam-node")
	kubectl(t, "delete", "-k", "testdata/install-serviceaccount", "--ignore-not-found", "--timeout=3m")
	kubectl(t, "wait", "-n", poolsNamespace, "--for=delete", "--timeout=3m", "pods", "-l", "app=nv-ipam")
}

// operatorInstalls has network-operator run this project's image, see TestNetworkOperator.
func operatorInstalls(t *testing.T) {
	t.Helper()
	root, roles := operatorRoles(t)
	kubectl(t, "delete", "-k", "testdata/install-serviceaccount", "--ignore-not-found", "--timeout=3m")
	kubectl(t, "apply", "-k", filepath.Join(root, "manifests/overlays/network-operator"))
	apply(t, roles)
	kubectl(t, "apply", "-f", "testdata/network-operator.yaml")
	if err := installed(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// operatorLeaves is what network-operator does when nvIpam leaves its policy.
func operatorLeaves(t *testing.T) {
	t.Helper()
	if kubectl(t, "get", "-n", poolsNamespace, "daemonset", "-l", "nvidia.network-operator.state", "-o", "name") == "" {
		return
	}
	kubectl(t, "delete", "-f", "testdata/network-operator.yaml", "--timeout=3m")
}
