// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Window is what the API server has said about one window of a space that nodes share
// (v1alpha1.WindowOf). There is one for each space, and it replaces the one before: what
// other nodes hold in a space of any size takes no more room on this disk. So no address
// of such a space is entered as held elsewhere.
type Window struct {
	// Version of the pool that it was listed for.
	Version string `json:"version"`
	// Domain and Window say which addresses were listed.
	Domain string       `json:"domain"`
	Window netip.Prefix `json:"window"`
	// Listed is when, by this node's clock.
	Listed time.Time `json:"listed"`
	// Crowded is true if at least a quarter of the window was held: the next ADD lists at once.
	Crowded bool `json:"crowded"`
	// Free are usable addresses that nobody held, in random order, and behind them addresses of
	// the domain that this node has released since. What it has claimed since has an entry in
	// claims/.
	Free []netip.Addr `json:"free"`
}

// Window returns the window of a space that was listed last, or nil.
func (h *Hint) Window(space v1alpha1.PoolReference) *Window {
	return h.readWindow(poolFile(space) + ".window")
}

func (h *Hint) readWindow(file string) *Window {
	var w Window
	if !h.readJSON(&w, "pools", file) {
		return nil
	}
	return &w
}

// SetWindow saves a window that was listed. If it is lost, it is listed again.
func (h *Hint) SetWindow(space v1alpha1.PoolReference, w *Window) {
	h.saveWindow(poolFile(space)+".window", w)
}

func (h *Hint) saveWindow(file string, w *Window) {
	h.failed("saving what is free in a window", h.saveJSON(w, "pools", file))
}

// NotFree enters that an address of the saved window is held.
func (h *Hint) NotFree(space v1alpha1.PoolReference, addr netip.Addr) {
	w := h.Window(space)
	if w == nil || !slices.Contains(w.Free, addr) {
		return
	}
	w.Free = slices.DeleteFunc(w.Free, func(a netip.Addr) bool { return a == addr })
	h.SetWindow(space, w)
}

// freed enters in the saved windows of its domain that this node has released an address.
// Near full it is the first that the node knows to be free.
func (h *Hint) freed(e Entry) {
	files, _ := filepath.Glob(filepath.Join(escape(h.path("pools")), "*.window"))
	for _, path := range files {
		file := filepath.Base(path)
		w := h.readWindow(file)
		if w == nil || w.Domain != e.Domain || slices.Contains(w.Free, e.Address) || len(w.Free) >= maxFree {
			continue
		}
		w.Free = append(w.Free, e.Address)
		h.saveWindow(file, w)
	}
}

// maxFree bounds Window.Free: a window, and what a node may release.
const maxFree = 512

// Listing waits until no other call on this node lists a window of the space, or ctx has
// ended. The caller calls end when its own list is saved.
func (h *Hint) Listing(ctx context.Context, space v1alpha1.PoolReference) (end func()) {
	lock, err := h.lockFile("pools", poolFile(space)+".listing")
	if err != nil { // then each lists for itself
		return func() {}
	}
	const interval = 5 * time.Millisecond // a window is listed in about as long
	waitForLock(ctx, lock, interval)
	return func() { _ = lock.Close() }
}
