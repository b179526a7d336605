// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// Two pools that overlap are reported on both, whatever their kinds and whichever
// came first, and no longer when they do not.
func TestOverlap(t *testing.T) {
	c := newCluster(t)
	c.Pool(t, "a", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 10})
	c.Pool(t, "apart", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/16", PerNodeBlockSize: 10})
	c.run(t, controller.Options{})
	c.wantOverlap(t, "a", "")

	_, err := c.IPAM.CIDRPools(c.NS).Create(t.Context(), &v1alpha1.CIDRPool{
		ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: v1alpha1.CIDRPoolSpec{CIDR: "10.0.128.0/17", PerNodeNetworkPrefix: 24},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.wantOverlap(t, "a", "10.0.0.0/16 overlaps with CIDRPool b (10.0.128.0/17)")
	c.WantEvent(t, "Warning IPPool/a SubnetsOverlap: 10.0.0.0/16 overlaps with CIDRPool b (10.0.128.0/17)")
	c.WantEvent(t, "Warning CIDRPool/b SubnetsOverlap: 10.0.128.0/17 overlaps with IPPool a (10.0.0.0/16)")
	c.wantOverlap(t, "apart", "")

	patch := []byte(`{"spec":{"cidr":"10.2.0.0/16"}}`)
	if _, err := c.IPAM.CIDRPools(c.NS).Patch(t.Context(), "b", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantOverlap(t, "a", "")
	patch = []byte(`{"spec":{"cidr":"10.1.2.0/24"}}`)
	if _, err := c.IPAM.CIDRPools(c.NS).Patch(t.Context(), "b", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantOverlap(t, "apart", "10.1.0.0/16 overlaps with CIDRPool b (10.1.2.0/24)")
	if err := c.IPAM.CIDRPools(c.NS).Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantOverlap(t, "apart", "")
}

// wantOverlap waits until an IPPool's condition says what it ought to; "" is no
// condition, on a pool that was reconciled.
func (c *cluster) wantOverlap(t *testing.T, name, want string) {
	t.Helper()
	rig.Until(t, func() string {
		p := c.GetPool(t, name)
		got := ""
		if o := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionOverlapping); o != nil {
			got = o.Message
		}
		if got != want || p.Status.ObservedGeneration != p.Generation {
			return fmt.Sprintf("%s: overlap %q, want %q", name, got, want)
		}
		return ""
	})
}
