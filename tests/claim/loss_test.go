// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// loseRecord deletes the record and the pool, and makes the pool again.
func (c *cluster) loseRecord(t *testing.T, pools shape, nodes ...string) {
	t.Helper()
	if err := c.client.IPAllocations(c.ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for name := range pools {
		if err := c.client.IPPools(c.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		rig.Gone(t, c.client, c.ns, name)
	}
	pools.make(t, c, nodes...)
}

// oneOf is a pool "p" of blocks of that size.
func oneOf(size int) shape {
	return shape{"p": {Subnet: "10.0.0.0/24", PerNodeBlockSize: size}}
}

// afterGrace makes it long ago that the node found a loss.
func (n *node) afterGrace(t *testing.T) {
	t.Helper()
	if err := os.Remove(n.path("lost")); err != nil {
		t.Fatal(err)
	}
}

// The first ADD after a loss is in a pool that its node sees for the first time. What the node
// holds in another one is evidence enough: the others have lost theirs as well.
func TestLossIsFoundInANewPool(t *testing.T) {
	for name, second := range map[string]v1alpha1.IPPoolSpec{
		"blocks of the domain": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 4, PoolAccess: v1alpha1.PoolAccess{Domain: "p"}},
		"shared":               {Subnet: "10.1.0.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			pools := shape{"p": {Subnet: "10.0.0.0/28"}, "q": second}
			c := emptyCluster(t)
			pools.make(t, c, "a", "b")
			a, b := newNode(t, c.ns, "a"), newNode(t, c.ns, "b")
			a.mustAdd(t, "a1", ippool("p"))
			b.mustAdd(t, "b1", ippool("p"))
			b.mustAdd(t, "b2", ippool("q"))
			c.loseRecord(t, pools, "a", "b")
			if got, err := a.add(t.Context(), "a2", ippool("q")); !errors.Is(err, claim.ErrRecordLost) {
				t.Errorf("%v, %v", got, err)
			}
			a.afterGrace(t)
			if err := b.Look(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.mustAdd(t, "a2", ippool("q"))
			if all := rig.Addresses(t, c.client, c.ns); len(all) != 4 {
				t.Errorf("held %v", all)
			}
		})
	}
}

// A call that writes lost allocations again is interrupted at each of its requests, before
// it or after it. The next one goes on, also without any evidence but what the first has
// noted, and a DEL in between ends what it is about.
func TestRestoringIsInterrupted(t *testing.T) {
	for _, what := range []loss{request, response} {
		for at := range 3 {
			t.Run(fmt.Sprintf("%d of create %d", what, at), func(t *testing.T) {
				c := newCluster(t, 16, "a")
				a := newNode(t, c.ns, "a")
				for _, name := range []string{"x", "y", "z"} {
					a.mustAdd(t, name, ippool("p"))
				}
				c.loseRecord(t, oneOf(16), "a")
				creates, cut := 0, false
				a.wire.setLose(func(req *http.Request) loss {
					if req.Method == http.MethodPost {
						creates++
						cut = cut || creates > at
					}
					if cut && creates == at+1 && req.Method == http.MethodPost {
						return what
					}
					if cut {
						return request
					}
					return nothing
				})
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				if _, err := a.add(ctx, "early", ippool("p")); err == nil || errors.Is(err, claim.ErrRecordLost) {
					t.Errorf("interrupted: %v", err)
				}
				a.wire.setLose(nil)
				a.restart()
				a.mustDel(t, "y")
				if err := a.Look(t.Context()); err != nil {
					t.Fatal(err)
				}
				c.wantHeld(t, "10.0.0.1", "10.0.0.3")
				if _, err := a.add(t.Context(), "early", ippool("p")); !errors.Is(err, claim.ErrRecordLost) {
					t.Errorf("within the grace: %v", err)
				}
				a.afterGrace(t)
				a.mustAdd(t, "late", ippool("p"))
				for _, name := range []string{"x", "z", "late"} {
					a.mustDel(t, name)
				}
				c.wantHeld(t)
			})
		}
	}
}

// Look asks once if nothing is lost, and not at all if nothing is held. What somebody has
// deleted by hand stays deleted.
func TestLook(t *testing.T) {
	c := newCluster(t, 16, "a")
	a := newNode(t, c.ns, "a")
	look := func() {
		t.Helper()
		a.wire.take()
		if err := a.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	wantRequests(t, a)
	a.mustAdd(t, "x", ippool("p"))
	a.mustAdd(t, "y", ippool("p"))
	look()
	wantRequests(t, a, "GET ippools/p", "GET ipallocations/p.10.0.0.2")
	c.free(t, "p", "10.0.0.2")
	look()
	wantRequests(t, a, "GET ippools/p", "GET ipallocations/p.10.0.0.2", "GET ipallocations")
	c.wantHeld(t, "10.0.0.1")

	// Nothing is forgotten: then the operator says that it was lost. The node has started
	// others since, so that its latest allocation is there.
	a.mustAdd(t, "z", ippool("p"))
	c.sayLost(t)
	look()
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	look()
	wantRequests(t, a, "GET ippools/p", "GET ipallocations/p.10.0.0.2")

	// A release that the API server did not answer is carried out, without another call.
	a.wire.setLose(down)
	a.mustDel(t, "z")
	a.wire.setLose(nil)
	c.wantHeld(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
	a.restart()
	look()
	c.wantHeld(t, "10.0.0.1", "10.0.0.2")
}

// sayLost is an operator who says that allocations of the pool were lost.
func (c *cluster) sayLost(t *testing.T) {
	t.Helper()
	c.sayLostBy(t, "now")
}

// sayLostBy does so with a word.
func (c *cluster) sayLostBy(t *testing.T, word string) {
	t.Helper()
	patch := `{"metadata":{"annotations":{"` + v1alpha1.AnnotationRecordLost + `":"` + word + `"}}}`
	if _, err := c.client.IPPools(c.ns).Patch(t.Context(), "p", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Seen(t, c.client, c.ns, "p")
}

// An earlier version of the plugin has entered claims without what it takes to write them
// again, and which pool it saw stands in its view alone. The first look completes that; a
// loss later is found by an ADD.
func TestLossAfterAnUpgrade(t *testing.T) {
	c := newCluster(t, 16, "a")
	a := newNode(t, c.ns, "a")
	a.mustAdd(t, "x", ippool("p"))
	a.mustDel(t, "never-added") // the hint is complete
	claimed := a.path("claims", "p.10.0.0.1")
	text, err := os.Readlink(claimed)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ = strings.Cut(text, " ")
	if err := errors.Join(os.Remove(claimed), os.Symlink(text, claimed), os.Remove(a.path("pools", "ippool.p.epoch"))); err != nil {
		t.Fatal(err)
	}
	if err := a.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(a.path("pools", "ippool.p.epoch")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	c.loseRecord(t, oneOf(16), "a")
	if _, err := a.add(t.Context(), "y", ippool("p")); !errors.Is(err, claim.ErrRecordLost) {
		t.Errorf("after the loss: %v", err)
	}
	c.wantHeld(t, "10.0.0.1")
}

// An export of the record was applied again, so that the allocations have other UIDs. A
// DEL frees what its attachment holds nevertheless, and nobody else's. A release that is
// pending from before frees nothing: its container may have come back.
func TestDelOfWhatWasImported(t *testing.T) {
	c := newCluster(t, 16, "a")
	n := newNode(t, c.ns, "a")
	n.mustAdd(t, "x", ippool("p"))
	n.mustAdd(t, "y", ippool("p"))
	n.mustAdd(t, "z", ippool("p"))
	n.mustDel(t, "never-added") // from here on the node knows what it holds
	imported := func(addr, name string) {
		t.Helper()
		c.free(t, "p", addr)
		c.hold(t, "p", addr, "a", name)
		n.wire.take()
	}
	imported("10.0.0.1", "x")
	n.mustDel(t, "x")
	wantRequests(t, n, "DELETE ipallocations/p.10.0.0.1", "GET ipallocations/p.10.0.0.1", "DELETE ipallocations/p.10.0.0.1")
	c.wantHeld(t, "10.0.0.2", "10.0.0.3")

	imported("10.0.0.2", "another")
	n.mustDel(t, "y")
	c.wantHeld(t, "10.0.0.2", "10.0.0.3")

	n.wire.setLose(down)
	n.mustDel(t, "z")
	n.wire.setLose(nil)
	imported("10.0.0.3", "z")
	n.settled(t, 0, 1)
	c.wantHeld(t, "10.0.0.2", "10.0.0.3")
}
