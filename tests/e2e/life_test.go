// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// An address rests after its pod: kubectl shows until when, another pod that asks for it is
// told, and gets it when the cooldown is over.
func TestCooldown(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "rests", "subnet: 10.44.0.0/16\n  perNodeBlockSize: 64\n  releaseCooldown: 20s")
	s.network("rests", `"poolName": "rests"`)
	s.pod("first", "kind-worker", `[{"name": "rests", "ips": ["10.44.0.9"]}]`)
	s.running("first")
	kubectl(t, "delete", "pod", "-n", s.name, "first")
	eventually(t, "the address rests", func() error {
		out, err := c.Kubectl(t.Context(), "get", "ipallocations", "-n", poolsNamespace, "-l", "nv-ipam.nvidia.com/released", "--no-headers")
		if err == nil && !strings.Contains(out, "10.44.0.9") {
			err = fmt.Errorf("kubectl get shows %q", out)
		}
		return err
	})
	s.pod("second", "kind-worker2", `[{"name": "rests", "ips": ["10.44.0.9"]}]`)
	failure(t, s.name, "second", "10.44.0.9 is released by pod "+s.name+"/first on node kind-worker")
	s.running("second")
	if got := s.addresses("second", "net1"); strings.Join(got, " ") != "10.44.0.9" {
		t.Errorf("second has %v", got)
	}
}

// A reserved address is its pod's only, on whatever node it starts; and it is kept when the
// pod ends.
func TestReservation(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "kept", "subnet: 10.45.0.0/16\n  perNodeBlockSize: 64")
	s.network("kept", `"poolName": "kept"`)
	apply(t, fmt.Sprintf(`apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPReservation
metadata:
  name: kept
  namespace: %s
spec:
  poolRef: {kind: IPPool, name: kept}
  addresses: ["10.45.0.7", "10.45.0.1-10.45.0.62", "10.45.0.65-10.45.0.126"]
  pod: {namespace: %s, name: database}
  reason: a test
`, poolsNamespace, s.name))
	t.Cleanup(func() {
		if _, err := c.Kubectl(ctx(), "delete", "ipreservation", "-n", poolsNamespace, "kept"); err != nil {
			t.Error(err)
		}
	})
	kubectl(t, "wait", "-n", poolsNamespace, "--for=condition=Ready", "--timeout=1m", "ipreservation/kept")
	s.pod("thief", "kind-worker", `[{"name": "kept", "ips": ["10.45.0.7"]}]`)
	failure(t, s.name, "thief", "10.45.0.7 is reserved for pod "+s.name+"/database")
	s.pod("other", "kind-worker", "kept")
	s.running("other")
	if got := strings.Join(s.addresses("other", "net1"), " "); !slices.Contains([]string{"10.45.0.63", "10.45.0.64", "10.45.0.127", "10.45.0.128"}, got) { // all others of each block are kept
		t.Errorf("other has %v", got)
	}
	for _, node := range []string{"kind-worker", "kind-worker2"} {
		s.pod("database", node, `[{"name": "kept", "ips": ["10.45.0.7"]}]`)
		s.running("database")
		if got := s.addresses("database", "net1"); strings.Join(got, " ") != "10.45.0.7" {
			t.Errorf("database has %v on %s", got, node)
		}
		kubectl(t, "delete", "pod", "-n", s.name, "database")
	}
	failure(t, s.name, "thief", "10.45.0.7 is released at ")
}
