// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// moving is what a machine moves from one pod to another.
func (c *cluster) moving(t *testing.T, owner *ledger.IPAMClaim, address string, from, to v1alpha1.PodReference, fromNode, toNode string) {
	t.Helper()
	a := c.allocation(time.Now(), "source", "p", address, fromNode, from)
	a.Spec.Owner = owner.Owner()
	next := v1alpha1.NextOf(&c.allocation(time.Now(), "target", "p", address, toNode, to).Spec)
	a.Spec.Next = next
	a.Labels = v1alpha1.AllocationLabels(&a.Spec)
	c.create(t, a)
}

// wantMoving waits until an address is held, and moves, as wanted: "from -> to", "from", or
// "kept".
func (c *cluster) wantMoving(t *testing.T, address, want string) {
	t.Helper()
	rig.Until(t, func() string {
		a, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), "p."+address, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		got := a.Spec.PodRef.Name
		if a.Spec.Next != nil {
			got += " -> " + a.Spec.Next.PodRef.Name
		}
		if a.Spec.Released() {
			got = "kept"
		}
		if got == want {
			return ""
		}
		return fmt.Sprintf("%s: %s, want %s", address, got, want)
	})
}

// A pod ends while a machine moves, and its DEL is lost. If it is the source, the target has the
// address; if it is the target, it leaves. The address is kept for the claim when both have ended.
func TestMigrationEnds(t *testing.T) {
	c := newCluster(t)
	rig.InstallIPAMClaims(t, c.core(), rig.OwnerPodIsAnObject)
	for _, node := range []string{"a", "b", "away", "dead"} {
		c.Node(t, node, nil)
		c.patchNode(t, node, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	}
	c.patchNode(t, "away", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
	c.patchNode(t, "dead", `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoExecute"}]}}`)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"})
	gonePod := func(name string) v1alpha1.PodReference {
		return v1alpha1.PodReference{Namespace: c.NS, Name: name, UID: gone}
	}
	ending := func(node, name string) v1alpha1.PodReference { // a finalizer keeps it
		ref := rig.Pod(t, c.Kube, c.NS, name, node, func(p *corev1.Pod) { p.Finalizers = []string{"example.com/stay"} })
		c.deletePod(t, name)
		t.Cleanup(func() {
			_, _ = c.Kube.CoreV1().Pods(c.NS).Patch(context.Background(), name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		})
		return ref
	}
	runs := func(node, name string) v1alpha1.PodReference { return c.startPodOn(t, node, name, nil) }
	ended := func(node, name string) v1alpha1.PodReference {
		ref := runs(node, name)
		patch := []byte(`{"status":{"phase":"Failed"}}`)
		if _, err := c.Kube.CoreV1().Pods(c.NS).Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		return ref
	}
	for i, tc := range []struct {
		what             string
		from, to         v1alpha1.PodReference
		fromNode, toNode string
		want             string
	}{
		{"both run", runs("a", "f0"), runs("b", "t0"), "a", "b", "f0 -> t0"},
		{"both run, and the target's node does not answer", runs("a", "f1"), runs("away", "t1"), "a", "away", "f1 -> t1"},
		{"the source is gone", gonePod("f2"), runs("b", "t2"), "a", "b", "t2"},
		{"the source is gone with its node", gonePod("f3"), runs("b", "t3"), "dead", "b", "t3"},
		{"the source is gone, and its node does not answer", gonePod("f4"), runs("b", "t4"), "away", "b", "f4 -> t4"},
		{"the target is gone", runs("a", "f5"), gonePod("t5"), "a", "b", "f5"},
		{"the target is gone, and its node does not answer", runs("a", "f6"), gonePod("t6"), "a", "away", "f6"},
		{"the target ends, and its node does not answer", runs("a", "f7"), ending("away", "t7"), "a", "away", "f7"},
		{"the target ends", runs("a", "f8"), ending("b", "t8"), "a", "b", "f8 -> t8"},
		{"both are gone", gonePod("f9"), gonePod("t9"), "a", "b", "kept"},
		{"the source ends, and the target is gone", ending("a", "f10"), gonePod("t10"), "a", "b", "f10 -> t10"},
		{"both are gone, and the target's node does not answer", gonePod("f11"), gonePod("t11"), "a", "away", "t11"},
		{"the target has ended", runs("a", "f12"), ended("b", "t12"), "a", "b", "f12"},
		{"the target has ended, and its node is dead", runs("a", "f13"), ended("dead", "t13"), "a", "dead", "f13"},
		{"the target is on another node than it says", runs("a", "f14"), runs("a", "t14"), "a", "b", "f14"},
		{"the source has ended", ended("a", "f15"), runs("b", "t15"), "a", "b", "t15"},
	} {
		address := fmt.Sprintf("10.0.0.%d", i+1)
		c.moving(t, rig.IPAMClaim(t, c.core(), c.NS, fmt.Sprint("vm", i), "net"), address, tc.from, tc.to, tc.fromNode, tc.toNode)
		defer func() {
			if c.wantMoving(t, address, tc.want); t.Failed() {
				t.Log(tc.what)
			}
		}()
	}
	c.run(t, controller.Options{Resync: time.Second, ReclaimGrace: time.Second, ReclaimGraceReadyNode: 2 * time.Second})
	c.wantMoving(t, "10.0.0.10", "kept") // which takes the longest
	c.wantMoving(t, "10.0.0.8", "f7")
	c.wantClaim(t, "vm2", "[10.0.0.3/24] t2 IPsAllocated=True SuccessfulAllocation")
	c.WantEvent(t, "which the machine moved, has it now")
	for range 3 { // for what is to stay
		c.nextSecond(t)
	}
}
