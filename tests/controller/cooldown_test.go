// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// rest stores an allocation that was released at a time and rests for so long.
func (c *cluster) rest(t *testing.T, poolName, address, node string, at time.Time, d time.Duration) {
	t.Helper()
	a := c.allocation(at.Add(-time.Hour), "rests"+address, poolName, address, node, v1alpha1.PodReference{Namespace: c.NS, Name: "gone", UID: gone})
	a.Spec.ReleaseCooldown, a.Spec.ReleasedAt = &metav1.Duration{Duration: d}, &metav1.Time{Time: at}
	c.create(t, a)
}

func (c *cluster) wantCooling(t *testing.T, name string, used, cooling int64) {
	t.Helper()
	rig.Until(t, func() string {
		s := c.GetPool(t, name).Status
		if s.Used != nil && *s.Used == used && s.Cooling != nil && *s.Cooling == cooling {
			return ""
		}
		text, _ := json.Marshal(s)
		return fmt.Sprintf("status is %s, want %d used, %d cooling", text, used, cooling)
	})
}

// Addresses that rest are counted apart, keep no block, and fill it nevertheless. What has
// rested is deleted, by whichever clock comes first.
func TestCooldown(t *testing.T) {
	c := newCluster(t)
	node := c.Node(t, "a", nil)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: 3})
	c.Pool(t, "quiet", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/29", PerNodeBlockSize: 3})
	now := time.Now()
	c.hold(t, "b", "10.0.0.1", "a", c.startPodOn(t, node.Name, "p", nil))
	c.rest(t, "b", "10.0.0.2", "a", now, time.Hour)
	c.rest(t, "b", "10.0.0.3", "a", now, time.Hour)
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantCooling(t, "b", 1, 2)
	c.wantNotice(t, "b", v1alpha1.ConditionBlockFull, "a (1 of 3, while 2 rest after their release, held)")
	if s := c.GetPool(t, "quiet").Status; s.Cooling != nil {
		t.Errorf("a pool without a cooldown has the count %d", *s.Cooling)
	}

	c.rest(t, "b", "10.0.0.4", "a", now.Add(-2*time.Hour), time.Hour)     // over
	c.rest(t, "b", "10.0.0.5", "a", now.Add(1000*time.Hour), time.Second) // a node's clock is ahead
	rig.Until(t, func() string { return strings.Join(missing(c.Held(t), "10.0.0.1", "10.0.0.2", "10.0.0.3"), " ") })
	for _, e := range c.Events(t) {
		if strings.Contains(e, "Reclaimed") {
			t.Error(e)
		}
	}
}

// missing says how what is held differs from what is wanted.
func missing(held []string, want ...string) (out []string) {
	if fmt.Sprint(held) != fmt.Sprint(want) {
		out = append(out, fmt.Sprintf("held %v, want %v", held, want))
	}
	return out
}

// A node's block is not kept for what only rests in it.
func TestCooldownKeepsNoBlock(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: 3})
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantPool(t, "b", "BlocksAssigned", "a 10.0.0.1 10.0.0.3")
	pod := c.startPodOn(t, "a", "p", nil)
	a := c.allocation(time.Now(), "c1", "b", "10.0.0.1", "a", pod)
	a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Hour}
	c.create(t, a)
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "b", "BlocksAssigned", "a 10.0.0.1 10.0.0.3")
	patch := fmt.Sprintf(`{"spec":{"releasedAt":%q}}`, time.Now().UTC().Format(time.RFC3339))
	if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), a.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantPool(t, "b", "BlocksAssigned")
}

// What is leaked rests as well: the controller ends it as its DEL would have.
func TestLeakRests(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "b", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: 3})
	a := c.allocation(time.Now().Add(-time.Hour), "c1", "b", "10.0.0.1", "a", v1alpha1.PodReference{Namespace: c.NS, Name: "gone", UID: gone})
	a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Hour}
	c.create(t, a)
	c.run(t, controller.Options{})
	rig.Until(t, func() string {
		now, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), a.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !now.Spec.Released() || now.Labels[v1alpha1.LabelReleased] != "true" || now.Spec.ContainerID != "c1" {
			return fmt.Sprintf("not released: %+v %v", now.Spec, now.Labels)
		}
		return ""
	})
}
