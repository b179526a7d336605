// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// The networks of network-operator for which no node here has a device: what it makes of them is
// what the plugin is called with.
func TestNetworksOfTheOperator(t *testing.T) {
	needsOwnCluster(t, "it calls the plugin on a node")
	s := newScene(t)
	s.pool("fabric", "10.19.0.0/16", "10.19.0.1")
	for kind, of := range map[string]string{"HostDeviceNetwork": "resourceName: rdma", "IPoIBNetwork": "master: ib0"} {
		t.Run(kind, func(t *testing.T) {
			name := strings.ToLower(kind)
			apply(t, fmt.Sprintf(`apiVersion: mellanox.com/v1alpha1
kind: %s
metadata:
  name: %s
spec:
  networkNamespace: %s
  %s
  ipam: |
    {
      "type": "nv-ipam",
      "poolName": "fabric"
    }
`, kind, name, s.name, of))
			defer kubectl(t, "delete", kind, name)
			var config map[string]any
			eventually(t, "network-operator's NetworkAttachmentDefinition", func() error {
				out, err := c.Kubectl(t.Context(), "get", "network-attachment-definitions", "-n", s.name, name, "-o", "jsonpath={.spec.config}")
				if err != nil {
					return err
				}
				return json.Unmarshal([]byte(out), &config)
			})
			call := []string{"CNI_CONTAINERID=" + name, "CNI_IFNAME=net1", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + s.name + ";K8S_POD_NAME=" + name}
			callPlugin(t, "kind-worker", config, append(call, "CNI_COMMAND=ADD")...)
			held := slices.Collect(maps.Values(allocations(t, s.name)))
			if len(held) != 1 || held[0].Spec.NetworkName != name || held[0].Spec.PoolRef.Name != "fabric" {
				t.Errorf("%v gives %v", config, held)
			}
			callPlugin(t, "kind-worker", config, append(call, "CNI_COMMAND=DEL")...)
			if held := allocations(t, s.name); len(held) != 0 {
				t.Errorf("DEL leaves %v", held)
			}
		})
	}
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
