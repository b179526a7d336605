// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func (c *cluster) reservation(t *testing.T, name, poolName string, addresses ...string) {
	t.Helper()
	_, err := c.IPAM.IPReservations(c.NS).Create(t.Context(), &v1alpha1.IPReservation{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPReservationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: poolName}, Addresses: addresses, Reason: "a machine outside",
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) editReservation(t *testing.T, name, spec string) {
	t.Helper()
	if _, err := c.IPAM.IPReservations(c.NS).Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":`+spec+`}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// wantReservation waits for what a reservation says: how many are kept, of how many, and a
// part of the message.
func (c *cluster) wantReservation(t *testing.T, name, reason string, kept, wanted int32, parts ...string) {
	t.Helper()
	rig.Until(t, func() string {
		res, err := c.IPAM.IPReservations(c.NS).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s := res.Status
		told := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
		if told == nil || told.Reason != reason || s.Kept != kept || s.Wanted != wanted || s.ObservedGeneration != res.Generation || told.ObservedGeneration != res.Generation {
			return fmt.Sprintf("status is %+v, want %s, %d of %d", s, reason, kept, wanted)
		}
		for _, part := range parts {
			if !strings.Contains(told.Message, part) {
				return fmt.Sprintf("message is %q, want %q in it", told.Message, part)
			}
		}
		return ""
	})
}

// wantSpec waits until an allocation is as want says it should be.
func (c *cluster) wantSpec(t *testing.T, name string, want func(*v1alpha1.IPAllocationSpec) bool) {
	t.Helper()
	rig.Until(t, func() string {
		a, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if !want(&a.Spec) {
			return fmt.Sprintf("%s is %+v", name, a.Spec)
		}
		return ""
	})
}

// A reservation keeps what is free and what only rests, and says who holds the others; it
// keeps them when they are released. What it does not name any more is freed.
func TestReservation(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 8, PoolAccess: v1alpha1.PoolAccess{Domain: "net"}})
	c.reservation(t, "r", "b", "10.0.0.2", "10.0.0.4-10.0.0.6", "10.0.0.5")
	hold := func(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
		a.Name, a.Spec.Domain = "net."+a.Spec.Address, "net"
		c.create(t, a)
		return a
	}
	held := hold(c.allocation(time.Now(), "c1", "b", "10.0.0.4", "a", c.startPodOn(t, "a", "p", nil)))
	rests := c.allocation(time.Now(), "c2", "b", "10.0.0.5", "a", v1alpha1.PodReference{Namespace: c.NS, Name: "gone", UID: gone})
	rests.Spec.ReleaseCooldown, rests.Spec.ReleasedAt = &metav1.Duration{Duration: time.Hour}, &metav1.Time{Time: time.Now()}
	hold(rests)
	w, _ := c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantReservation(t, "r", "HeldByOthers", 3, 4, "3 of 4 addresses are kept", "10.0.0.4 is held by pod "+c.NS+"/p on node a")
	c.wantSpec(t, "net.10.0.0.5", func(s *v1alpha1.IPAllocationSpec) bool {
		return s.ContainerID == "" && s.ReleasedAt == nil && s.NodeName == "" && s.PodRef.Name == "" && s.Owner != nil && s.Owner.Name == "r" && s.Owner.Kind == "IPReservation"
	})
	if a, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), "net.10.0.0.5", metav1.GetOptions{}); err != nil || len(a.Labels) != 2 {
		t.Errorf("labels are %v, %v", a.Labels, err)
	}
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), held.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantReservation(t, "r", "Reserved", 4, 4, "all 4 addresses are kept")
	writes := len(w.of("ipreservations"))
	if writes > 3 { // kept 3, kept 4; one more if the allocations came one by one
		t.Errorf("%d writes of the reservation: %q", writes, w.of("ipreservations"))
	}

	c.editReservation(t, "r", `{"addresses":["10.0.0.2"],"pod":{"namespace":"ml","name":"train-0"}}`)
	c.wantReservation(t, "r", "Reserved", 1, 1)
	c.wantSpec(t, "net.10.0.0.2", func(s *v1alpha1.IPAllocationSpec) bool {
		return s.PodRef == v1alpha1.PodReference{Namespace: "ml", Name: "train-0"}
	})
	c.wantHeld(t, "10.0.0.2")

	if err := c.IPAM.IPReservations(c.NS).Delete(t.Context(), "r", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t)
}

// An address that the reservation's pod has outlives the reservation, as long as the pod
// has it.
func TestReservationEndsUnderItsPod(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 8})
	c.reservation(t, "r", "b", "10.0.0.2")
	pod := c.startPodOn(t, "a", "p", nil)
	c.editReservation(t, "r", fmt.Sprintf(`{"pod":{"namespace":%q,"name":"p"}}`, c.NS))
	c.run(t, controller.Options{})
	c.wantReservation(t, "r", "Reserved", 1, 1)
	patch := fmt.Sprintf(`{"spec":{"nodeName":"a","containerID":"c1","interfaceName":"net1","podRef":{"uid":%q}}}`, pod.UID)
	if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), "b.10.0.0.2", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.IPAM.IPReservations(c.NS).Delete(t.Context(), "r", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.reservation(t, "other", "b", "10.0.0.2-10.0.0.3") // the later one waits for it
	c.wantReservation(t, "other", "HeldByOthers", 1, 2, "10.0.0.2 is held by pod")
	patch = fmt.Sprintf(`{"spec":{"releasedAt":%q}}`, time.Now().UTC().Format(time.RFC3339))
	if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), "b.10.0.0.2", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantReservation(t, "other", "Reserved", 2, 2)
}

// An address that a reservation keeps and no container holds is no reason for a block, either:
// that of a node which is gone is another's when the container has ended.
func TestReservedAddressKeepsNoBlock(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Node(t, "b", nil)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 7})
	c.reservation(t, "r", "p", "10.0.0.3")
	c.editReservation(t, "r", fmt.Sprintf(`{"pod":{"namespace":%q,"name":"p0"}}`, c.NS))
	res, err := c.IPAM.IPReservations(c.NS).Get(t.Context(), "r", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := c.allocation(time.Now(), "c1", "p", "10.0.0.3", "a", c.startPodOn(t, "a", "p0", nil))
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: c.NS, Name: "r", UID: res.UID}
	c.create(t, a)
	c.run(t, controller.Options{ReclaimGrace: time.Hour, Usage: time.Hour})
	c.wantPool(t, "p", "BlocksAssigned", "a 10.0.0.1 10.0.0.7", "b 10.0.0.8 10.0.0.14")
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Node(t, "new", nil)
	c.wantPool(t, "p", "NoFreeRanges", "a 10.0.0.1 10.0.0.7", "b 10.0.0.8 10.0.0.14")
	c.giveUp(t, "10.0.0.3")
	c.wantPool(t, "p", "BlocksAssigned", "new 10.0.0.1 10.0.0.7", "b 10.0.0.8 10.0.0.14")
}

func TestReservationThatCannotBe(t *testing.T) {
	c := newCluster(t)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 8})
	c.reservation(t, "nowhere", "none", "10.0.0.2")
	c.reservation(t, "outside", "b", "10.1.0.2")
	c.reservation(t, "backwards", "b", "10.0.0.9-10.0.0.2")
	c.reservation(t, "large", "b", "10.0.0.0-10.0.4.0")
	c.reservation(t, "largest", "b", "10.0.0.0-10.0.3.255", "10.0.0.7")
	c.run(t, controller.Options{})
	c.wantReservation(t, "nowhere", "PoolNotFound", 0, 0, "IPPool none does not exist in namespace "+c.NS)
	c.wantReservation(t, "outside", "InvalidSpec", 0, 0, "spec.addresses[0]", "10.1.0.2", "not part of the subnet 10.0.0.0/16")
	c.wantReservation(t, "backwards", "InvalidSpec", 0, 0, "the last address must not be less than the first")
	c.wantReservation(t, "large", "InvalidSpec", 0, 0, "more than 1024 addresses")
	c.wantReservation(t, "largest", "Reserved", 1024, 1024)
	c.Pool(t, "none", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 8, PoolAccess: v1alpha1.PoolAccess{Domain: "other"}})
	c.wantReservation(t, "nowhere", "Reserved", 1, 1)
}
