// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// network-operator runs this project's image in place of its own nv-ipam: with its
// Deployment and DaemonSet, its roles and its CRDs of the pools, and beside them
// the overlay with what it does not bring.
func TestNetworkOperator(t *testing.T) {
	if walkthroughOnly {
		t.Skip("only the walkthrough is run, because of E2E_WALKTHROUGH_ONLY")
	}
	needsOwnCluster(t, "it removes files from the nodes' disks")
	root, theirs := operatorRoles(t)
	pools := []string{"-f", filepath.Join(root, "manifests/base/crds/nv-ipam.nvidia.com_ippools.yaml"), "-f", filepath.Join(root, "manifests/base/crds/nv-ipam.nvidia.com_cidrpools.yaml")}
	overlay := filepath.Join(root, "manifests/overlays/network-operator")

	kubectl(t, "delete", "-k", "testdata/install", "--timeout=3m")
	defer func() { // as it was, for whoever comes next
		kubectl(t, "delete", "-f", "testdata/network-operator.yaml", "--timeout=3m")
		kubectl(t, "delete", "-k", overlay, "--timeout=3m")
		reinstall(t)
	}()
	for _, node := range c.Nodes {
		// What the installer of before has left, so that this one has to do it.
		if err := errors.Join(os.Remove(node.Disk("/opt/cni/bin/nv-ipam")), os.RemoveAll(node.Disk("/etc/cni/net.d/nv-ipam.d"))); err != nil {
			t.Fatal(err)
		}
	}
	if !t.Run("installed", func(t *testing.T) {
		kubectl(t, append([]string{"apply"}, pools...)...)
		kubectl(t, "apply", "-k", overlay)
		apply(t, theirs)
		kubectl(t, "apply", "-f", "testdata/network-operator.yaml")
		if err := installed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}) {
		return
	}
	t.Run("pods", func(t *testing.T) {
		s := newScene(t)
		s.pool("operator", "10.18.0.0/16", "10.18.0.1")
		s.network("operator", `"poolName": "operator"`)
		s.pod("a", "kind-worker", "operator")
		s.pod("b", "kind-worker2", `[{"name": "operator", "ips": ["10.18.0.5"]}]`)
		s.running("a", "b")
		if addresses := s.addresses("b", "net1"); addresses[0] != "10.18.0.5" {
			t.Errorf("b has %v", addresses)
		}
		ping(t, s.name, "a", "10.18.0.5")
	})
}

// operatorRoles returns the project's directory, and the roles that network-operator's own
// deployment has, for the namespace of the pools.
func operatorRoles(t *testing.T) (root, roles string) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, "tests/manifests/testdata/network-operator.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return root, strings.ReplaceAll(string(data), "NAMESPACE", poolsNamespace)
}
