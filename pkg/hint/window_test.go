// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestWindow(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	other := netip.MustParseAddr("10.0.0.9")
	if h.Window(ref) != nil {
		t.Error("a window that was never listed")
	}
	h.NotFree(ref, addr1)
	h.SetWindow(ref, &Window{Version: "v1", Domain: "p", Window: v1alpha1.WindowOf(addr1), Listed: time.Now(), Free: []netip.Addr{addr1, other}})
	if w := h.Window(SpaceOf(ref, 1)); w != nil {
		t.Errorf("another space has it: %+v", w)
	}
	h.NotFree(ref, addr1)
	if w := h.Window(ref); w == nil || !slices.Equal(w.Free, []netip.Addr{other}) {
		t.Fatalf("window %+v", w)
	}
	// What this node releases is free, in the windows of its domain.
	e := heldBy(podA, addr1, "uid-1")
	for _, domain := range []string{"q", e.Domain} {
		e.Domain = domain
		h.Claimed(e)
		h.Releasing(e)
		if h.NotReleased(e); domain == "q" {
			h.Released(e)
		}
		if w := h.Window(ref); slices.Contains(w.Free, addr1) {
			t.Errorf("domain %s: free before it is released, or of another domain", domain)
		}
	}
	h.Released(e)
	h.Released(e)
	if w := h.Window(ref); !slices.Equal(w.Free, []netip.Addr{other, addr1}) {
		t.Errorf("free %v", w.Free)
	}
	must(t, os.WriteFile(h.path("pools", "ippool.p.window"), []byte("{"), 0o600))
	if h.Window(ref) != nil {
		t.Error("half a file was read")
	}
	h.SetWindow(SpaceOf(ref, 1), &Window{})
	h.DropPool(ref)
	if names, _ := filepath.Glob(h.path("pools", "ippool.*")); len(names) > 0 {
		t.Errorf("left of the pool: %v", names)
	}
}

func TestOneListsAWindow(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	var all sync.WaitGroup
	var inside atomic.Int32 // the race detector does not know locks of files
	for range 10 {
		all.Go(func() {
			end := h.Listing(t.Context(), ref)
			defer end()
			if inside.Add(1) > 1 {
				t.Error("two list at the same time")
			}
			runtime.Gosched() // the others wait
			inside.Add(-1)
		})
	}
	all.Wait()

	end := h.Listing(t.Context(), ref)
	lock, err := h.lockFile("pools", poolFile(ref)+".listing")
	must(t, err)
	defer func() { _ = lock.Close() }()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if waitForLock(ended, lock, time.Hour) {
		t.Error("a second one lists")
	}
	end()
	if !waitForLock(t.Context(), lock, time.Hour) {
		t.Error("nobody can list any more")
	}
}

func TestPassed(t *testing.T) {
	h := newHint(t)
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	h.SetPassed(ref, "v1")
	h.setFreed("p")
	if !h.Passed(ref, "v1") || h.Passed(ref, "v2") || h.Passed(SpaceOf(ref, 1), "v1") || h.Full(ref, "p", "v1", 0) {
		t.Error("want it passed in this version only, whatever was released")
	}
	age(t, h, passedTime+time.Second, "pools", "ippool.p.passed")
	if h.Passed(ref, "v1") {
		t.Error("passed for ever")
	}
	h.SetFull(ref, "v1", h.Freed("p"))
	age(t, h, fullTime+time.Second, "pools", "ippool.p.full")
	if h.Full(ref, "p", "v1", 0) || !h.Full(ref, "p", "v1", 60_000) || h.Full(ref, "p", "v1", 5_000) {
		t.Error("want that of a large space to last longer")
	}
}
