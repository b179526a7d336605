// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
)

// statefulSet makes one of which no controller makes pods.
func (c *cluster) statefulSet(t *testing.T, name string, replicas, first int32) *appsv1.StatefulSet {
	t.Helper()
	labels := map[string]string{"app": name}
	set, err := c.Kube.AppsV1().StatefulSets(c.NS).Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Ordinals: &appsv1.StatefulSetOrdinals{Start: first}, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func (c *cluster) deleteSet(t *testing.T, name string, how metav1.DeletionPropagation) {
	t.Helper()
	if err := c.Kube.AppsV1().StatefulSets(c.NS).Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &how}); err != nil {
		t.Fatal(err)
	}
}

// sticky is what a StatefulSet keeps for one of its pods. Without a container it is a proposal.
func (c *cluster) sticky(t *testing.T, set *appsv1.StatefulSet, pod, container, address string, released bool) {
	t.Helper()
	a := c.allocation(time.Now(), container, "p", address, "a", v1alpha1.PodReference{Namespace: c.NS, Name: pod, UID: gone})
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: c.NS, Name: set.Name, UID: set.UID}
	a.Labels = v1alpha1.AllocationLabels(&a.Spec)
	if released {
		a.Spec.ReleasedAt = &metav1.Time{Time: time.Now()}
	}
	c.create(t, a)
}

// release is the DEL of a container.
func (c *cluster) giveUp(t *testing.T, address string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"releasedAt":%q}}`, time.Now().UTC().Format(time.RFC3339))
	if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), "p."+address, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A StatefulSet keeps the addresses of its pods until it goes. What a pod has besides its
// address is deleted.
func TestSticky(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 14, PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{"StatefulSet"}}})
	web, db := c.statefulSet(t, "web", 1, 0), c.statefulSet(t, "db", 1, 0)
	c.sticky(t, web, "web-0", "c0", "10.0.0.1", true)
	c.sticky(t, web, "web-7", "c7", "10.0.0.2", true) // scaled down
	c.sticky(t, web, "web-8", "", "10.0.0.3", false)  // its plugin was killed
	c.sticky(t, db, "db-0", "c1", "10.0.0.4", true)
	c.sticky(t, db, "db-0", "", "10.0.0.5", false)   // superseded by .6
	c.sticky(t, db, "db-0", "c2", "10.0.0.6", false) // .4 did not fit for a while: superseded by this
	other := web.DeepCopy()
	other.UID = "another-of-the-name"
	c.sticky(t, other, "web-0", "c9", "10.0.0.7", true)
	c.run(t, controller.Options{Resync: time.Second, ReclaimGraceReadyNode: time.Hour, ReclaimGrace: time.Hour})
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.6")

	c.deleteSet(t, "web", metav1.DeletePropagationBackground)
	c.wantHeld(t, "10.0.0.6")
	c.deleteSet(t, "db", metav1.DeletePropagationForeground) // which waits for its pods
	c.giveUp(t, "10.0.0.6")
	c.wantHeld(t)
}

// A leak of a StatefulSet's address is released, and not deleted.
func TestStickyLeak(t *testing.T) {
	c := newCluster(t)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 14, PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{"StatefulSet"}}})
	c.sticky(t, c.statefulSet(t, "web", 1, 0), "web-0", "c0", "10.0.0.1", false) // its node is gone
	c.run(t, controller.Options{ReclaimGrace: time.Millisecond})
	c.wantSpec(t, "p.10.0.0.1", func(s *v1alpha1.IPAllocationSpec) bool { return s.Released() && s.ContainerID == "c0" })
}

// An edit of the pool that collides with an address which a pod has and keeps is told, as with
// any other.
func TestStickyUnderAnEdit(t *testing.T) {
	c := newCluster(t)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{"StatefulSet"}}})
	c.sticky(t, c.statefulSet(t, "web", 2, 0), "web-0", "c0", "10.0.0.5", false)
	c.run(t, controller.Options{Usage: time.Millisecond, ReclaimGrace: time.Hour})
	for _, e := range []struct{ patch, condition, message string }{
		{`{"spec":{"gateway":"10.0.0.5"}}`, v1alpha1.ConditionEarlierSpecInUse, "addresses that are a gateway now 10.0.0.5 (held on node a)"},
		{`{"spec":{"gateway":null,"exclusions":[{"startIP":"10.0.0.5","endIP":"10.0.0.5"}]}}`, v1alpha1.ConditionEarlierSpecInUse, "addresses 10.0.0.5"},
		{`{"spec":{"subnet":"10.0.1.0/24","exclusions":null}}`, v1alpha1.ConditionForeignAddresses, "1 addresses of nodes a (1, as 10.0.0.5)"},
	} {
		if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "p", types.MergePatchType, []byte(e.patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		c.wantNotice(t, "p", e.condition, e.message)
	}
}

// A pool that is not sticky any more keeps nothing but what containers hold.
func TestStickyNoMore(t *testing.T) {
	c := newCluster(t)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 14, PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{"StatefulSet"}}})
	c.Node(t, "a", nil)
	set := c.statefulSet(t, "web", 2, 0)
	c.sticky(t, set, "web-0", "c0", "10.0.0.1", true)
	c.sticky(t, set, "web-1", "c1", "10.0.0.2", false)
	c.run(t, controller.Options{Resync: time.Second, ReclaimGraceReadyNode: time.Hour})
	c.wantHeld(t, "10.0.0.1", "10.0.0.2")
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "p", types.MergePatchType, []byte(`{"spec":{"sticky":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.2")
}

// The pool that replaces another one of its domain says what is kept of both.
func TestStickyInReplacedPool(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	sticky := []v1alpha1.StickyKind{"StatefulSet"}
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PoolAccess: v1alpha1.PoolAccess{Sticky: sticky}})
	set := c.statefulSet(t, "web", 1, 0)
	c.sticky(t, set, "web-0", "c0", "10.0.0.1", true)
	c.sticky(t, set, "web-7", "c7", "10.0.0.2", true) // scaled down
	c.Pool(t, "p2", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PoolAccess: v1alpha1.PoolAccess{Domain: "p", Sticky: sticky}})
	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{Resync: time.Second, ReclaimGraceReadyNode: time.Hour, ReclaimGrace: time.Hour})
	for _, e := range []struct {
		patch string
		held  []string
	}{
		{`{"spec":{"stickyWhenScaled":"Delete"}}`, []string{"10.0.0.1"}},
		{`{"spec":{"sticky":null,"stickyWhenScaled":null}}`, nil},
	} {
		if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "p2", types.MergePatchType, []byte(e.patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		c.wantHeld(t, e.held...)
	}
}

// With stickyWhenScaled: Delete the StatefulSet keeps only what its pods need.
func TestStickyWhenScaled(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 14, PoolAccess: v1alpha1.PoolAccess{
		Sticky: []v1alpha1.StickyKind{"StatefulSet"}, StickyWhenScaled: v1alpha1.StickyDelete,
	}})
	set := c.statefulSet(t, "web", 2, 3)
	for i := range 7 {
		c.sticky(t, set, fmt.Sprintf("web-%d", i), fmt.Sprintf("c%d", i), fmt.Sprintf("10.0.0.%d", i+1), true)
	}
	c.run(t, controller.Options{Resync: time.Second})
	c.wantHeld(t, "10.0.0.4", "10.0.0.5")
	if _, err := c.Kube.AppsV1().StatefulSets(c.NS).Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.4")
}
