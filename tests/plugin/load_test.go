// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// lists counts how often the plugins list a namespace's allocations, in the API
// server's audit log, while f runs.
func (c *cluster) lists(t *testing.T, f func()) (n int) {
	t.Helper()
	mark, err := env.Mark()
	if err != nil {
		t.Fatal(err)
	}
	f()
	requests, err := env.Requests(mark)
	if err != nil {
		t.Fatal(err)
	}
	all := requests.By("nv-ipam/")
	if len(all) == 0 {
		t.Error("no request was seen: is the audit log read?")
	}
	for _, r := range all.Of("list", "ipallocations") {
		if r.Namespace == c.NS {
			n++
		}
	}
	return n
}

// atOnce runs calls of a verb at the same time for containers c0, c1 and so on, and
// returns how many failed.
func (h *host) atOnce(t *testing.T, verb string, n int) (failed int) {
	t.Helper()
	var calls sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		calls.Go(func() {
			_, cniErr := h.run(t, call{verb: verb, container: fmt.Sprint("c", i)})
			if cniErr == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			failed++
			if cniErr.Code != 11 {
				t.Errorf("%s: %v", verb, cniErr)
			}
		})
	}
	calls.Wait()
	return failed
}

// A node starts, and forty of its pods at once: no ADD lists what the node holds.
// Forty DELs at once make one list.
func TestListsAfterABoot(t *testing.T) {
	for name, forget := range past {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			h.mustRun(t, call{verb: "DEL", container: "never-added"})
			h.mustAdd(t, call{container: "before"})
			forget(t, h)
			if n := c.lists(t, func() {
				if failed := h.atOnce(t, "ADD", 40); failed > 0 {
					t.Errorf("%d ADDs failed", failed)
				}
			}); n > 0 {
				t.Errorf("40 ADDs made %d lists, want none", n)
			}
			forget(t, h)
			if n := c.lists(t, func() {
				if failed := h.atOnce(t, "DEL", 40); failed > 0 {
					t.Errorf("%d DELs failed", failed)
				}
			}); n != 1 {
				t.Errorf("40 DELs made %d lists, want one", n)
			}
			if got := c.held(t); got != "[10.0.0.2]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// full makes a pool whose block is full with "before0" and so on, on a node that has
// just started.
func full(t *testing.T, size int) (*cluster, *host) {
	t.Helper()
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: size}, "a", "b")
	h := c.host(t, "a")
	for i := range size {
		h.mustAdd(t, call{container: fmt.Sprint("before", i)})
	}
	return c, h
}

// Pods that wait for an address are tried again and again: how often the node lists
// depends on the time that passes, and not on how many pods there are.
func TestListsOfAnExhaustedBlock(t *testing.T) {
	c, h := full(t, 5)
	const fullTime = 10 * time.Second
	start := time.Now()
	first := c.lists(t, func() {
		if failed := h.atOnce(t, "ADD", 40); failed != 40 {
			t.Errorf("%d of 40 ADDs failed", failed)
		}
	})
	// One for each time that it is forgotten, and one for calls that were under way then.
	if most := 2 + int(time.Since(start)/fullTime); first > most {
		t.Errorf("40 ADDs made %d lists, want at most %d", first, most)
	}
	start = time.Now()
	again := c.lists(t, func() {
		for range 4 {
			h.atOnce(t, "ADD", 40)
		}
	})
	if most := 2 * (1 + int(time.Since(start)/fullTime)); again > most {
		t.Errorf("160 more ADDs made %d lists in %s, want at most %d", again, time.Since(start), most)
	}
	t.Logf("%d lists for 40 ADDs, %d for 160 more", first, again)
	if got := h.mustAdd(t, call{container: "before2"}); got[0] != "10.0.0.3/16" {
		t.Errorf("a container that has one already got %v", got)
	}
}

// What makes room in a block that was found full is seen: a release on the node at
// once, and one from elsewhere when the node looks again.
func TestReleaseEndsExhaustion(t *testing.T) {
	const size = 3
	for name, release := range map[string]func(t *testing.T, c *cluster, h *host){
		"a DEL": func(t *testing.T, _ *cluster, h *host) { h.mustRun(t, call{verb: "DEL", container: "before1"}) },
		"a GC": func(t *testing.T, c *cluster, h *host) {
			c.age(t)
			h.mustRun(t, gc("before0", "before2"))
		},
		"a pending release that is carried out": func(t *testing.T, c *cluster, h *host) {
			rig.WriteKubeconfig(t, filepath.Join(h.dir, "away"), "https://127.0.0.1:1", env.Config.CAData, token)
			h.use(t, c, filepath.Join(h.dir, "away"))
			h.mustRun(t, call{verb: "DEL", container: "before1"})
			h.use(t, c, "")
			h.mustRun(t, call{verb: "STATUS"})
		},
		"a pending release": func(t *testing.T, c *cluster, h *host) {
			rig.WriteKubeconfig(t, filepath.Join(h.dir, "away"), "https://127.0.0.1:1", env.Config.CAData, token)
			h.use(t, c, filepath.Join(h.dir, "away"))
			h.mustRun(t, call{verb: "DEL", container: "before1"})
			h.use(t, c, "")
		},
		"the pool's edit": func(t *testing.T, c *cluster, _ *host) {
			rig.ApplyBlocks(t, c.IPAM, c.NS, "p", []v1alpha1.Allocation{{NodeName: "a", StartIP: "10.0.0.1", EndIP: "10.0.0.9"}})
		},
		"the controller, when the node looks again": func(t *testing.T, c *cluster, h *host) {
			if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "p.10.0.0.2", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			shift(t, h.hint("pools"), -11*time.Second)
			shift(t, h.hint("claims"), -11*time.Second) // what was entered a moment ago may be too new for a list
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, h := full(t, size)
			for range 2 {
				h.wantError(t, call{verb: "ADD", container: "waits"}, 11, "no free addresses")
			}
			release(t, c, h)
			h.mustAdd(t, call{container: "waits"})
		})
	}
}
