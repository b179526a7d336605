// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func restingPool(t *testing.T, d time.Duration) *cluster {
	t.Helper()
	c := emptyCluster(t)
	rig.IPPool(t, c.client, c.ns, "p", v1alpha1.IPPoolSpec{
		Subnet: "10.0.0.0/24", PerNodeBlockSize: 3, PoolAccess: v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: d}},
	}, "a", "b")
	return c
}

func (c *cluster) get(t *testing.T, name string) *v1alpha1.IPAllocation {
	t.Helper()
	a, err := c.client.IPAllocations(c.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A container has its address again, under the same UID. The release of before, which
// arrives only now, ends nothing of that.
func TestLateReleaseOfTheSameContainer(t *testing.T) {
	c := restingPool(t, time.Hour)
	n := newNode(t, c.ns, "a")
	addr := n.mustAdd(t, "c1", ippool("p"))
	first := c.get(t, "p."+addr)
	n.mustDel(t, "c1")
	if again := n.mustAdd(t, "c1", ippool("p"), addr); again != addr {
		t.Fatalf("got %s, had %s", again, addr)
	}
	second := c.get(t, "p."+addr)
	if !second.Spec.Held() || second.UID != first.UID {
		t.Fatalf("not taken over: %+v", second.Spec)
	}
	late := ledger.Holding{Name: first.Name, UID: first.UID, ContainerID: first.Spec.ContainerID, Interface: "net1", Started: first.Spec.AddStartedAt.UnixMicro()}
	released, err := n.Ledger.ReleaseKept(t.Context(), late, time.Now())
	if err != nil || released != nil {
		t.Errorf("released %+v, %v", released, err)
	}
	if now := c.get(t, "p."+addr); !now.Spec.Held() || now.ResourceVersion != second.ResourceVersion {
		t.Errorf("changed: %+v", now.Spec)
	}
}

// The pool is replaced by another one of its domain: what has rested is found there, before the
// controller deletes it.
func TestRestedInReplacedPool(t *testing.T) {
	access := v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Second}}
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: access})
	n := newNode(t, c.ns, "a")
	var last string
	for _, container := range []string{"c1", "c2"} {
		last = n.mustAdd(t, container, ippool("p"))
		n.mustDel(t, container)
	}
	access.Domain = "p"
	rig.IPPool(t, c.client, c.ns, "p2", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: access})
	over := c.get(t, "p."+last).Spec.ReusableAt()
	rig.Eventually(t, "the cooldown is over", func() bool { return !time.Now().Before(over) })
	newNode(t, c.ns, "b").mustAdd(t, "d", ippool("p2"))
}

// The cooldown is taken out of the pool: what has rested by then is found before the controller
// deletes it.
func TestCooldownTakenOutOfThePool(t *testing.T) {
	c := newShared(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Second}}})
	n := newNode(t, c.ns, "a")
	var last string
	for _, container := range []string{"c1", "c2"} {
		last = n.mustAdd(t, container, ippool("p"))
		n.mustDel(t, container)
	}
	patch := []byte(`{"spec":{"releaseCooldown":null}}`)
	if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Seen(t, c.client, c.ns, "p")
	over := c.get(t, "p."+last).Spec.ReusableAt()
	rig.Eventually(t, "the cooldown is over", func() bool { return !time.Now().Before(over) })
	newNode(t, c.ns, "b").mustAdd(t, "d", ippool("p"))
}

// Of many who want what has rested, one gets it.
func TestTakeoverIsARace(t *testing.T) {
	c := restingPool(t, time.Second)
	n := newNode(t, c.ns, "a")
	addr := n.mustAdd(t, "c1", ippool("p"))
	n.mustDel(t, "c1")
	over := c.get(t, "p."+addr).Spec.ReusableAt()
	rig.Eventually(t, "the cooldown is over", func() bool { return !time.Now().Before(over) })
	var got atomic.Int32
	var all sync.WaitGroup
	for i, name := range []string{"a", "b", "b", "a", "b", "b"} {
		n := newNode(t, c.ns, name)
		container := "d" + string(rune('0'+i))
		all.Go(func() {
			if _, err := n.add(t.Context(), container, ippool("p"), addr); err == nil {
				got.Add(1)
			} else if asInUse(err) == nil {
				t.Errorf("%s: %v", container, err)
			}
		})
	}
	all.Wait()
	if got.Load() != 1 {
		t.Errorf("%d have the address", got.Load())
	}
}

// The answer to a takeover is lost: it is the container's own.
func TestTakeoverWithoutAnswer(t *testing.T) {
	for _, what := range []loss{request, response} {
		c := restingPool(t, time.Hour)
		n := newNode(t, c.ns, "a")
		addr := n.mustAdd(t, "c1", ippool("p"))
		uid := c.get(t, "p."+addr).UID
		n.mustDel(t, "c1")
		n.wire.setLose(loseFirst(http.MethodPatch, what))
		if again := n.mustAdd(t, "c1", ippool("p"), addr); again != addr {
			t.Fatalf("got %s, had %s", again, addr)
		}
		n.wire.setLose(nil)
		if now := c.get(t, "p."+addr); !now.Spec.Held() || now.UID != uid {
			t.Errorf("not taken over: %+v", now.Spec)
		}
	}
}

// So is the answer to a release, and it is noted if there is none in time.
func TestReleaseWithoutAnswer(t *testing.T) {
	for _, what := range []loss{request, response} {
		c := restingPool(t, time.Hour)
		n := newNode(t, c.ns, "a")
		addr := n.mustAdd(t, "c1", ippool("p"))
		n.wire.setLose(loseFirst(http.MethodPatch, what))
		n.mustDel(t, "c1")
		n.wire.setLose(nil)
		now := c.get(t, "p."+addr)
		if !now.Spec.Released() || len(due(n.hint())) != 0 {
			t.Errorf("%+v, pending %v", now.Spec, due(n.hint()))
		}
	}
}

// A claim of a pool without a cooldown, and its DEL, are as they were before there was any.
func TestWithoutCooldown(t *testing.T) {
	c := newCluster(t, 4, "a")
	n := newNode(t, c.ns, "a")
	n.mustDel(t, "warm-up") // a new node asks once what it holds
	addr := n.mustAdd(t, "c1", ippool("p"))
	a := c.get(t, "p."+addr)
	if a.Spec.IsKept() || a.Spec.ReleasedAt != nil {
		t.Errorf("%+v", a.Spec)
	}
	entries, _ := n.hint().Holding(pod("c1"))
	if len(entries) != 1 || entries[0].Kept {
		t.Errorf("entries %+v", entries)
	}
	n.wire.take()
	n.mustDel(t, "c1")
	wantRequests(t, n, "DELETE ipallocations/p."+addr)
	c.wantHeld(t)
}
