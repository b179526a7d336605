// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
)

// One network on two racks gives each its own pool; a node without a rack says so.
func TestOneNetworkForAllRacks(t *testing.T) {
	s := newScene(t)
	s.label("kind-worker", "r1")
	s.label("kind-worker2", "r2")
	s.pool("rail-r1", "10.41.0.0/16", "10.41.0.1")
	s.pool("rail-r2", "10.42.0.0/16", "10.42.0.1")
	s.network("rail", `"poolName": "rail-{example.com/rack}"`)
	s.pod("one", "kind-worker", "rail")
	s.pod("two", "kind-worker2", "rail")
	s.pod("nowhere", "kind-control-plane", "rail")
	s.running("one", "two")
	within(t, s.addresses("one", "net1")[0], "10.41.0.2", "10.41.255.254")
	within(t, s.addresses("two", "net1")[0], "10.42.0.2", "10.42.255.254")
	failure(t, s.name, "nowhere", "node kind-control-plane has no label example.com/rack: set it")

	s.label("kind-control-plane", "r2")
	s.running("nowhere")
	within(t, s.addresses("nowhere", "net1")[0], "10.42.0.2", "10.42.255.254")
	ping(t, s.name, "nowhere", s.addresses("two", "net1")[0])
}

// label says in which rack a node is, until the end of the test.
func (s *scene) label(node, rack string) {
	s.t.Helper()
	kubectl(s.t, "label", "node", node, "example.com/rack="+rack)
	s.t.Cleanup(func() {
		if _, err := c.Kubectl(ctx(), "label", "node", node, "example.com/rack-"); err != nil {
			s.t.Error(err)
		}
	})
}

// A pod whose namespace may not use the pool reads in its event why, and starts when it may.
func TestNamespaceThatIsNotAllowed(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "closed", "subnet: 10.43.0.0/16\n  perNodeBlockSize: 64\n  allowedNamespaces: [team-a, \"dev-*\"]")
	s.network("closed", `"poolName": "closed"`)
	s.pod("refused", "kind-worker", "closed")
	s.pod("asks", "kind-worker", `[{"name": "closed", "ips": ["10.43.0.77"]}]`)
	for _, pod := range []string{"refused", "asks"} {
		failure(t, s.name, pod, `pool "closed", poolType "ippool" gives no addresses to pods of namespace "`+s.name+`" because its spec.allowedNamespaces has only "team-a", "dev-*": add the namespace there, or name another pool`)
	}
	if held := allocations(t, s.name); len(held) > 0 {
		t.Errorf("allocated: %v", held)
	}
	kubectl(t, "patch", "ippool", "-n", poolsNamespace, "closed", "--type=merge", "-p", `{"spec":{"allowedNamespaces":["`+s.name[:9]+`*"]}}`)
	s.running("refused", "asks")
	if got := s.addresses("asks", "net1"); strings.Join(got, " ") != "10.43.0.77" {
		t.Errorf("asks has %v", got)
	}
}
