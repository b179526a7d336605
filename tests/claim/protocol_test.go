// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func TestAddIsAReadAndACreate(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	if got := n.mustAdd(t, "pod1", ippool("p")); got != "10.0.0.1" {
		t.Errorf("first address is %s", got)
	}
	wantRequests(t, n, "GET ippools/p", "POST ipallocations")
	for i := 2; i <= 10; i++ {
		n.restart()
		if got, want := n.mustAdd(t, fmt.Sprint("pod", i), ippool("p")), fmt.Sprintf("10.0.0.%d", i); got != want {
			t.Errorf("address %d is %s, want %s", i, got, want)
		}
		wantRequests(t, n, "GET ippools/p", "POST ipallocations")
	}
	n.mustDel(t, "pod3")
	wantRequests(t, n, "GET ipallocations", "DELETE ipallocations/p.10.0.0.3") // a new node asks what it holds, once
	n.mustDel(t, "pod3")
	n.mustDel(t, "never-added")
	wantRequests(t, n)
	if got := n.mustAdd(t, "pod11", ippool("p")); got != "10.0.0.3" {
		t.Errorf("the one free address is .3, got %s", got)
	}
	wantRequests(t, n, "GET ippools/p", "POST ipallocations")
}

func TestAllocationSaysWhoHoldsIt(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	_, err := n.Allocate(t.Context(), claim.Request{
		Attachment: hint.Attachment{ContainerID: strings.Repeat("0123456789abcdef", 4), Interface: "net7"},
		Pools:      ippool("p"), Network: "the-net", DeviceID: "0000:03:00.2",
		Pod: v1alpha1.PodReference{Namespace: "ml", Name: "train-0", UID: "uid-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.client.IPAllocations(c.ns).Get(t.Context(), "p.10.0.0.1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.IPAllocationSpec{
		PoolRef: ippool("p")[0], Address: "10.0.0.1", NodeName: "a", PodRef: v1alpha1.PodReference{Namespace: "ml", Name: "train-0", UID: "uid-1"},
		ContainerID: strings.Repeat("0123456789abcdef", 4), InterfaceName: "net7", NetworkName: "the-net", DeviceID: "0000:03:00.2",
	}
	if started := got.Spec.AddStartedAt; started == nil || started.After(time.Now()) || time.Since(started.Time) > time.Minute {
		t.Errorf("its ADD began at %v", started)
	}
	got.Spec.AddStartedAt = nil
	if got.Spec != want {
		t.Errorf("spec = %+v\nwant   %+v", got.Spec, want)
	}
	if len(got.OwnerReferences)+len(got.Finalizers) > 0 {
		t.Error("deleting a pod or a pool would free the address")
	}
	for _, selector := range []string{
		v1alpha1.LabelPool + "=p", v1alpha1.LabelNode + "=a", v1alpha1.LabelContainer + "=" + v1alpha1.ContainerLabel(want.ContainerID),
	} {
		list, err := c.client.IPAllocations(c.ns).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
		if err != nil || len(list.Items) != 1 {
			t.Errorf("selector %s finds %d, %v", selector, len(list.Items), err)
		}
	}
}

func TestCollision(t *testing.T) {
	t.Run("goes on to the next address", func(t *testing.T) {
		c := newCluster(t, 10, "a", "b")
		n := newNode(t, c.ns, "a")
		n.mustAdd(t, "pod1", ippool("p"))
		c.hold(t, "p", "10.0.0.2", "b", "elsewhere")
		n.wire.take()
		if got := n.mustAdd(t, "pod2", ippool("p")); got != "10.0.0.3" {
			t.Errorf("got %s", got)
		}
		wantRequests(t, n, "GET ippools/p", "POST ipallocations", "GET ipallocations/p.10.0.0.2", "POST ipallocations")
	})
	t.Run("tries somewhere else after three", func(t *testing.T) {
		c := newCluster(t, 10, "a", "b")
		n := newNode(t, c.ns, "a")
		n.mustAdd(t, "pod1", ippool("p"))
		for i := 2; i <= 6; i++ {
			c.hold(t, "p", fmt.Sprintf("10.0.0.%d", i), "b", fmt.Sprint("elsewhere", i))
		}
		n.wire.take()
		n.mustAdd(t, "pod2", ippool("p"))
		creates, lists := count(n.wire.take(), "POST", "GET ipallocations")
		if creates < 4 || creates > 6 || lists != 0 {
			t.Errorf("%d creates and %d lists, want 4 to 6 and none", creates, lists)
		}
		for i := range 3 {
			n.mustAdd(t, fmt.Sprint("more", i), ippool("p"))
		}
		c.free(t, "p", "10.0.0.5")
		n.wire.take()
		if got := n.mustAdd(t, "pod4", ippool("p")); got != "10.0.0.5" {
			t.Errorf("an address that was seen elsewhere and is free again is not found: got %s", got)
		}
		if _, lists := count(n.wire.take(), "POST", "GET ipallocations"); lists > 1 { // none if it was not seen elsewhere
			t.Errorf("%d lists, want at most 1", lists)
		}
	})
}

// Nodes that share a block, which no controller gives them, claim in step: whoever
// collides after the list goes elsewhere, and says that nothing is free only when
// it has seen all.
func TestCollisionsAtTheSameMoment(t *testing.T) {
	const size = 12
	c := newCluster(t, size, "a", "b")
	n := newNode(t, c.ns, "a")
	for i := 1; i <= 3; i++ {
		c.hold(t, "p", fmt.Sprintf("10.0.0.%d", i), "b", fmt.Sprint("before", i))
	}
	// Somebody is always quicker, from the fourth create on, until one is left.
	creates := 0
	n.wire.setLose(func(req *http.Request) loss {
		if req.Method != http.MethodPost {
			return nothing
		}
		if creates++; creates > 3 && creates < size {
			c.hold(t, "p", wantedAddress(t, req), "b", fmt.Sprint("quicker", creates))
		}
		return nothing
	})
	n.mustAdd(t, "pod1", ippool("p"))
	if creates != size {
		t.Errorf("%d creates, want %d: each address once", creates, size)
	}
	n.wire.take()
	if _, err := n.add(t.Context(), "pod2", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("error %v, want that nothing is free", err)
	}
	if _, lists := count(n.wire.take(), "POST", "GET ipallocations"); lists != 1 {
		t.Errorf("%d lists, want 1", lists)
	}
}

// wantedAddress is the address that a create asks for.
func wantedAddress(t *testing.T, req *http.Request) string {
	t.Helper()
	body, err := req.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	var alloc v1alpha1.IPAllocation
	if err := json.NewDecoder(body).Decode(&alloc); err != nil {
		t.Fatal(err)
	}
	return alloc.Spec.Address
}

// count counts requests that are equal to exact, or begin with method.
func count(requests []string, method, exact string) (byMethod, byName int) {
	for _, r := range requests {
		if strings.HasPrefix(r, method+" ") {
			byMethod++
		}
		if r == exact {
			byName++
		}
	}
	return byMethod, byName
}

func TestLostAnswer(t *testing.T) {
	for _, tc := range []struct {
		name string
		what loss
	}{{"request", request}, {"response", response}, {"half of the response", half}} {
		t.Run("of a create: "+tc.name, func(t *testing.T) {
			c := newCluster(t, 10, "a")
			n := newNode(t, c.ns, "a")
			n.wire.setLose(loseFirst(http.MethodPost, tc.what))
			if got := n.mustAdd(t, "pod1", ippool("p")); got != "10.0.0.1" {
				t.Errorf("got %s", got)
			}
			c.wantHeld(t, "10.0.0.1")
			n.mustDel(t, "pod1")
			c.wantHeld(t)
		})
		t.Run("of a delete: "+tc.name, func(t *testing.T) {
			c := newCluster(t, 10, "a")
			n := newNode(t, c.ns, "a")
			n.mustAdd(t, "pod1", ippool("p"))
			n.wire.setLose(loseFirst(http.MethodDelete, tc.what))
			n.mustDel(t, "pod1")
			c.wantHeld(t)
		})
	}
	t.Run("of every create, until the time is over", func(t *testing.T) {
		c := newCluster(t, 10, "a")
		n := newNode(t, c.ns, "a")
		n.mustAdd(t, "pod1", ippool("p"))
		ctx, cancel := context.WithCancel(t.Context())
		n.wire.setLose(func(req *http.Request) loss {
			if req.Method != http.MethodPost {
				return nothing
			}
			cancel()
			return response
		})
		if _, err := n.add(ctx, "pod2", ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("error %v", err)
		}
		c.wantHeld(t, "10.0.0.1") // what nobody will hear of was taken back
	})
}

func TestOwnClaimIsFoundAgain(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	first := n.mustAdd(t, "pod1", ippool("p"))
	if again := n.mustAdd(t, "pod1", ippool("p")); again != first {
		t.Errorf("asked twice, got %s and %s", first, again)
	}
	n.mustAdd(t, "static", ippool("p"), "10.0.0.7")
	if again := n.mustAdd(t, "static", ippool("p"), "10.0.0.7"); again != "10.0.0.7" {
		t.Errorf("asked twice for .7, got %s", again)
	}
	n.loseHint(t)
	n.mustAdd(t, "static", ippool("p"), "10.0.0.7")
	c.wantHeld(t, first, "10.0.0.7")
}

func TestExhausted(t *testing.T) {
	c := newCluster(t, 4, "a", "b")
	n := newNode(t, c.ns, "a")
	c.hold(t, "p", "10.0.0.4", "b", "static")
	for i := range 3 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	_, err := n.add(t.Context(), "one-too-many", ippool("p"))
	if !errors.Is(err, claim.ErrExhausted) || err.Error() != `no free addresses in the pool "p", poolType "ippool": block 10.0.0.1-10.0.0.4 of node a is full, 4 of 4 addresses are held` {
		t.Errorf("error %v", err)
	}
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
	n.mustDel(t, "pod1")
	if got := n.mustAdd(t, "one-too-many", ippool("p")); got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
}

func TestHintLost(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	for i := range 5 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.loseHint(t)
	n.wire.take()
	n.mustDel(t, "pod2")
	wantRequests(t, n, "GET ipallocations", "DELETE ipallocations/p.10.0.0.3")
	n.mustDel(t, "pod3")
	wantRequests(t, n, "DELETE ipallocations/p.10.0.0.4")
	n.loseHint(t)
	if got := n.mustAdd(t, "pod5", ippool("p")); got != "10.0.0.3" {
		t.Errorf("got %s", got)
	}
	if creates, lists := count(n.wire.take(), "POST", "GET ipallocations"); creates != 3 || lists != 0 {
		t.Errorf("%d creates and %d lists: an ADD does not wait for a list", creates, lists)
	}
}

func TestHintStale(t *testing.T) {
	c := newCluster(t, 4, "a")
	n := newNode(t, c.ns, "a")
	for i := range 4 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	c.free(t, "p", "10.0.0.2") // somebody with kubectl
	makeOld(t, n.dir)
	if got := n.mustAdd(t, "pod4", ippool("p")); got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
	n.mustDel(t, "pod1") // whose address it was: must not free pod4's
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
}

func TestLateDelFreesNobodyElses(t *testing.T) {
	c := newCluster(t, 4, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	a.mustAdd(t, "pod1", ippool("p"), "10.0.0.2")
	c.free(t, "p", "10.0.0.2")
	b.mustAdd(t, "pod2", ippool("p"), "10.0.0.2")
	a.mustDel(t, "pod1")
	c.wantHeld(t, "10.0.0.2")
}

// A hint that cannot be used costs requests, never an address. A path under a
// file fails for root as well.
func TestHintUnusable(t *testing.T) {
	c := newCluster(t, 6, "a")
	n := newNode(t, c.ns, "a")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.dir = filepath.Join(file, "hint")
	for i := range 6 {
		n.restart()
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.restart()
	if _, err := n.add(t.Context(), "one-too-many", ippool("p")); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("error %v", err)
	}
	for i := range 6 {
		n.restart()
		n.mustDel(t, fmt.Sprint("pod", i))
	}
	c.wantHeld(t)
}

func TestRequested(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	rig.IPPool(t, c.client, c.ns, "gw", v1alpha1.IPPoolSpec{
		Subnet: "10.1.0.0/24", PerNodeBlockSize: 10, Gateway: "10.1.0.1",
		Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.1.0.2", EndIP: "10.1.0.5"}},
	}, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")

	t.Run("another node's block", func(t *testing.T) {
		if got := a.mustAdd(t, "static1", ippool("p"), "10.0.0.15"); got != "10.0.0.15" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("held: the holder is named", func(t *testing.T) {
		_, err := b.add(t.Context(), "static2", ippool("p"), "10.0.0.15")
		inUse := asInUse(err)
		if inUse == nil {
			t.Fatalf("error %v", err)
		}
		for _, words := range []string{`requested IP is already reserved in the pool "p", poolType "ippool"`, "default/static1", "node a", "net1"} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("error %q does not say %q", err, words)
			}
		}
	})
	t.Run("held on the same node", func(t *testing.T) {
		if _, err := a.add(t.Context(), "static3", ippool("p"), "10.0.0.15"); asInUse(err) == nil {
			t.Errorf("error %v", err)
		}
		a.mustDel(t, "static3")
		if err := a.Check(t.Context(), pod("static1"), ippool("p")); err != nil {
			t.Errorf("the holder lost it: %v", err)
		}
	})
	t.Run("excluded, and the gateway", func(t *testing.T) {
		a.mustAdd(t, "static4", ippool("gw"), "10.1.0.3")
		a.mustAdd(t, "static5", ippool("gw"), "10.1.0.1")
	})
	t.Run("in no pool", func(t *testing.T) {
		a.wire.take()
		_, err := a.add(t.Context(), "static6", ippool("p"), "10.10.10.10")
		if !isRequestError(err) || !strings.Contains(err.Error(), "not all requested static IPs can be allocated from the ranges available on the node, ip 10.10.10.10 has no matching Pool") {
			t.Errorf("error %v", err)
		}
		if creates, _ := count(a.wire.take(), "POST", ""); creates > 0 {
			t.Errorf("%d creates for a request that cannot be met", creates)
		}
	})
	t.Run("freed by its holder", func(t *testing.T) {
		a.mustDel(t, "static1")
		b.mustAdd(t, "static2", ippool("p"), "10.0.0.15")
	})
}

func TestTwoPools(t *testing.T) {
	c := newCluster(t, 4, "a", "b")
	c.pool(t, "six", "fd00::/64", 2, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	got, err := a.add(t.Context(), "dual", ippool("p", "six"))
	if err != nil || !slices.Equal(got, []string{"10.0.0.1", "fd00::1"}) {
		t.Fatalf("got %v, %v", got, err)
	}
	held := []string{"10.0.0.1", "fd00::1"}
	c.wantHeld(t, held...)

	t.Run("second held: the first is given back", func(t *testing.T) {
		if _, err := b.add(t.Context(), "x", ippool("p", "six"), "10.0.0.9", "fd00::1"); asInUse(err) == nil {
			t.Errorf("error %v", err)
		}
		c.wantHeld(t, held...)
	})
	t.Run("second exhausted: the first is given back", func(t *testing.T) {
		a.mustAdd(t, "y", ippool("six"))
		if _, err := a.add(t.Context(), "z", ippool("p", "six")); !errors.Is(err, claim.ErrExhausted) {
			t.Errorf("error %v", err)
		}
		a.mustDel(t, "y")
		c.wantHeld(t, held...)
	})
	t.Run("second not there", func(t *testing.T) {
		if _, err := a.add(t.Context(), "z", ippool("p", "nowhere")); !errors.Is(err, claim.ErrPoolNotFound) {
			t.Errorf("error %v", err)
		}
		c.wantHeld(t, held...)
	})
	t.Run("given back although the time is over", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		posts := 0
		a.wire.setLose(func(req *http.Request) loss {
			if req.Method == http.MethodPost {
				if posts++; posts > 1 {
					cancel()
					return request
				}
			}
			return nothing
		})
		if _, err := a.add(ctx, "z", ippool("p", "six")); !errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("error %v", err)
		}
		a.wire.setLose(nil)
		c.wantHeld(t, held...)
	})
	t.Run("one DEL frees both", func(t *testing.T) {
		a.mustDel(t, "dual")
		c.wantHeld(t)
	})
}

func TestPoolNotFound(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "elsewhere")
	for pools, words := range map[string]string{
		"p":       `configuration for pool "p", poolType "ippool" not found: IPPool ` + c.ns + `/p has no block for node elsewhere`,
		"nowhere": `configuration for pool "nowhere", poolType "ippool" not found: there is no IPPool ` + c.ns + `/nowhere`,
	} {
		if _, err := n.add(t.Context(), "pod1", ippool(pools)); !errors.Is(err, claim.ErrPoolNotFound) || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want %q", err, words)
		}
	}
}

func TestDelNeedsNoPool(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	if err := c.client.IPPools(c.ns).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.1") // deleting the pool frees nothing
	n.mustDel(t, "pod1")
	c.wantHeld(t)
}

func TestView(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod0", ippool("p"))
	reads := func(name string) int {
		t.Helper()
		n.wire.take()
		n.mustAdd(t, name, ippool("p"))
		_, gets := count(n.wire.take(), "GET", "GET ippools/p")
		return gets
	}
	if got := reads("pod1"); got != 1 {
		t.Errorf("%d reads of the pool, want 1", got)
	}
	t.Run("survives conditions", func(t *testing.T) {
		patch := []byte(`{"status":{"observedGeneration":7,"conditions":[{"type":"Ready","status":"True","reason":"x","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
		if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "ipam-controller"}, "status"); err != nil {
			t.Fatal(err)
		}
		rig.Seen(t, c.client, c.ns, "p")
		if got := reads("pod2"); got != 1 {
			t.Errorf("%d reads of the pool, want 1", got)
		}
	})
	t.Run("survives other nodes", func(t *testing.T) {
		p, err := c.client.IPPools(c.ns).Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		blocks := p.Status.Allocations
		for _, node := range []string{"b1", "b2", "b3"} { // none of node a's group
			blocks = append(blocks, v1alpha1.Allocation{NodeName: node, StartIP: "10.0.0.250", EndIP: "10.0.0.251"})
			rig.ApplyBlocks(t, c.client, c.ns, "p", blocks)
			if got := reads("pod-" + node); got != 1 {
				t.Errorf("%s has joined: %d reads of the pool, want 1", node, got)
			}
		}
	})
	t.Run("follows a new block", func(t *testing.T) {
		rig.ApplyBlocks(t, c.client, c.ns, "p", []v1alpha1.Allocation{{NodeName: "a", StartIP: "10.0.0.101", EndIP: "10.0.0.110"}})
		if got := n.mustAdd(t, "pod3", ippool("p")); got != "10.0.0.101" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("follows a block that is gone", func(t *testing.T) {
		rig.ApplyBlocks(t, c.client, c.ns, "p", []v1alpha1.Allocation{})
		if _, err := n.add(t.Context(), "pod4", ippool("p")); !errors.Is(err, claim.ErrPoolNotFound) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("follows whoever else writes the blocks", func(t *testing.T) {
		patch := []byte(`{"status":{"allocations":[{"nodeName":"a","startIP":"10.0.0.201","endIP":"10.0.0.210"}]}}`)
		if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "kubectl-edit"}, "status"); err != nil {
			t.Fatal(err)
		}
		rig.Seen(t, c.client, c.ns, "p")
		if got := n.mustAdd(t, "pod5", ippool("p")); got != "10.0.0.201" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("follows the specification", func(t *testing.T) {
		patch := []byte(`{"spec":{"exclusions":[{"startIP":"10.0.0.202","endIP":"10.0.0.205"}]}}`)
		if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		rig.Seen(t, c.client, c.ns, "p")
		if got := n.mustAdd(t, "pod6", ippool("p")); got != "10.0.0.206" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("follows a pool that was made anew", func(t *testing.T) {
		if err := c.client.IPPools(c.ns).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		rig.Gone(t, c.client, c.ns, "p")
		if _, err := n.add(t.Context(), "pod7", ippool("p")); !errors.Is(err, claim.ErrPoolNotFound) {
			t.Errorf("error %v", err)
		}
		c.pool(t, "p", "10.9.0.0/24", 10, "a")
		if got := n.mustAdd(t, "pod8", ippool("p")); got != "10.9.0.1" {
			t.Errorf("got %s", got)
		}
	})
}

func TestInvalidPool(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	patch := []byte(`{"spec":{"gateway":"10.99.0.1"}}`)
	if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Seen(t, c.client, c.ns, "p")
	if _, err := n.add(t.Context(), "pod2", ippool("p")); !isRequestError(err) || !strings.Contains(err.Error(), `IPPool "p" is invalid: spec.gateway: Invalid value: "10.99.0.1"`) {
		t.Errorf("error %v", err)
	}
	n.mustDel(t, "pod1")
	c.wantHeld(t)
}

func TestReleaseIsOwedWhileTheServerIsAway(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	for i := range 3 {
		n.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	n.wire.setLose(down)
	for i := range 2 {
		n.restart()
		n.mustDel(t, fmt.Sprint("pod", i))
	}
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	if _, err := n.add(shortly(t), "pod3", ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("ADD without a server: %v", err)
	}
	n.wire.setLose(nil)
	n.restart()
	n.mustDel(t, "never-added")
	c.wantHeld(t, "10.0.0.3")
	if got := n.mustAdd(t, "pod3", ippool("p")); got != "10.0.0.1" && got != "10.0.0.2" {
		t.Errorf("got %s", got)
	}
}

func TestOwedReleaseFreesNobodyElses(t *testing.T) {
	c := newCluster(t, 3, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	a.mustAdd(t, "pod1", ippool("p"), "10.0.0.2")
	a.wire.setLose(down)
	a.mustDel(t, "pod1")
	a.wire.setLose(nil)
	c.free(t, "p", "10.0.0.2") // the controller was faster
	b.mustAdd(t, "pod2", ippool("p"), "10.0.0.2")
	a.mustDel(t, "never-added")
	c.wantHeld(t, "10.0.0.2")
}

func TestDelFailsWhereItCanNeitherReleaseNorNote(t *testing.T) {
	c := newCluster(t, 3, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	n.loseHint(t)
	if err := os.WriteFile(n.dir, nil, 0o600); err != nil { // no disk to note it on
		t.Fatal(err)
	}
	n.wire.setLose(down)
	if err := n.Release(shortly(t), pod("pod1")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	n.wire.setLose(nil)
	n.mustDel(t, "pod1")
	c.wantHeld(t)
}

func TestCheck(t *testing.T) {
	c := newCluster(t, 3, "a", "b")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "pod1", ippool("p"))
	check := func(name string, pools ...string) error { return n.Check(t.Context(), pod(name), ippool(pools...)) }
	if err := check("pod1", "p"); err != nil {
		t.Error(err)
	}
	if err := check("pod2", "p"); !errors.Is(err, claim.ErrNotHeld) || err.Error() != `reservation for pool "p", poolType "ippool" not found` {
		t.Errorf("error %v", err)
	}
	if err := check("pod1", "p", "q"); !errors.Is(err, claim.ErrNotHeld) {
		t.Errorf("error %v", err)
	}
	c.free(t, "p", "10.0.0.1")
	if err := check("pod1", "p"); !errors.Is(err, claim.ErrNotHeld) {
		t.Errorf("error of an allocation that is gone: %v", err)
	}
	c.hold(t, "p", "10.0.0.1", "b", "another")
	if err := check("pod1", "p"); !errors.Is(err, claim.ErrNotHeld) {
		t.Errorf("error of an allocation that is another's: %v", err)
	}
	n.wire.setLose(down)
	if err := n.Check(shortly(t), pod("pod1"), ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("error without a server: %v", err)
	}
}

func TestCollect(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	for i := range 4 {
		a.mustAdd(t, fmt.Sprint("pod", i), ippool("p"))
	}
	b.mustAdd(t, "on-b", ippool("p"))
	_, err := a.Allocate(t.Context(), claim.Request{Attachment: pod("other-net"), Pools: ippool("p"), Network: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Collect(t.Context(), "net", []hint.Attachment{pod("pod1"), {ContainerID: pod("pod2").ContainerID, Interface: "net9"}}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.11", "10.0.0.2", "10.0.0.5")
	if err := a.Collect(t.Context(), "net", nil, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.11", "10.0.0.5")
}

// What is asked for while a GC waits is not in the list that it was given.
func TestCollectLeavesWhatIsNewerThanItsList(t *testing.T) {
	c := newCluster(t, 10, "a")
	a := newNode(t, c.ns, "a")
	a.mustAdd(t, "during", ippool("p"))
	for _, started := range []time.Time{time.Now(), time.Now().Add(-time.Minute), time.Now().Add(10 * time.Second)} {
		if err := a.Collect(t.Context(), "net", nil, started); err != nil {
			t.Fatal(err)
		}
		c.wantHeld(t, "10.0.0.1")
	}
	if err := a.Collect(t.Context(), "net", nil, time.Now().Add(27*time.Second)); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t)
}

// Two nodes may have containers of one ID: cnitool makes it from a path. Neither
// takes, finds or frees what is the other's.
func TestOneContainerIDOnTwoNodes(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
	a.mustAdd(t, "twin", ippool("p"), "10.0.0.2")
	if _, err := b.add(t.Context(), "twin", ippool("p"), "10.0.0.2"); asInUse(err) == nil {
		t.Errorf("the second one: %v", err)
	}
	b.mustDel(t, "twin")
	b.loseHint(t)
	b.mustDel(t, "twin")
	if err := b.Check(t.Context(), pod("twin"), ippool("p")); !errors.Is(err, claim.ErrNotHeld) {
		t.Errorf("CHECK on the other node: %v", err)
	}
	if err := b.Collect(t.Context(), "net", nil, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.2")
	// The next address of b's block is claimed under a container's ID of b, by a.
	first := b.mustAdd(t, "pod1", ippool("p"))
	next := netip.MustParseAddr(first).Next().String()
	c.hold(t, "p", next, "a", "victim")
	if got := b.mustAdd(t, "victim", ippool("p")); got == next {
		t.Errorf("took %s for its own", got)
	}
}

// A label is a hint for lists; whose an allocation is stands in its spec.
func TestCollectBelievesNoLabel(t *testing.T) {
	c := newCluster(t, 10, "a", "b")
	c.hold(t, "p", "10.0.0.11", "b", "on-b")
	a, err := c.client.IPAllocations(c.ns).Get(t.Context(), "p.10.0.0.11", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.free(t, "p", "10.0.0.11") // its spec cannot change
	a.ResourceVersion, a.Spec.NetworkName, a.Labels[v1alpha1.LabelNode] = "", "net", "a"
	if _, err := c.client.IPAllocations(c.ns).Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := newNode(t, c.ns, "a").Collect(t.Context(), "net", nil, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "10.0.0.11")
}

func TestReady(t *testing.T) {
	c := newCluster(t, 10, "a")
	n := newNode(t, c.ns, "a")
	if err := n.Ready(t.Context(), ippool("p")); err != nil {
		t.Error(err)
	}
	if err := n.Ready(t.Context(), ippool("nowhere")); err != nil {
		t.Errorf("a pool that is not there: %v", err)
	}
	n.wire.setLose(down)
	if err := n.Ready(shortly(t), ippool("p")); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

// shortly returns a context that ends soon.
func shortly(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// makeOld makes the claims in a hint as old as if an hour had passed.
func makeOld(t *testing.T, dir string) {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(dir, "*", "claims", "p.*"))
	if err != nil || len(entries) == 0 {
		t.Fatalf("no entries: %v", err)
	}
	for _, e := range entries {
		lutimes(t, e, time.Now().Add(-time.Hour))
	}
}
