// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

const workerLabel = "node-role.kubernetes.io/worker"

func workers() *corev1.NodeSelector { return labelled(workerLabel) }

// labelled selects the nodes that have a label.
func labelled(label string) *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: label, Operator: corev1.NodeSelectorOpExists}},
	}}}
}

// seedPool is the pool of nv-ipam's documentation on static addresses.
func seedPool() v1alpha1.IPPoolSpec {
	return v1alpha1.IPPoolSpec{
		Subnet: "192.168.0.0/16", PerNodeBlockSize: 100, Gateway: "192.168.0.1",
		Exclusions:   []v1alpha1.ExcludeRange{{StartIP: "192.168.0.0", EndIP: "192.168.0.10"}},
		NodeSelector: workers(),
	}
}

var seedBlocks = []string{
	"kind-control-plane 192.168.0.1 192.168.0.100",
	"kind-worker 192.168.0.101 192.168.0.200",
	"kind-worker2 192.168.0.201 192.168.1.44",
}

func seedCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	for _, n := range []string{"kind-worker2", "kind-control-plane", "kind-worker"} {
		c.Node(t, n, map[string]string{workerLabel: ""})
	}
	c.Node(t, "not-a-worker", nil)
	c.Pool(t, "pool1", seedPool())
	return c
}

func TestSeedPool(t *testing.T) {
	c := seedCluster(t)
	c.run(t, controller.Options{})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
}

func TestCIDRPool(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Node(t, "b", nil)
	c.run(t, controller.Options{})
	pools := c.IPAM.CIDRPools(c.NS)
	_, err := pools.Create(t.Context(), &v1alpha1.CIDRPool{
		ObjectMeta: metav1.ObjectMeta{Name: "rail1"},
		Spec: v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: new(int32(1)),
			StaticAllocations: []v1alpha1.CIDRPoolStaticAllocation{{NodeName: "b", Prefix: "10.60.7.0/24", Gateway: "10.60.7.9"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []v1alpha1.CIDRPoolAllocation{
		{NodeName: "a", Gateway: "10.60.0.1", Prefix: "10.60.0.0/24"},
		{NodeName: "b", Gateway: "10.60.7.9", Prefix: "10.60.7.0/24"},
	}
	rig.Until(t, func() string {
		p, err := pools.Get(t.Context(), "rail1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p.Status.Allocations, want) || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Reason != "BlocksAssigned" {
			return fmt.Sprintf("status %+v, want %+v", p.Status, want)
		}
		return ""
	})
}

// A node that leaves keeps its block as long as it holds an address of it.
func TestBlockOfDepartedNode(t *testing.T) {
	for _, departs := range []struct {
		how  string
		leak func(*testing.T, *cluster)
	}{
		{"relabelled", func(t *testing.T, c *cluster) {
			c.patchNode(t, "kind-worker", `{"metadata":{"labels":{"`+workerLabel+`":null}}}`)
		}},
		{"deleted", func(t *testing.T, c *cluster) {
			if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(departs.how, func(t *testing.T) {
			c := seedCluster(t)
			c.run(t, controller.Options{})
			c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
			c.hold(t, "pool1", "192.168.0.105", "kind-worker", c.startPod(t, "p", nil))
			departs.leak(t, c)
			// The next node is given another block: the departure has been seen.
			c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
			with3 := append(slices.Clone(seedBlocks), "kind-worker3 192.168.1.45 192.168.1.144")
			c.wantPool(t, "pool1", "BlocksAssigned", with3...)

			if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "pool1.192.168.0.105", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			c.wantPool(t, "pool1", "BlocksAssigned", slices.Delete(with3, 1, 2)...)
		})
	}
}

// An invalid edit leaves the blocks where they are, says so, and is got over.
func TestInvalidEdit(t *testing.T) {
	c := seedCluster(t)
	c.run(t, controller.Options{})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	edit := func(patch string) {
		t.Helper()
		if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	edit(`{"spec":{"gateway":"10.0.0.1"}}`)
	c.wantPool(t, "pool1", "InvalidSpec", seedBlocks...)
	c.WantEvent(t, `Warning IPPool/pool1 InvalidSpec: spec.gateway: Invalid value: "10.0.0.1"`)
	edit(`{"spec":{"gateway":"192.168.0.1"}}`)
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)

	// A pool that is invalid from the start has no blocks.
	c.Pool(t, "pool2", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.1.1"})
	c.wantPool(t, "pool2", "InvalidSpec")
}

func TestNoFreeRanges(t *testing.T) {
	c := newCluster(t)
	for _, n := range []string{"a", "b", "c"} {
		c.Node(t, n, nil)
	}
	c.Pool(t, "small", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 120})
	c.run(t, controller.Options{})
	c.wantPool(t, "small", "NoFreeRanges", "a 10.0.0.1 10.0.0.120", "b 10.0.0.121 10.0.0.240")
	c.WantEvent(t, "Warning IPPool/small NoFreeRanges: failed to allocate IPs on Node: c")
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "small", "BlocksAssigned", "c 10.0.0.1 10.0.0.120", "b 10.0.0.121 10.0.0.240")
	if n := len(c.Events(t)); n != 1 {
		t.Errorf("events %q, want one", c.Events(t))
	}
}

// manager returns the one manager of status.allocations whose name tells a
// plugin about them, and all owners of that field.
func manager(t *testing.T, p *v1alpha1.IPPool) (ours string, all []string) {
	t.Helper()
	for _, e := range p.ManagedFields {
		if strings.HasPrefix(e.Manager, v1alpha1.BlocksManagerPrefix) {
			if ours != "" {
				t.Errorf("two managers of blocks: %s and %s", ours, e.Manager)
			}
			ours = e.Manager
		}
	}
	return ours, owners(t, p, "f:allocations")
}

// owners are the managers of a field of the status.
func owners(t *testing.T, p *v1alpha1.IPPool, field string) (out []string) {
	t.Helper()
	for _, e := range p.ManagedFields {
		fields := map[string]map[string]any{}
		if err := json.Unmarshal(e.FieldsV1.GetRawBytes(), &fields); err != nil {
			t.Fatal(err)
		}
		if _, owns := fields["f:status"][field]; owns {
			out = append(out, e.Manager)
		}
	}
	return out
}

// The name of the manager of status.allocations changes exactly when they do.
func TestBlocksManager(t *testing.T) {
	c := seedCluster(t)
	c.run(t, controller.Options{})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	first, all := manager(t, c.GetPool(t, "pool1"))
	if first == "" || !slices.Equal(all, []string{first}) {
		t.Fatalf("owners of status.allocations are %q", all)
	}
	for _, field := range []string{"f:conditions", "f:observedGeneration", "f:capacity", "f:used"} {
		if got := owners(t, c.GetPool(t, "pool1"), field); !slices.Equal(got, []string{"ipam-controller"}) {
			t.Errorf("owners of status.%s are %q", field, got)
		}
	}

	// 1. A condition changes: the name does not.
	patch := []byte(`{"status":{"conditions":[{"type":"Other","status":"True","reason":"R","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "other"}, "status"); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	if name, owners := manager(t, c.GetPool(t, "pool1")); name != first || !slices.Equal(owners, []string{first}) {
		t.Errorf("a condition made the owners %q, want %q", owners, first)
	}

	// 2. The blocks change: another name, and no trace of the first.
	c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
	with3 := append(slices.Clone(seedBlocks), "kind-worker3 192.168.1.45 192.168.1.144")
	c.wantPool(t, "pool1", "BlocksAssigned", with3...)
	second, all := manager(t, c.GetPool(t, "pool1"))
	if second == first || !slices.Equal(all, []string{second}) {
		t.Errorf("other blocks made the owners %q, had %q", all, first)
	}

	// 3. They change back: the first name.
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	if name, _ := manager(t, c.GetPool(t, "pool1")); name != first {
		t.Errorf("the same blocks have the manager %q, had %q", name, first)
	}

	// 4. Somebody else writes other blocks: they are put right.
	patch = []byte(`{"status":{"allocations":[{"nodeName":"x","startIP":"192.168.9.1","endIP":"192.168.9.9"}]}}`)
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "nv-ipam"}, "status"); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
}

// Blocks that nv-ipam has written stay where they are, and are owned.
func TestTakesOverBlocks(t *testing.T) {
	c := seedCluster(t)
	p := c.GetPool(t, "pool1")
	p.Status.Allocations = []v1alpha1.Allocation{
		{NodeName: "kind-worker", StartIP: "192.168.0.1", EndIP: "192.168.0.100"},
		{NodeName: "kind-worker2", StartIP: "192.168.0.101", EndIP: "192.168.0.200"},
		{NodeName: "kind-control-plane", StartIP: "192.168.1.45", EndIP: "192.168.1.144"},
	}
	if _, err := c.IPAM.IPPools(c.NS).UpdateStatus(t.Context(), p, metav1.UpdateOptions{FieldManager: "ipam-controller"}); err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{})
	c.wantPool(t, "pool1", "BlocksAssigned",
		"kind-worker 192.168.0.1 192.168.0.100", "kind-worker2 192.168.0.101 192.168.0.200", "kind-control-plane 192.168.1.45 192.168.1.144")
	if name, _ := manager(t, c.GetPool(t, "pool1")); name == "" {
		t.Error("no manager of blocks")
	}
}

// At rest nothing is written, however often nodes report and caches resync.
func TestRest(t *testing.T) {
	c := seedCluster(t)
	w, _ := c.run(t, controller.Options{Resync: time.Second})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	c.Pool(t, "other", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 10, NodeSelector: labelled("other")})
	c.wantPool(t, "other", "NoMatchingNodes")
	before := c.GetPool(t, "pool1").ResourceVersion
	for i := range 50 {
		c.patchNode(t, "kind-worker", fmt.Sprintf(`{"metadata":{"annotations":{"n":"%d"}}}`, i))
		c.patchNode(t, "kind-worker", fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","message":"%d"}]}}`, i), "status")
	}
	// What concerns all pools is done for all of them at a time: when it is the second time
	// that the other pool has changed, this one was looked at.
	c.patchNode(t, "kind-worker", `{"metadata":{"labels":{"other":""}}}`)
	c.wantPool(t, "other", "BlocksAssigned", "kind-worker 10.0.0.1 10.0.0.10")
	c.patchNode(t, "kind-worker", `{"metadata":{"labels":{"other":null}}}`)
	c.wantPool(t, "other", "NoMatchingNodes")
	if after := c.GetPool(t, "pool1").ResourceVersion; after != before {
		t.Errorf("resource version went from %s to %s", before, after)
	}
	if all := w.of("ippools/pool1"); len(all) != 2 {
		t.Errorf("writes %q, want two", all)
	}
}

// A node that joins or leaves is one write of the pool, of its line.
func TestJoinIsOneWrite(t *testing.T) {
	c := seedCluster(t)
	w, _ := c.run(t, controller.Options{Usage: time.Hour})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	before := len(w.of("ippools/pool1"))
	c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
	c.wantPool(t, "pool1", "BlocksAssigned", append(slices.Clone(seedBlocks), "kind-worker3 192.168.1.45 192.168.1.144")...)
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker3", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	if all := w.of("ippools/pool1")[before:]; len(all) != 2 {
		t.Errorf("writes %q, want one for the node that joins and one for the node that leaves", all)
	}
}

// Nodes that join at once are few writes.
func TestManyNodes(t *testing.T) {
	nodes := 5000
	if testing.Short() {
		nodes = 500
	}
	c := newCluster(t)
	w, _ := c.run(t, controller.Options{})
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/8", PerNodeBlockSize: 100})
	c.wantPool(t, "p", "BlocksAssigned")
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := i; j < nodes; j += 10 {
				c.Node(t, fmt.Sprintf("node-%04d", j), nil)
			}
		})
	}
	wg.Wait()
	rig.Until(t, func() string {
		if n := len(c.GetPool(t, "p").Status.Allocations); n != nodes {
			return fmt.Sprintf("%d blocks", n)
		}
		return ""
	})
	n := len(w.of("ippools"))
	t.Logf("%d nodes: %d writes of the pool", nodes, n)
	if n > nodes/10 {
		t.Errorf("%d writes for %d nodes", n, nodes)
	}
}

// Whatever is edited under live pods, nobody's block or address changes; the pool
// says what does not fit, until it is given back.
func TestSpecEditsUnderLivePods(t *testing.T) {
	for _, tc := range []struct {
		name, patch string
		blocks      []string
		message     string
		after       []string
	}{
		{"block size", `{"spec":{"perNodeBlockSize":50}}`,
			[]string{"kind-control-plane 192.168.0.1 192.168.0.50", "kind-worker 192.168.0.51 192.168.0.100", "kind-worker 192.168.0.101 192.168.0.200", "kind-worker2 192.168.0.201 192.168.0.250"},
			"blocks of nodes kind-worker (192.168.0.101-192.168.0.200)",
			[]string{"kind-control-plane 192.168.0.1 192.168.0.50", "kind-worker 192.168.0.51 192.168.0.100", "kind-worker2 192.168.0.201 192.168.0.250"}},
		{"subnet", `{"spec":{"subnet":"10.7.0.0/16","gateway":"10.7.0.1","exclusions":null}}`,
			[]string{"kind-control-plane 10.7.0.1 10.7.0.100", "kind-worker 10.7.0.101 10.7.0.200", "kind-worker2 10.7.0.201 10.7.1.44", "kind-worker 192.168.0.101 192.168.0.200"},
			"blocks of nodes kind-worker (192.168.0.101-192.168.0.200); addresses 192.168.0.105",
			[]string{"kind-control-plane 10.7.0.1 10.7.0.100", "kind-worker 10.7.0.101 10.7.0.200", "kind-worker2 10.7.0.201 10.7.1.44"}},
		{"block excluded", `{"spec":{"exclusions":[{"startIP":"192.168.0.101","endIP":"192.168.0.200"}]}}`,
			append(slices.Clone(seedBlocks), "kind-worker 192.168.1.45 192.168.1.144"),
			"blocks of nodes kind-worker (192.168.0.101-192.168.0.200); addresses 192.168.0.105",
			[]string{seedBlocks[0], seedBlocks[2], "kind-worker 192.168.1.45 192.168.1.144"}},
		{"gateway", `{"spec":{"gateway":"192.168.0.105"}}`,
			seedBlocks, "addresses that are a gateway now 192.168.0.105 (held on node kind-worker)", seedBlocks},
		{"excluded in each block", `{"spec":{"perNodeExclusions":[{"startIndex":4,"endIndex":4}]}}`, seedBlocks, "addresses 192.168.0.105", seedBlocks},
		{"exclusions", `{"spec":{"exclusions":[{"startIP":"192.168.0.100","endIP":"192.168.0.110"}]}}`,
			seedBlocks, "addresses 192.168.0.105", seedBlocks},
		{"node selector", `{"spec":{"nodeSelector":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["kind-worker2"]}]}]}}}`,
			[]string{"kind-worker 192.168.0.101 192.168.0.200", "kind-worker2 192.168.0.201 192.168.1.44"}, "",
			[]string{"kind-worker2 192.168.0.201 192.168.1.44"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := seedCluster(t)
			c.run(t, controller.Options{})
			c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
			c.hold(t, "pool1", "192.168.0.105", "kind-worker", c.startPod(t, "p", nil))
			c.seen(t)
			if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, []byte(tc.patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			c.wantPool(t, "pool1", "BlocksAssigned", tc.blocks...)
			c.wantNotice(t, "pool1", "EarlierSpecInUse", tc.message)
			if tc.message != "" {
				c.WantEvent(t, "Warning IPPool/pool1 EarlierSpecInUse: kept from an earlier specification until they are released: "+tc.message)
			}
			if got := c.Held(t); len(got) != 1 {
				t.Errorf("held: %v", got)
			}
			if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "pool1.192.168.0.105", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			c.wantPool(t, "pool1", "BlocksAssigned", tc.after...)
			c.wantNotice(t, "pool1", "EarlierSpecInUse", "")
		})
	}
}

// wantNotice waits until an IPPool has a condition of this type, which is True and
// whose message ends so; "" is no condition. The pool is Ready all the same.
func (c *cluster) wantNotice(t *testing.T, name, conditionType, message string) {
	t.Helper()
	rig.Until(t, func() string {
		p := c.GetPool(t, name)
		found := meta.FindStatusCondition(p.Status.Conditions, conditionType)
		if message == "" && found == nil {
			return ""
		}
		if message == "" || found == nil || found.Status != metav1.ConditionTrue || !strings.HasSuffix(found.Message, message) || found.ObservedGeneration != p.Generation {
			return fmt.Sprintf("pool %s has %s %+v, want %q", name, conditionType, found, message)
		}
		if !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Sprintf("pool %s is not Ready: %+v", name, p.Status.Conditions)
		}
		return ""
	})
}

// seen waits until the controller has seen what exists: a node that comes after
// it has a block.
func (c *cluster) seen(t *testing.T) {
	t.Helper()
	const marker = "zz-marker"
	c.Node(t, marker, map[string]string{workerLabel: ""})
	rig.Until(t, func() string {
		for _, a := range c.GetPool(t, "pool1").Status.Allocations {
			if a.NodeName == marker {
				return ""
			}
		}
		return marker + " has no block"
	})
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), marker, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
}
