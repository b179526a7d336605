// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

var (
	ipRef   = v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}
	cidrRef = v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "pool1"}
)

func ippool(blocks []v1alpha1.Allocation) *v1alpha1.IPPool {
	return &v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool1", UID: "pool", ResourceVersion: "3", Generation: 2},
		Spec:       v1alpha1.IPPoolSpec{Subnet: "192.168.0.0/24", PerNodeBlockSize: 100},
		Status:     v1alpha1.IPPoolStatus{Allocations: blocks},
	}
}

func cidrpool(blocks []v1alpha1.CIDRPoolAllocation) *v1alpha1.CIDRPool {
	return &v1alpha1.CIDRPool{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool1", UID: "pool", ResourceVersion: "3", Generation: 2},
		Spec:       v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 17},
		Status:     v1alpha1.CIDRPoolStatus{Allocations: blocks},
	}
}

func (w *world) nodesNamed(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := w.caches.nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}); err != nil {
			t.Fatal(err)
		}
	}
}

// patches answers status patches as the test wants and keeps them.
func (w *world) patches(answer func() any) *[]clienttesting.PatchActionImpl {
	var all []clienttesting.PatchActionImpl
	w.rest.RoundTripper = roundTripper(func(req *http.Request) (*http.Response, error) {
		sent, err := io.ReadAll(req.Body)
		if err != nil || req.Method != http.MethodPatch {
			return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL, err)
		}
		patch := clienttesting.PatchActionImpl{PatchType: types.PatchType(req.Header.Get("Content-Type")), Patch: sent}
		patch.Subresource = path.Base(req.URL.Path)
		all = append(all, patch)
		body, err := json.Marshal(answer())
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body))}, err
	})
	return &all
}

// holding is an address that nobody requested.
func holding(node, address string) []pool.Held {
	return []pool.Held{{Node: node, Addr: netip.MustParseAddr(address)}}
}

// The numbers are those of blockReconciler; the rows of both kinds go one way.
func TestBlocks(t *testing.T) {
	badIP, badCIDR := ippool(nil), cidrpool(nil)
	badIP.Spec.Gateway, badCIDR.Spec.PerNodeNetworkPrefix = "10.0.0.1", 8
	kept, keptCIDR := ippool([]v1alpha1.Allocation{{NodeName: "a", StartIP: "192.168.0.1", EndIP: "192.168.0.100"}}),
		cidrpool([]v1alpha1.CIDRPoolAllocation{{NodeName: "a", Prefix: "10.60.0.0/17"}})
	kept.Spec.Gateway, keptCIDR.Spec.PerNodeNetworkPrefix = "10.0.0.1", 8
	held := ippool([]v1alpha1.Allocation{{NodeName: "gone", StartIP: "192.168.0.1", EndIP: "192.168.0.100"}})

	for _, tc := range []struct {
		name     string
		ref      v1alpha1.PoolReference
		pool     any
		nodes    []string
		holds    []pool.Held
		want     string // of status.allocations; null leaves it alone
		reason   string
		message  string
		unserved []string
	}{
		{name: "1 room for all", ref: ipRef, pool: ippool(nil), nodes: []string{"b", "a"},
			want:   `[{"nodeName":"a","startIP":"192.168.0.1","endIP":"192.168.0.100"},{"nodeName":"b","startIP":"192.168.0.101","endIP":"192.168.0.200"}]`,
			reason: v1alpha1.ReasonBlocksAssigned, message: "every node that the pool selects has a block"},
		{name: "1 room for all", ref: cidrRef, pool: cidrpool(nil), nodes: []string{"b", "a"},
			want:   `[{"nodeName":"a","prefix":"10.60.0.0/17"},{"nodeName":"b","prefix":"10.60.128.0/17"}]`,
			reason: v1alpha1.ReasonBlocksAssigned, message: "every node that the pool selects has a block"},
		{name: "1 no nodes", ref: ipRef, pool: ippool(nil), want: `[]`, reason: v1alpha1.ReasonBlocksAssigned, message: "every node that the pool selects has a block"},
		{name: "1 a departed node holds addresses", ref: ipRef, pool: held, nodes: []string{"a"}, holds: holding("gone", "192.168.0.7"),
			want:   `[{"nodeName":"gone","startIP":"192.168.0.1","endIP":"192.168.0.100"},{"nodeName":"a","startIP":"192.168.0.101","endIP":"192.168.0.200"}]`,
			reason: v1alpha1.ReasonBlocksAssigned, message: "every node that the pool selects has a block"},
		{name: "1 a departed node holds none", ref: ipRef, pool: held, nodes: []string{"a"},
			want:   `[{"nodeName":"a","startIP":"192.168.0.1","endIP":"192.168.0.100"}]`,
			reason: v1alpha1.ReasonBlocksAssigned, message: "every node that the pool selects has a block"},
		{name: "2 no room for one", ref: ipRef, pool: ippool(nil), nodes: []string{"a", "b", "c"},
			want:   `[{"nodeName":"a","startIP":"192.168.0.1","endIP":"192.168.0.100"},{"nodeName":"b","startIP":"192.168.0.101","endIP":"192.168.0.200"}]`,
			reason: v1alpha1.ReasonNoFreeRanges, message: "no free ranges for 1 nodes: c", unserved: []string{"c"}},
		{name: "2 no room for one", ref: cidrRef, pool: cidrpool(nil), nodes: []string{"a", "b", "c"},
			want:   `[{"nodeName":"a","prefix":"10.60.0.0/17"},{"nodeName":"b","prefix":"10.60.128.0/17"}]`,
			reason: v1alpha1.ReasonNoFreeRanges, message: "no free ranges for 1 nodes: c", unserved: []string{"c"}},
		{name: "3 invalid, with blocks", ref: ipRef, pool: kept, nodes: []string{"b"}, want: `null`, reason: v1alpha1.ReasonInvalidSpec, message: "spec.gateway"},
		{name: "3 invalid, with blocks", ref: cidrRef, pool: keptCIDR, nodes: []string{"b"}, want: `null`, reason: v1alpha1.ReasonInvalidSpec, message: "spec.perNodeNetworkPrefix"},
		{name: "4 invalid from the start", ref: ipRef, pool: badIP, nodes: []string{"b"}, want: `[]`, reason: v1alpha1.ReasonInvalidSpec, message: "spec.gateway"},
		{name: "4 invalid from the start", ref: cidrRef, pool: badCIDR, nodes: []string{"b"}, want: `[]`, reason: v1alpha1.ReasonInvalidSpec, message: "spec.perNodeNetworkPrefix"},
	} {
		t.Run(string(tc.ref.Kind)+" "+tc.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			w.nodesNamed(t, tc.nodes...)
			obj := pool.ObjectOf(tc.pool)
			out := blocks(obj, obj.Blocks(), w.caches.nodes.all(), tc.holds)
			var allocations any
			if out.assigned != nil {
				allocations = obj.AllocationsFor(out.assigned)
			}
			if got, _ := json.Marshal(allocations); string(got) != tc.want {
				t.Errorf("allocations\n got %s\nwant %s", got, tc.want)
			}
			if out.ready.Reason != tc.reason || !strings.Contains(out.ready.Message, tc.message) {
				t.Errorf("condition %+v, want %s: %s", out.ready, tc.reason, tc.message)
			}
			if (out.ready.Status == metav1.ConditionTrue) != (tc.reason == v1alpha1.ReasonBlocksAssigned) {
				t.Errorf("Ready is %s with reason %s", out.ready.Status, tc.reason)
			}
			if !slices.Equal(out.unserved, tc.unserved) {
				t.Errorf("unserved %v, want %v", out.unserved, tc.unserved)
			}
		})
	}
}

func TestNoRoomCountsWhatItDoesNotName(t *testing.T) {
	var nodes []string
	for i := range 5000 {
		nodes = append(nodes, fmt.Sprintf("node-%04d", i))
	}
	got := noRoom(nodes)
	if want := "no free ranges for 5000 nodes: node-0000, node-0001, "; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " node-0009 and 4990 more") {
		t.Errorf("got %q", got)
	}
}

// What is written first, and what second; TestBlocksManager has by whom.
func TestStatusWrites(t *testing.T) {
	w := newWorld(t, Options{})
	w.nodesNamed(t, "a")
	p := ippool(nil)
	indexer := w.caches.pools[v1alpha1.PoolKindIPPool]
	if err := indexer.Add(p); err != nil {
		t.Fatal(err)
	}
	after := p.DeepCopy()
	after.ResourceVersion = "4"
	all := w.patches(func() any { return after })
	var awaited []string
	w.blocks.status.await = func(_ context.Context, obj *pool.Object) {
		awaited = append(awaited, fmt.Sprintf("%s after %d writes", obj.Meta.ResourceVersion, len(*all)))
	}
	if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
		t.Fatal(err)
	}
	if len(*all) != 2 {
		t.Fatalf("%d writes, want 2", len(*all))
	}
	if want := []string{"4 after 1 writes"}; !slices.Equal(awaited, want) {
		t.Errorf("awaited %q, want %q", awaited, want)
	}
	first, second := (*all)[0], (*all)[1]

	const blocks = `[{"nodeName":"a","startIP":"192.168.0.1","endIP":"192.168.0.100"}]`
	if got, want := string(first.Patch), `{"apiVersion":"nv-ipam.nvidia.com/v1alpha1","kind":"IPPool","metadata":{"name":"pool1","namespace":"ns","resourceVersion":"3"},"status":{"allocations":`+blocks+`}}`; got != want {
		t.Errorf("first\n got %s\nwant %s", got, want)
	}
	if first.PatchType != types.ApplyPatchType || first.Subresource != "status" {
		t.Errorf("first %s of %s", first.PatchType, first.Subresource)
	}
	if second.PatchType != types.MergePatchType || second.Subresource != "status" {
		t.Errorf("second %s of %s", second.PatchType, second.Subresource)
	}
	var body struct {
		Metadata metav1.ObjectMeta
		Status   v1alpha1.PoolStatus
	}
	if err := json.Unmarshal(second.Patch, &body); err != nil {
		t.Fatal(err)
	}
	if body.Metadata.ResourceVersion != "4" || body.Status.ObservedGeneration != 2 || len(body.Status.Conditions) != 1 || body.Status.Conditions[0].ObservedGeneration != 2 {
		t.Errorf("second: %s", second.Patch)
	}

	// That answer had no conditions: the CRD is nv-ipam's. Never again.
	if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
		t.Fatal(err)
	}
	if len(*all) != 3 || (*all)[2].PatchType != types.ApplyPatchType {
		t.Errorf("%d writes, want one more, an apply", len(*all))
	}

	// With the blocks applied there is nothing to do; applied by somebody else
	// there is.
	done := ippool([]v1alpha1.Allocation{{NodeName: "a", StartIP: "192.168.0.1", EndIP: "192.168.0.100"}})
	for manager, want := range map[string]int{pool.BlocksManager(pool.ObjectOf(done).Blocks()): 0, v1alpha1.BlocksManagerPrefix + "0123456789abcdef": 1, "nv-ipam": 1} {
		*all = nil
		done := done.DeepCopy()
		done.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: manager, Operation: metav1.ManagedFieldsOperationApply, Subresource: "status"}}
		if err := indexer.Update(done); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
		if len(*all) != want {
			t.Errorf("applied by %s: %d writes", manager, len(*all))
		}
	}
}

// A CRD that had the conditions and counts, and has them no more: the API server stores nothing of a
// patch, and says that they have their owner still.
func TestCRDLosesTheStatus(t *testing.T) {
	w := newWorld(t, Options{})
	w.nodesNamed(t, "a")
	p := ippool([]v1alpha1.Allocation{{NodeName: "a", StartIP: "192.168.0.1", EndIP: "192.168.0.100"}})
	p.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: pool.BlocksManager(pool.ObjectOf(p).Blocks()), Operation: metav1.ManagedFieldsOperationApply, Subresource: "status"},
		{Manager: name, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:conditions":{},"f:used":{}}}`)},
	}
	if err := w.caches.pools[v1alpha1.PoolKindIPPool].Add(p); err != nil {
		t.Fatal(err)
	}
	all := w.patches(func() any { return p })
	for range 3 {
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
	}
	if len(*all) != 1 {
		t.Errorf("%d writes, want one, to find out", len(*all))
	}
}

// Events say what is new, once.
func TestEvents(t *testing.T) {
	w := newWorld(t, Options{})
	answer := ippool(nil)
	w.patches(func() any { return answer })
	indexer := w.caches.pools[v1alpha1.PoolKindIPPool]
	reconcile := func(p *v1alpha1.IPPool, want ...string) {
		t.Helper()
		if err := indexer.Update(p); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
		if got := said(w); !slices.EqualFunc(got, want, strings.HasPrefix) {
			t.Fatalf("events %q, want %q", got, want)
		}
	}
	no := func(node string) string { return "Warning NoFreeRanges failed to allocate IPs on Node: " + node }
	w.nodesNamed(t, "a", "b")
	reconcile(ippool(nil))
	w.nodesNamed(t, "c", "d")
	reconcile(ippool(nil), no("c"), no("d"))
	reconcile(ippool(nil))
	w.nodesNamed(t, "e")
	reconcile(ippool(nil), no("e"))

	bad := ippool(nil)
	bad.Spec.Gateway = "10.0.0.1"
	reconcile(bad, "Warning InvalidSpec spec.gateway")
	reconcile(bad)
	worse := bad.DeepCopy()
	worse.Spec.Gateway = "10.0.0.2"
	reconcile(worse, "Warning InvalidSpec spec.gateway")

	// The pool was deleted and made again.
	again := worse.DeepCopy()
	again.UID = "another"
	answer = again
	reconcile(again, "Warning InvalidSpec spec.gateway")

	// After a restart the condition says what was said.
	w.memories.forget(ipRef)
	persisted := again.DeepCopy()
	persisted.Status.Conditions = []metav1.Condition{blocks(pool.ObjectOf(again), nil, nil, nil).ready}
	reconcile(persisted)
	full := ippool(nil)
	full.Status.Conditions = []metav1.Condition{blocks(pool.ObjectOf(full), nil, w.caches.nodes.all(), nil).ready}
	w.memories.forget(ipRef)
	reconcile(full)
	w.nodesNamed(t, "f")
	reconcile(full, no("f"))
}

// A pool that does not exist while addresses of it are held is told once, and again after
// it was there, or nothing was held.
func TestPoolGone(t *testing.T) {
	w := newWorld(t, Options{})
	answer := ippool(nil)
	w.patches(func() any { return answer })
	const gone = "Warning PoolGone IPPool pool1 does not exist, and 1 of its addresses are held."
	pools, allocations := w.caches.pools[v1alpha1.PoolKindIPPool], w.caches.allocations
	for i, step := range []struct {
		change func() error
		want   []string
	}{
		{func() error { return nil }, nil},
		{func() error { return allocations.Add(allocation()) }, []string{gone}},
		{func() error { return nil }, nil},
		{func() error { return pools.Add(ippool(nil)) }, nil},
		{func() error { return pools.Delete(ippool(nil)) }, []string{gone}},
		{func() error { return allocations.Delete(allocation()) }, nil},
		{func() error { return allocations.Add(allocation()) }, []string{gone}},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
		if got := said(w); !slices.EqualFunc(got, step.want, strings.HasPrefix) {
			t.Errorf("step %d: events %q, want %q", i, got, step.want)
		}
	}
}

// Whoever makes up names of pools does not cause an event with each.
func TestPoolsGoneAreBounded(t *testing.T) {
	w := newWorld(t, Options{})
	told := 0
	for i := range maxGone + 10 {
		ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: fmt.Sprint("p", i)}
		a := allocation(func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.PoolRef = ref.Name+".192.168.0.11", ref })
		if err := w.caches.allocations.Add(a); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		told += len(said(w))
	}
	if told != maxGone {
		t.Errorf("%d events, want %d", told, maxGone)
	}
}

// 5,000 nodes that join at once are one item of work.
func TestNodesCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		for _, k := range []struct {
			kind v1alpha1.PoolKind
			obj  any
		}{{v1alpha1.PoolKindIPPool, ippool(nil)}, {v1alpha1.PoolKindCIDRPool, cidrpool(nil)}} {
			if err := w.caches.pools[k.kind].Add(k.obj); err != nil {
				t.Fatal(err)
			}
		}
		handler := w.triggers.onNode()
		for i := range 5000 {
			handler.OnAdd(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}}, false)
		}
		synctest.Wait()
		if n := w.queues.pools.Len(); n != 0 {
			t.Errorf("%d items before the nodes have settled", n)
		}
		time.Sleep(w.opts.Settle)
		synctest.Wait()
		if n := w.queues.pools.Len(); n != 2 {
			t.Errorf("%d items, want one for each pool", n)
		}
	})
}

// Which events of nodes and allocations set anything going.
func TestTriggers(t *testing.T) {
	labelled := node(corev1.ConditionTrue)
	labelled.Labels = map[string]string{"role": "worker"}
	for _, tc := range []struct {
		name            string
		event           func(*world)
		pools, examined int
	}{
		{"node comes", func(w *world) { w.triggers.onNode().OnAdd(node(corev1.ConditionTrue), false) }, 1, 1},
		{"node goes", func(w *world) { w.triggers.onNode().OnDelete(node(corev1.ConditionTrue)) }, 1, 1},
		{"node is labelled", func(w *world) { w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), labelled) }, 1, 0},
		{"node reports", func(w *world) { w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), node(corev1.ConditionTrue)) }, 0, 0},
		{"node is not ready", func(w *world) { w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), node(corev1.ConditionFalse)) }, 0, 1},
		{"node is made again while the watch is down", func(w *world) {
			again := node(corev1.ConditionTrue)
			again.UID = "again"
			w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), again)
		}, 0, 1},
		{"node has another address", func(w *world) {
			moved := node(corev1.ConditionTrue)
			moved.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
			w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), moved)
		}, 1, 0},
		{"node stops reporting", func(w *world) {
			w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), node(corev1.ConditionUnknown))
		}, 0, 1},
		{"node is declared dead", func(w *world) {
			w.triggers.onNode().OnUpdate(node(corev1.ConditionUnknown), node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService))
		}, 0, 1},
		{"pod goes", func(w *world) { w.triggers.onPod().OnDelete(pod(podUID, claimed, nil)) }, 0, 1},
		{"pod comes", func(w *world) { w.triggers.onPod().OnAdd(pod(podUID, claimed, nil), false) }, 0, 1},
		{"pod changes", func(w *world) { w.triggers.onPod().OnUpdate(pod(podUID, claimed, nil), pod(podUID, claimed, nil)) }, 0, 0},
		{"pod is replaced while the watch is down", func(w *world) { w.triggers.onPod().OnUpdate(pod(podUID, claimed, nil), pod("new", claimed, nil)) }, 0, 1},
		{"an address goes", func(w *world) { w.triggers.onAllocation().OnDelete(allocation()) }, 0, 1},
		{"an address goes, and a block is kept for such", func(w *world) {
			w.memories.set(ipRef, memory{kept: true})
			w.triggers.onAllocation().OnDelete(allocation())
		}, 1, 1},
		{"an address is released that its owner keeps, and a block is kept for such", func(w *world) {
			w.memories.set(ipRef, memory{kept: true})
			before := allocation(func(a *v1alpha1.IPAllocation) { a.Spec.Owner = &v1alpha1.AllocationOwner{UID: "owner"} })
			after := before.DeepCopy()
			after.Spec.ReleasedAt = &metav1.Time{Time: time.Now()}
			w.triggers.onAllocation().OnUpdate(before, after)
		}, 1, 1},
		{"node that answers is declared dead", func(w *world) {
			w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), node(corev1.ConditionTrue, corev1.TaintNodeOutOfService))
		}, 0, 1},
		{"another container of the pod claims", func(w *world) {
			later := allocation(func(a *v1alpha1.IPAllocation) { a.Name = "pool1.192.168.0.12" })
			_ = w.caches.allocations.Add(later)
			w.triggers.onAllocation().OnAdd(later, false)
		}, 0, 2},
		{"reclaim is disabled", func(w *world) {
			after := ippool(nil)
			after.Annotations = map[string]string{v1alpha1.AnnotationReclaim: v1alpha1.ReclaimDisabled}
			w.triggers.onPool(v1alpha1.PoolKindIPPool).OnUpdate(ippool(nil), after)
		}, 1, 1},
		{"pool is made again while the watch is down", func(w *world) {
			before, after := ippool(nil), ippool(nil)
			other := ippool(nil)
			other.Name, other.UID = "other", "two"
			_ = w.caches.pools[v1alpha1.PoolKindIPPool].Add(other)
			after.UID, after.Spec.Domain = "again", "d"
			w.triggers.onPool(v1alpha1.PoolKindIPPool).OnUpdate(before, after)
		}, 2, 1},
		{"node is given its pod network", func(w *world) {
			after := node(corev1.ConditionTrue)
			after.Spec.PodCIDRs = []string{"192.168.0.0/24"}
			w.triggers.onNode().OnUpdate(node(corev1.ConditionTrue), after)
		}, 1, 0},
		{"an address goes that has outlived its domain", func(w *world) {
			old := allocation(func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.PoolRef.Name = "old.192.168.0.11", "old" })
			_ = w.caches.allocations.Add(allocation(func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.PoolRef.Name = "old.192.168.0.12", "old" }))
			w.triggers.onAllocation().OnDelete(old)
		}, 0, 1},
		{"the last address goes that has outlived its domain", func(w *world) {
			w.triggers.onAllocation().OnDelete(allocation(func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.PoolRef.Name = "old.192.168.0.11", "old" }))
		}, 1, 1},
		{"allocation comes", func(w *world) { w.triggers.onAllocation().OnAdd(allocation(), false) }, 0, 1},
		{"pool comes", func(w *world) { w.triggers.onPool(v1alpha1.PoolKindIPPool).OnAdd(ippool(nil), false) }, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Options{})
				defer w.queues.pools.ShutDown()
				defer w.queues.allocations.ShutDown()
				if err := w.caches.pools[v1alpha1.PoolKindIPPool].Add(ippool(nil)); err != nil {
					t.Fatal(err)
				}
				if err := w.caches.allocations.Add(allocation()); err != nil {
					t.Fatal(err)
				}
				tc.event(w)
				time.Sleep(w.opts.Settle)
				synctest.Wait()
				if p, s := w.queues.pools.Len(), w.queues.allocations.Len(); p != tc.pools || s != tc.examined {
					t.Errorf("%d pools and %d examinations, want %d and %d", p, s, tc.pools, tc.examined)
				}
			})
		})
	}
}

func TestThin(t *testing.T) {
	written := metav1.Unix(1, 0)
	fields := []metav1.ManagedFieldsEntry{
		{Manager: "kubectl", Operation: "Update", FieldsV1: metav1.NewFieldsV1("{}")},
		{Manager: v1alpha1.BlocksManagerPrefix + "x", Operation: "Apply", Subresource: "status", FieldsV1: metav1.NewFieldsV1("{}"), Time: &metav1.Time{}},
		{Manager: name, Operation: "Update", Subresource: "status", FieldsV1: metav1.NewFieldsV1("{}"), Time: &written},
		{Manager: name, Operation: "Update", FieldsV1: metav1.NewFieldsV1("{}"), Time: &written},
	}
	p := ippool([]v1alpha1.Allocation{{NodeName: "a"}})
	p.ManagedFields = fields
	p.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}", v1alpha1.AnnotationReclaim: "disabled"}
	want := ippool([]v1alpha1.Allocation{{NodeName: "a"}})
	want.Annotations = map[string]string{v1alpha1.AnnotationReclaim: "disabled"}
	want.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: v1alpha1.BlocksManagerPrefix + "x", Operation: "Apply", Subresource: "status"},
		{Manager: name, Operation: "Update", Subresource: "status", Time: &written},
	}
	for range 2 { // it may come twice
		got, err := thin(p)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	n := node(corev1.ConditionTrue)
	n.Annotations = map[string]string{"a": "b"}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"image"}}}
	n.Status.Conditions = append([]corev1.NodeCondition{{Type: corev1.NodeDiskPressure}}, n.Status.Conditions...)
	if got, _ := thin(n); !reflect.DeepEqual(got, node(corev1.ConditionTrue)) {
		t.Errorf("node: got %+v", got)
	}
}

// Whoever writes pods or pools does not fill the memory of the controller with what it reads of
// their annotations.
func TestThinIsBounded(t *testing.T) {
	large := strings.Repeat("x", 250<<10)
	annotations := map[string]string{"other": large, reclaim.AnnotationConfigMirror: large, reclaim.AnnotationConfigHash: large, v1alpha1.AnnotationReclaim: large}
	of := ippool(nil)
	of.Annotations = annotations
	for _, obj := range []metav1.Object{of, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Annotations: annotations}}} {
		got, err := thin(obj)
		if err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprint(got.(metav1.Object).GetAnnotations()); len(text) > 1024 {
			t.Errorf("%T: %d bytes are kept", obj, len(text))
		}
	}
}

// Addresses of a domain that no pool has, which others may overlap with: the pools are looked
// at when Usage is over, once for all that come or go until then.
func TestOutlivedDomain(t *testing.T) {
	orphan := func(last int) *v1alpha1.IPAllocation {
		address := fmt.Sprintf("192.168.0.%d", last)
		return allocation(func(a *v1alpha1.IPAllocation) {
			a.Name, a.Spec.PoolRef.Name, a.Spec.Address = "old."+address, "old", address
		})
	}
	for _, tc := range []struct {
		name  string
		event func(*world, *v1alpha1.IPAllocation)
	}{
		{"come", func(w *world, a *v1alpha1.IPAllocation) { w.triggers.onAllocation().OnAdd(a, false) }},
		{"go", func(w *world, a *v1alpha1.IPAllocation) { w.triggers.onAllocation().OnDelete(a) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Options{})
				defer w.queues.shutDown()
				for i, name := range []string{"pool1", "pool2"} {
					p := ippool(nil)
					p.Name, p.UID, p.Spec.Domain = name, types.UID(name), "net"
					if err := w.caches.pools[v1alpha1.PoolKindIPPool].Add(p); err != nil {
						t.Fatal(err)
					}
					if err := w.caches.allocations.Add(orphan(100 + i)); err != nil {
						t.Fatal(err)
					}
				}
				for i := range 10 {
					tc.event(w, orphan(i+1))
					time.Sleep(w.opts.Settle)
				}
				synctest.Wait()
				if n := w.queues.pools.Len(); n != 0 {
					t.Errorf("%d pools at once", n)
				}
				time.Sleep(w.opts.Usage)
				synctest.Wait()
				if n := w.queues.pools.Len(); n != 3 {
					t.Errorf("%d pools, want both and the one that is gone", n)
				}
			})
		})
	}
}

// A pool keeps its own gateway free, and tells whose of its domain it does not.
func TestGatewayOfAnotherPool(t *testing.T) {
	const told = "pods may be given the gateway 192.168.0.1 of IPPool sibling: set spec.gateway here, too, or exclude it"
	for _, tc := range []struct {
		name, want string
		edit       func(this, sibling *v1alpha1.IPPool)
	}{
		{"in a block", told, func(_, _ *v1alpha1.IPPool) {}},
		{"in the whole subnet", told, func(this, _ *v1alpha1.IPPool) { this.Spec.PerNodeBlockSize = 0 }},
		{"in no block", "", func(_, sibling *v1alpha1.IPPool) { sibling.Spec.Gateway = "192.168.0.254" }},
		{"the same", "", func(this, _ *v1alpha1.IPPool) { this.Spec.Gateway = "192.168.0.1" }},
		{"excluded", "", func(this, _ *v1alpha1.IPPool) {
			this.Spec.Exclusions = []v1alpha1.ExcludeRange{{StartIP: "192.168.0.1", EndIP: "192.168.0.1"}}
		}},
		{"in another subnet", "", func(this, _ *v1alpha1.IPPool) { this.Spec.Subnet = "192.168.1.0/24" }},
		{"of another domain", "192.168.0.0/24 overlaps with IPPool sibling (192.168.0.0/24)", func(_, sibling *v1alpha1.IPPool) { sibling.Spec.Domain = "other" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			this, sibling := ippool(nil), ippool(nil)
			sibling.Name, sibling.Spec.Domain, sibling.Spec.Gateway = "sibling", this.Name, "192.168.0.1"
			tc.edit(this, sibling)
			obj, pools := pool.ObjectOf(this), slices.Values([]*pool.Object{pool.ObjectOf(this), pool.ObjectOf(sibling)})
			got := ""
			for _, n := range overlapping(obj, overlapsWith(obj, pools), gatewaysIn(obj, pools), "") {
				got = n.condition.Message
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// An address that a node itself has and a pool may give to a pod is named, of the first such node.
func TestNodeAddressIsGiven(t *testing.T) {
	of := func(name string, kind corev1.NodeAddressType, addresses ...string) *corev1.Node {
		n := node(corev1.ConditionTrue)
		n.Name = name
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: kind, Address: a})
		}
		cached, err := thin(n)
		if err != nil {
			t.Fatal(err)
		}
		return cached.(*corev1.Node)
	}
	nodes := []*corev1.Node{
		of("c", corev1.NodeInternalIP, "192.168.0.9"), of("b", corev1.NodeExternalIP, "fd00::1", "192.168.0.7"), of("d", corev1.NodeInternalIP, "192.168.0.8"),
		of("a", corev1.NodeHostName, "192.168.0.6"), of("aa", corev1.NodeInternalIP, "no address"),
	}
	exclude := func(first, last string) func(*v1alpha1.IPPool) {
		return func(p *v1alpha1.IPPool) { p.Spec.Exclusions = []v1alpha1.ExcludeRange{{StartIP: first, EndIP: last}} }
	}
	for name, tc := range map[string]struct {
		edit func(*v1alpha1.IPPool)
		want string
	}{
		"in a block":          {func(*v1alpha1.IPPool) {}, "192.168.0.7 of node b"},
		"in the whole subnet": {func(p *v1alpha1.IPPool) { p.Spec.PerNodeBlockSize = 0 }, "192.168.0.7 of node b"},
		"the gateway":         {func(p *v1alpha1.IPPool) { p.Spec.Gateway = "192.168.0.7" }, "192.168.0.9 of node c"},
		"excluded":            {exclude("192.168.0.7", "192.168.0.9"), ""},
		"one is excluded":     {exclude("192.168.0.7", "192.168.0.7"), "192.168.0.9 of node c"},
		"in another subnet":   {func(p *v1alpha1.IPPool) { p.Spec.Subnet = "192.168.1.0/24" }, ""},
		"gives what is asked": {func(p *v1alpha1.IPPool) { p.Spec.Assignment = v1alpha1.AssignmentManual }, ""},
		"an invalid pool":     {func(p *v1alpha1.IPPool) { p.Spec.PerNodeBlockSize = -1 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := ippool(nil)
			tc.edit(p)
			obj := pool.ObjectOf(p)
			if got := nodeAddressIn(obj, nodes); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
	told := overlapping(pool.ObjectOf(ippool(nil)), nil, nil, "192.168.0.7 of node b")
	if len(told) != 1 || told[0].condition.Reason != reasonNodeAddress || !strings.Contains(told[0].event, "pods may be given the address 192.168.0.7 of node b") {
		t.Errorf("%+v", told)
	}
	if many := of("x", corev1.NodeInternalIP, slices.Repeat([]string{"192.168.0.9"}, 1000)...); len(many.Status.Addresses) != maxOwnAddresses {
		t.Errorf("%d addresses of a node are kept", len(many.Status.Addresses))
	}
}

// BenchmarkNodeAddress: a pool of the nodes' network that excludes each of 5,000 nodes.
func BenchmarkNodeAddress(b *testing.B) {
	p := ippool(nil)
	p.Spec.Subnet, p.Spec.PerNodeBlockSize = "10.0.0.0/16", 0
	var nodes []*corev1.Node
	for i := range 5000 {
		n := node(corev1.ConditionTrue)
		n.Name = fmt.Sprintf("n%04d", i)
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.0.%d.%d", i/100, 2*(i%100)+1)}}
		nodes = append(nodes, n)
		p.Spec.Exclusions = append(p.Spec.Exclusions, v1alpha1.ExcludeRange{StartIP: n.Status.Addresses[0].Address, EndIP: n.Status.Addresses[0].Address})
	}
	obj := pool.ObjectOf(p)
	for b.Loop() {
		if got := nodeAddressIn(obj, nodes); got != "" {
			b.Fatal(got)
		}
	}
}

// Where the installed CRD has no conditions, they are tried once in a resync, in case it was
// updated, and written again as soon as it is seen to have them.
func TestCRDIsUpdated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		defer w.queues.shutDown()
		p := ippool(nil)
		p.Spec.PerNodeBlockSize, p.Status.Allocations = 0, []v1alpha1.Allocation{}
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: pool.BlocksManager(nil), Operation: metav1.ManagedFieldsOperationApply, Subresource: "status"}}
		all := w.patches(func() any { return p })
		reconcile := func(when string, writes int) {
			t.Helper()
			*all = nil
			if err := w.caches.pools[v1alpha1.PoolKindIPPool].Update(p); err != nil {
				t.Fatal(err)
			}
			if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
				t.Fatal(err)
			}
			if len(*all) != writes {
				t.Errorf("%s: %d writes, want %d", when, len(*all), writes)
			}
		}
		reconcile("first", 1)
		reconcile("at once", 0)
		time.Sleep(w.opts.Resync)
		synctest.Wait()
		if n := w.queues.pools.Len(); n != 1 {
			t.Errorf("%d pools after a resync, want one", n)
		}
		reconcile("after a resync", 1)
		reconcile("at once again", 0)
		p = p.DeepCopy()
		p.Status.Conditions = []metav1.Condition{{Type: "Other"}}
		reconcile("with a condition", 1)
	})
}

// Neither the addresses that are left of a domain without a pool nor those of a disabled pool
// are counted in a condition: each release would be a write, and of the first also an event.
func TestReleasesAreNoNews(t *testing.T) {
	w := newWorld(t, Options{Usage: time.Hour})
	p := ippool(nil)
	p.Spec.PerNodeBlockSize, p.Spec.Disabled = 0, true
	p.Status.Conditions = []metav1.Condition{{Type: "Other"}}
	all := w.patches(func() any { return p })
	reconcile := func() {
		t.Helper()
		if err := w.caches.pools[v1alpha1.PoolKindIPPool].Update(p); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
	}
	var held []*v1alpha1.IPAllocation
	for i := range 20 {
		address := fmt.Sprintf("192.168.0.%d", i+1)
		domain := []string{"old", "pool1"}[i%2]
		held = append(held, allocation(func(a *v1alpha1.IPAllocation) {
			a.Name, a.Spec.PoolRef.Name, a.Spec.Address = domain+"."+address, domain, address
		}))
		if err := w.caches.allocations.Add(held[i]); err != nil {
			t.Fatal(err)
		}
	}
	reconcile()
	p = p.DeepCopy()
	p.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: pool.BlocksManager(nil), Operation: metav1.ManagedFieldsOperationApply, Subresource: "status"},
		{Manager: name, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", Time: &metav1.Time{Time: time.Now()}},
	}
	var body struct{ Status v1alpha1.PoolStatus }
	if err := json.Unmarshal((*all)[len(*all)-1].Patch, &body); err != nil {
		t.Fatal(err)
	}
	p.Status.PoolStatus, p.Status.Allocations = body.Status, []v1alpha1.Allocation{}
	overlap := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionOverlapping)
	if ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); ready == nil || ready.Reason != v1alpha1.ReasonDisabled || overlap == nil {
		t.Fatalf("conditions %+v", p.Status.Conditions)
	}
	*all = nil
	for _, a := range held[:18] {
		if err := w.caches.allocations.Delete(a); err != nil {
			t.Fatal(err)
		}
		reconcile()
	}
	if len(*all) != 0 {
		t.Errorf("%d writes, the first %s", len(*all), (*all)[0].Patch)
	}
	if n := len(w.events.Events); n != 1 {
		t.Errorf("%d events, want one", n)
	}
}

// What changes with every address is written no more often than the count of used
// ones; that something of an earlier specification is left, and no longer is, at once.
func TestNoticesAreWrittenSeldom(t *testing.T) {
	w := newWorld(t, Options{Usage: time.Hour})
	w.nodesNamed(t, "a")
	p := ippool([]v1alpha1.Allocation{{NodeName: "a", StartIP: "192.168.0.1", EndIP: "192.168.0.2"}})
	p.Spec.PerNodeBlockSize = 2
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: pool.BlocksManager(pool.ObjectOf(p).Blocks()), Operation: metav1.ManagedFieldsOperationApply, Subresource: "status"}, {}}
	indexer := w.caches.pools[v1alpha1.PoolKindIPPool]
	all := w.patches(func() any { return p })
	reconcile := func(writes int, types ...string) {
		t.Helper()
		*all = nil
		if err := indexer.Update(p); err != nil {
			t.Fatal(err)
		}
		if err := w.blocks.reconcile(t.Context(), ipRef); err != nil {
			t.Fatal(err)
		}
		for _, patch := range *all { // as the server would
			var body struct{ Status v1alpha1.PoolStatus }
			if err := json.Unmarshal(patch.Patch, &body); err != nil {
				t.Fatal(err)
			}
			p = p.DeepCopy()
			p.Status.PoolStatus = body.Status
		}
		var got []string
		for _, condition := range p.Status.Conditions {
			got = append(got, condition.Type)
		}
		if len(*all) != writes || !slices.Equal(got, types) {
			t.Errorf("%d writes, conditions %q, want %d and %q", len(*all), got, writes, types)
		}
	}
	hold := func(address string) {
		t.Helper()
		a := allocation()
		a.Name, a.Spec.Address, a.Spec.NodeName = "pool1."+address, address, "a"
		if err := w.caches.allocations.Add(a); err != nil {
			t.Fatal(err)
		}
	}
	at := func(age time.Duration) { // the time of the controller's entry is that of its last patch
		p = p.DeepCopy()
		p.ManagedFields[len(p.ManagedFields)-1] = metav1.ManagedFieldsEntry{
			Manager: name, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", Time: &metav1.Time{Time: time.Now().Add(-age)},
		}
	}
	p.Status.Conditions = []metav1.Condition{{Type: "Other"}} // not pruned
	reconcile(1, "Other", "Ready")
	at(0)
	hold("192.168.0.1")
	hold("192.168.0.2")
	hold("1.2.3.4")
	reconcile(0, "Other", "Ready")
	w.memories.forget(ipRef) // a controller that starts again
	reconcile(0, "Other", "Ready")
	for _, counts := range []time.Duration{time.Hour - time.Minute, -time.Second} { // a clock that is a little ahead
		at(counts)
		reconcile(0, "Other", "Ready")
	}
	at(-2 * time.Hour) // or so far ahead that it says nothing
	reconcile(1, "Other", "Ready", "ForeignAddresses", "BlockFull")
	at(0)
	reconcile(0, "Other", "Ready", "ForeignAddresses", "BlockFull")
	p = p.DeepCopy()
	p.Spec.Gateway = "192.168.0.2"
	reconcile(1, "Other", "Ready", "ForeignAddresses", "BlockFull", "EarlierSpecInUse")
}

// The text of an event is bounded, whoever writes it.
func TestBoundedRecorder(t *testing.T) {
	w := newWorld(t, Options{})
	r := boundedRecorder{w.events}
	r.Event(ippool(nil), corev1.EventTypeNormal, "R", strings.Repeat("x", 5000))
	r.Eventf(ippool(nil), corev1.EventTypeNormal, "R", "%s", strings.Repeat("y", 5000))
	for _, e := range said(w) {
		if len(e) > maxEvent+50 || !strings.HasSuffix(e, "(3976 bytes more)") {
			t.Errorf("%d bytes: %s", len(e), e)
		}
	}
}

// A block that is full counts as full only if its node cannot go on elsewhere: an alert says
// that pods do not start there.
func TestFullBlocksCount(t *testing.T) {
	for overflow, want := range map[v1alpha1.Overflow]int{"": 1, v1alpha1.OverflowSubnet: 0} {
		p := ippool([]v1alpha1.Allocation{{NodeName: "node", StartIP: "192.168.0.1", EndIP: "192.168.0.1"}})
		p.Spec.PerNodeBlockSize, p.Spec.Overflow = 1, overflow
		obj := pool.ObjectOf(p)
		held := []pool.Held{{Node: "node", Addr: netip.MustParseAddr("192.168.0.1")}}
		out := blocks(obj, obj.Blocks(), []*corev1.Node{node(corev1.ConditionTrue)}, held)
		if got := out.summary(0, held).blocks.full; got != want {
			t.Errorf("overflow %q: %d full blocks, want %d", overflow, got, want)
		}
	}
}

// The edits make of any blocks any others, whatever their order.
func TestEdits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	some := func() (out []pool.Assignment) {
		for i := range 12 {
			if random.IntN(2) == 0 {
				addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
				out = append(out, pool.Assignment{Node: string(rune('a' + random.IntN(3))), Range: netipx.IPRangeFrom(addr, addr)})
			}
		}
		if random.IntN(4) == 0 {
			random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		}
		return out
	}
	obj := pool.ObjectOf(ippool(nil))
	patched := 0
	for range 2000 {
		have, want := some(), some()
		edits := editsOf(obj, have, want)
		if edits == nil {
			continue
		}
		patched++
		if edits[0].Path != "/metadata/resourceVersion" || edits[0].Value != obj.Meta.ResourceVersion {
			t.Fatalf("no precondition: %+v", edits[0])
		}
		got := slices.Clone(have)
		for _, e := range edits[1:] {
			at, err := strconv.Atoi(strings.TrimPrefix(e.Path, "/status/allocations/"))
			if err != nil {
				t.Fatal(err)
			}
			if e.Op == "remove" {
				got = slices.Delete(got, at, at+1)
				continue
			}
			line := pool.ObjectOf(&v1alpha1.IPPool{Status: v1alpha1.IPPoolStatus{Allocations: []v1alpha1.Allocation{e.Value.(v1alpha1.Allocation)}}})
			got = slices.Insert(got, at, line.Blocks()[0])
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v edited by %+v is %v, want %v", have, edits, got, want)
		}
	}
	if patched < 500 {
		t.Errorf("%d of 2000 were patched", patched)
	}
}

// A large pool is seldom written only for its counts; for what matters, it is.
func TestCountsOfLargePools(t *testing.T) {
	w := &statusWriter{usage: time.Minute}
	const capacity = 10_000
	for _, tc := range []struct {
		what         string
		blocks       int
		before, used int64
		want         time.Duration
	}{
		{"small", 10, 100, 101, time.Minute},
		{"large", 5000, 100, 101, 50 * time.Minute},
		{"a twentieth", 5000, 100, 600, time.Minute},
		{"a twentieth less", 5000, 600, 100, time.Minute},
		{"the first", 5000, 0, 1, time.Minute},
		{"the last", 5000, 1, 0, time.Minute},
	} {
		p := ippool(nil)
		for i := range tc.blocks {
			p.Status.Allocations = append(p.Status.Allocations, v1alpha1.Allocation{NodeName: fmt.Sprint(i), StartIP: "192.168.0.1", EndIP: "192.168.0.1"})
		}
		p.Status.Used, p.Status.Capacity = &tc.before, new(int64(capacity))
		if got := w.countsWait(pool.ObjectOf(p), v1alpha1.PoolStatus{Used: &tc.used, Capacity: new(int64(capacity))}); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, got, tc.want)
		}
	}
}

// A pool that was replaced by another one of its domain is told to be gone when that goes, too.
func TestSuccessorGoes(t *testing.T) {
	w := newWorld(t, Options{Settle: time.Millisecond})
	successor := ippool(nil)
	successor.Name, successor.UID, successor.Spec.Domain = "successor", "two", "d"
	pools := w.caches.pools[v1alpha1.PoolKindIPPool]
	if err := w.caches.allocations.Add(allocation(func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.Domain = "d.192.168.0.11", "d" })); err != nil {
		t.Fatal(err)
	}
	w.triggers.onPool(v1alpha1.PoolKindIPPool).OnDelete(successor)
	if err := pools.Delete(successor); err != nil {
		t.Fatal(err)
	}
	var queued []string
	for len(queued) < 2 {
		ref, _ := w.queues.pools.Get()
		queued = append(queued, ref.Name)
	}
	if slices.Sort(queued); !slices.Equal(queued, []string{"pool1", "successor"}) {
		t.Errorf("queued are %q", queued)
	}
}
