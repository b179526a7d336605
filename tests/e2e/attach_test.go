// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// A pod with an IPv4 and an IPv6 address on one interface.
func TestDualStack(t *testing.T) {
	s := newScene(t)
	s.pool("four", "10.4.0.0/16", "10.4.0.1")
	s.pool("six", "fd00:6::/64", "fd00:6::1")
	s.network("dual", `"poolName": "four,six"`)
	s.pod("a", "kind-worker", "dual")
	s.pod("b", "kind-worker2", "dual")
	s.running("a", "b")
	if addresses := s.addresses("a", "net1"); len(addresses) != 2 {
		t.Errorf("addresses of a: %v", addresses)
	}
	for _, address := range s.addresses("b", "net1") {
		ping(t, s.name, "a", address)
	}
}

// A pod in a CIDRPool: each node has a prefix and a gateway of its own.
func TestCIDRPool(t *testing.T) {
	s := newScene(t)
	s.customPool("CIDRPool", "rail", "cidr: 10.7.0.0/16\n  gatewayIndex: 1\n  perNodeNetworkPrefix: 24")
	s.network("rail", `"poolName": "rail", "poolType": "cidrpool"`)
	s.pod("a", "kind-worker", "rail")
	s.running("a")
	within(t, s.addresses("a", "net1")[0], "10.7.1.2", "10.7.1.254")
	if routes := kubectl(t, "exec", "-n", s.name, "a", "--", "ip", "route"); !strings.Contains(routes, "10.7.1.0/24 dev net1") {
		t.Errorf("routes:\n%s", routes)
	}
}

// Two interfaces in one pod, in one network and pool.
func TestTwoInterfaces(t *testing.T) {
	s := newScene(t)
	s.pool("two", "10.8.0.0/16", "10.8.0.1")
	s.network("two", `"poolName": "two"`)
	s.pod("a", "kind-worker", "two,two")
	s.running("a")
	first, second := s.addresses("a", "net1"), s.addresses("a", "net2")
	if first[0] == second[0] {
		t.Errorf("both interfaces have %s", first[0])
	}
	if held := allocations(t, s.name); len(held) != 2 {
		t.Errorf("allocated: %v", slices.Sorted(maps.Keys(held)))
	}
}

// cni-args in the annotation choose another pool than the network has, and an
// address by its index in the node's block.
func TestCNIArgs(t *testing.T) {
	s := newScene(t)
	s.pool("default-pool", "10.9.0.0/16", "10.9.0.1")
	s.pool("other-pool", "10.10.0.0/16", "10.10.0.1")
	s.network("args", `"poolName": "default-pool"`)
	s.pod("a", "kind-worker", `[{"name": "args", "cni-args": {"poolNames": ["other-pool"], "allocateIPWithIndex": 7}}]`)
	s.running("a")
	// kind-worker's is the second block of 64: from 10.10.0.65 on.
	if addresses := s.addresses("a", "net1"); addresses[0] != "10.10.0.72" {
		t.Errorf("addresses: %v", addresses)
	}
}

// A Deployment scaled to 60 and back to nothing, twice.
func TestScale(t *testing.T) {
	s := newScene(t)
	s.pool("scale", "10.11.0.0/16", "10.11.0.1")
	s.network("scale", `"poolName": "scale"`)
	const replicas = 40
	s.deployment("d", "", "scale", 0)
	for round := range 2 {
		done := phase(fmt.Sprintf("%s: %d pods, round %d", t.Name(), replicas, round+1))
		kubectl(t, "scale", "-n", s.name, "deployment/d", fmt.Sprintf("--replicas=%d", replicas))
		kubectl(t, "rollout", "status", "-n", s.name, "--timeout=5m", "deployment/d")
		s.podsMatchAllocations(replicas)
		done()
		kubectl(t, "scale", "-n", s.name, "deployment/d", "--replicas=0")
		s.nothingAllocated()
	}
}

// podsMatchAllocations waits until each of so many pods has an address of its own,
// by multus' word, and the allocations are exactly those.
func (s *scene) podsMatchAllocations(pods int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d pods with an address each", pods), func() error {
		held, err := listAllocations(s.name)
		if err != nil {
			return err
		}
		out, err := c.Kubectl(s.t.Context(), "get", "pods", "-n", s.name, "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		holders := map[string]string{} // addresses by the holding pod's UID
		for _, a := range held {
			if other, double := holders[string(a.Spec.PodRef.UID)]; double {
				return fmt.Errorf("pod %s holds %s and %s", a.Spec.PodRef.Name, other, a.Spec.Address)
			}
			holders[string(a.Spec.PodRef.UID)] = a.Spec.Address
		}
		if len(lines) != pods || len(held) != pods {
			return fmt.Errorf("%d pods, %d allocations", len(lines), len(held))
		}
		for _, line := range lines {
			fields := strings.Fields(line)
			if len(fields) != 3 || fields[2] != "True" || holders[fields[1]] == "" {
				return fmt.Errorf("pod %s, address %q", line, holders[fields[min(1, len(fields)-1)]])
			}
			delete(holders, fields[1])
		}
		return nil
	})
}
