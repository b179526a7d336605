// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
)

// A pool without blocks is Ready at once, whatever nodes there are, and says how full it is
// and who holds most of it.
func TestPoolWithoutBlocks(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "s", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", Gateway: "10.0.0.1"})
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantPool(t, "s", "NoBlocks")
	c.wantUsage(t, "s", 5, 0)

	pod := c.startPod(t, "p", nil)
	for i, node := range []string{"a", "b", "a", "b", "a"} {
		c.hold(t, "s", fmt.Sprintf("10.0.0.%d", 2+i), node, pod)
	}
	c.wantUsage(t, "s", 5, 5)
	full := "no free address, pods that need one do not start: 5 of 5 are held, most by nodes a (3), b (2)"
	c.wantNotice(t, "s", v1alpha1.ConditionFull, full)
	c.WantEvent(t, "Warning IPPool/s Full: "+full)
	if got := fmt.Sprint(c.GetPool(t, "s").Status.TopNodes); got != "[{a 3} {b 2}]" {
		t.Errorf("top nodes %s", got)
	}
	c.wantNotice(t, "s", v1alpha1.ConditionBlockFull, "")

	c.release(t, "s.10.0.0.3")
	c.wantUsage(t, "s", 5, 4)
	c.wantNotice(t, "s", v1alpha1.ConditionFull, "")

	patch := []byte(`{"spec":{"disabled":true}}`)
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "s", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "s", "Disabled")
}

// A block that is full is no news if its node may go on elsewhere; the subnet is.
func TestOverflowingBlocks(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "o", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: 2, Overflow: v1alpha1.OverflowSubnet})
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantPool(t, "o", "BlocksAssigned", "a 10.0.0.1 10.0.0.2")
	pod := c.startPod(t, "p", nil)
	for _, last := range []int{1, 2, 6, 5} {
		c.hold(t, "o", fmt.Sprintf("10.0.0.%d", last), "a", pod)
	}
	c.wantUsage(t, "o", 6, 4)
	c.wantNotice(t, "o", v1alpha1.ConditionBlockFull, "")
	c.wantNotice(t, "o", v1alpha1.ConditionFull, "")
	c.hold(t, "o", "10.0.0.3", "a", pod)
	c.hold(t, "o", "10.0.0.4", "a", pod)
	c.wantNotice(t, "o", v1alpha1.ConditionFull, "6 of 6 are held, most by nodes a (6)")
	for _, e := range c.Events(t) {
		if strings.Contains(e, "AddressesOutsideBlock") {
			t.Error(e)
		}
	}
}

// Pools of one domain may overlap: neither says so, and each counts what is held in its
// subnet, whatever pool it was taken from. In another domain both are told.
func TestPoolsOfOneDomain(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	pod := c.startPod(t, "p", nil)
	c.Pool(t, "wide", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"})
	c.Pool(t, "half", v1alpha1.IPPoolSpec{Subnet: "10.0.0.128/25", PoolAccess: v1alpha1.PoolAccess{Domain: "wide"}})
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.hold(t, "wide", "10.0.0.5", "a", pod)
	c.hold(t, "wide", "10.0.0.200", "a", pod)
	c.wantUsage(t, "wide", 254, 2)
	c.wantUsage(t, "half", 126, 1)
	c.wantOverlap(t, "wide", "")
	c.wantOverlap(t, "half", "")

	c.Pool(t, "other", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/25"})
	c.wantOverlap(t, "wide", "10.0.0.0/24 overlaps with IPPool other (10.0.0.0/25)")
	c.wantOverlap(t, "other", "10.0.0.0/25 overlaps with IPPool wide (10.0.0.0/24)")
	c.wantOverlap(t, "half", "")
}

// A pool is replaced by another one of its domain, under live pods: what they hold is not
// an orphan, it counts, and nodes get the blocks in which they hold addresses. Without such
// a pool, those who overlap with what is held are told.
func TestPoolIsRenamed(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Node(t, "b", nil)
	pod := c.startPod(t, "p", nil)
	c.Pool(t, "old", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10})
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantPool(t, "old", "BlocksAssigned", "a 10.0.0.1 10.0.0.10", "b 10.0.0.11 10.0.0.20")
	c.hold(t, "old", "10.0.0.15", "b", pod)
	c.wantUsage(t, "old", 20, 1)

	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Pool(t, "stranger", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/25", PerNodeBlockSize: 10})
	c.wantOverlap(t, "stranger", "10.0.0.0/25 overlaps with addresses that are held in the domain old, which has no pool any more (kubectl get ipa shows them as old.ADDRESS)")

	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "stranger", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Pool(t, "new", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, PoolAccess: v1alpha1.PoolAccess{Domain: "old"}})
	c.wantPool(t, "new", "BlocksAssigned", "a 10.0.0.1 10.0.0.10", "b 10.0.0.11 10.0.0.20")
	c.wantUsage(t, "new", 20, 1)
	c.wantOverlap(t, "new", "")
	c.wantNotice(t, "new", v1alpha1.ConditionEarlierSpecInUse, "")

	// No other pool tells what an edit does to that.
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "new", types.MergePatchType, []byte(`{"spec":{"gateway":"10.0.0.15"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantNotice(t, "new", v1alpha1.ConditionEarlierSpecInUse, "addresses that are a gateway now 10.0.0.15 (held on node b)")
}

// What kubectl applied and a foreign CRD has dropped is said on the pool.
func TestDroppedFields(t *testing.T) {
	c := newCluster(t)
	p := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10}}
	p.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: `{"spec":{"subnet":"10.0.0.0/24","perNodeBlockSize":10,"domain":"x","allowedNamespaces":["a"],"ranges":[],"disabled":false,"routes":[]}}`}
	if _, err := c.IPAM.IPPools(c.NS).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{})
	text := "the installed IPPool CRD does not have spec.allowedNamespaces, spec.domain: what was applied there has no effect. Apply this project's CRDs, then the pool again"
	c.wantNotice(t, "d", v1alpha1.ConditionFieldsDropped, text)
	c.WantEvent(t, "Warning IPPool/d FieldsDropped: "+text)
}
