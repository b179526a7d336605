// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const poolName = "p"

// cluster is nodes with role and policy in force, and one pool.
type cluster struct {
	*rig.Cluster

	live   ledger
	counts counts
	losing sync.RWMutex        // for writing while the record is lost
	set    *appsv1.StatefulSet // of the pods that keep their addresses; nil if none do
	ended  atomic.Bool         // nothing may rest or be kept either
}

const setName = "web"

func newCluster(ctx context.Context, t *testing.T, env *testenv.Env, v *version) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env)}
	c.install(ctx, t, v)
	for i := range nodes {
		c.Node(t, nodeName(i), nil)
	}
	if _, err := c.IPAM.IPPools(c.NS).Create(ctx, fullPool(*attachments), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if *kept {
		labels := map[string]string{"app": setName}
		set, err := c.Kube.AppsV1().StatefulSets(c.NS).Create(ctx, &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Name: setName},
			Spec: appsv1.StatefulSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.set = set
	}
	return c
}

// endSet deletes the StatefulSet: nothing keeps the addresses of its pods any more.
func (c *cluster) endSet(ctx context.Context, t *testing.T) {
	t.Helper()
	if c.set == nil {
		return
	}
	err := insist(ctx, func() error {
		err := c.Kube.AppsV1().StatefulSets(c.NS).Delete(ctx, setName, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// fullPool is the smallest pool with room for blocks of n addresses in all. The
// last tenth of every block is kept for those who ask for it. Without blocks, the same
// addresses are in the pool.
func fullPool(n int) *v1alpha1.IPPool {
	block := n / nodes
	p := &v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: poolName},
		Spec:       v1alpha1.IPPoolSpec{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 32-bits.Len(uint(n+1))).String()},
	}
	if !*shared {
		p.Spec.PerNodeBlockSize = block
		p.Spec.PerNodeExclusions = []v1alpha1.ExcludeIndexRange{{StartIndex: int32(block - block/10), EndIndex: int32(block - 1)}}
		return p
	}
	if *kept { // what a killed plugin has reserved is not free at once
		p.Spec.Subnet = netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 31-bits.Len(uint(n+1))).String()
		p.Spec.Sticky, p.Spec.ReleaseCooldown = []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}, &metav1.Duration{Duration: 2 * time.Second}
		p.Spec.Ranges = append(p.Spec.Ranges, fmt.Sprintf("%s-%s", after(firsts(block)[nodeName(0)], n), after(firsts(block)[nodeName(0)], 2*n-4)))
	}
	for _, first := range firsts(block) {
		p.Spec.Ranges = append(p.Spec.Ranges, fmt.Sprintf("%s-%s", first, after(first, block-block/10-1)))
	}
	return p
}

// firsts returns the first addresses of blocks of a size by node, as the controller gives
// them.
func firsts(block int) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for i := range nodes {
		out[nodeName(i)] = after(netip.MustParseAddr("10.0.0.1"), i*block)
	}
	return out
}

func after(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}

// blocks waits until the controller has given every node its block, and returns
// their first addresses by node. A pool without blocks gives them none.
func (c *cluster) blocks(ctx context.Context, t *testing.T) map[string]netip.Addr {
	t.Helper()
	if *shared {
		return firsts(*attachments / nodes)
	}
	for {
		p, err := c.IPAM.IPPools(c.NS).Get(ctx, poolName, metav1.GetOptions{})
		if err == nil && len(p.Status.Allocations) == nodes {
			first := map[string]netip.Addr{}
			for _, a := range p.Status.Allocations {
				first[a.NodeName] = netip.MustParseAddr(a.StartIP)
			}
			return first
		}
		if !pause(ctx, 100*time.Millisecond) {
			t.Fatalf("only %d nodes have a block: %v", len(p.Status.Allocations), err)
		}
	}
}

// allocations returns the container that holds each address.
func (c *cluster) allocations(ctx context.Context) (map[string]string, error) {
	list, err := c.IPAM.IPAllocations(c.NS).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	held := map[string]string{}
	for _, a := range list.Items {
		if a.Spec.Held() || c.ended.Load() {
			held[a.Spec.Address] = a.Spec.ContainerID
		}
	}
	return held, nil
}

// watch compares what is live with what is held, again and again.
func (c *cluster) watch(ctx context.Context, t *testing.T) {
	for pause(ctx, 500*time.Millisecond) {
		c.look(ctx, t)
	}
}

func (c *cluster) look(ctx context.Context, t *testing.T) {
	c.losing.RLock()
	defer c.losing.RUnlock()
	before := c.live.snapshot()
	listed, err := c.allocations(ctx)
	if err != nil { // the API server is away
		return
	}
	for _, wrong := range compare(before, listed, c.live.snapshot()) {
		t.Error(wrong)
	}
	c.counts.looks.Add(1)
}

// wantAllHeld wants every address of the pool to be held by the container that
// answers on it.
func (c *cluster) wantAllHeld(ctx context.Context, t *testing.T) {
	t.Helper()
	live := c.live.snapshot()
	if len(live) != *attachments {
		t.Errorf("%d containers are live, want %d", len(live), *attachments)
	}
	for {
		listed := c.mustList(ctx, t)
		for _, wrong := range compare(live, listed, live) {
			t.Error(wrong)
		}
		if len(listed) == *attachments {
			return
		}
		// With room to spare, what has leaked need not have been reclaimed yet.
		if !*kept || t.Failed() || !pause(ctx, 200*time.Millisecond) {
			t.Errorf("%d addresses are held, want %d", len(listed), *attachments)
			return
		}
	}
}

// wantNoneHeld waits until everything is given back: by plugins that owe it, or
// by the controller.
func (c *cluster) wantNoneHeld(ctx context.Context, t *testing.T) {
	t.Helper()
	c.ended.Store(true)
	for {
		listed := c.mustList(ctx, t)
		if len(listed) == 0 {
			return
		}
		if !pause(ctx, 200*time.Millisecond) {
			t.Fatalf("%d addresses leaked: %v", len(listed), listed)
		}
	}
}

// mustList lists as soon as the API server answers.
func (c *cluster) mustList(ctx context.Context, t *testing.T) (listed map[string]string) {
	t.Helper()
	err := insist(ctx, func() (err error) {
		listed, err = c.allocations(ctx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return listed
}

// insist calls f until it succeeds or ctx ends: the API server comes back.
func insist(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || !pause(ctx, 200*time.Millisecond) {
			return err
		}
	}
}
