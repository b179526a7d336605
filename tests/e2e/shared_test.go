// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"
)

// A pool without blocks: pods of all nodes share a small subnet, which is exhausted when
// the last address is held, and serves the pod that waits when one is released.
func TestSharedPool(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "shared", "subnet: 10.44.0.0/29\n  gateway: 10.44.0.1\n  ranges: [10.44.0.2-10.44.0.4]")
	kubectl(t, "wait", "-n", poolsNamespace, "--for=condition=Ready", "ippool/shared", "--timeout=60s")
	s.network("shared", `"poolName": "shared"`)
	names := []string{"one", "two", "three"}
	for i, node := range []string{"kind-worker", "kind-worker2", "kind-control-plane"} {
		s.pod(names[i], node, "shared")
	}
	s.running(names...)
	var held []string
	for _, name := range names {
		held = append(held, s.addresses(name, "net1")...)
	}
	if slices.Sort(held); !slices.Equal(held, []string{"10.44.0.2", "10.44.0.3", "10.44.0.4"}) {
		t.Errorf("the pods have %v", held)
	}
	ping(t, s.name, "one", s.addresses("three", "net1")[0])

	s.pod("waits", "kind-worker", "shared")
	failure(t, s.name, "waits", "subnet 10.44.0.0/29 is full, 3 of 3 addresses are held")
	free := s.addresses("two", "net1")[0]
	kubectl(t, "delete", "pod", "-n", s.name, "two", "--grace-period=0", "--force", "--wait=true")
	s.running("waits")
	within(t, s.addresses("waits", "net1")[0], free, free)
}

// A node whose block is full goes on in the rest of the subnet.
func TestOverflowingBlock(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "over", "subnet: 10.45.0.0/24\n  perNodeBlockSize: 1\n  overflow: Subnet")
	s.network("over", `"poolName": "over"`)
	names := []string{"first", "second", "third"}
	for _, name := range names {
		s.pod(name, "kind-worker", "over")
	}
	s.running(names...)
	seen := map[string]bool{}
	for _, name := range names {
		addr := s.addresses(name, "net1")[0]
		within(t, addr, "10.45.0.1", "10.45.0.254")
		seen[addr] = true
	}
	if len(seen) != len(names) {
		t.Errorf("the pods have %v", seen)
	}
}
