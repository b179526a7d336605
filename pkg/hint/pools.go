// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"crypto/rand"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// viewFormat is raised whenever a saved view would be read wrongly, or lacks something
// that is needed.
const viewFormat = 7

// View is this node's block of a pool, and the version of the pool that it was read from.
type View struct {
	Format  int         `json:"format"`
	Version string      `json:"version"`
	Block   *pool.Block `json:"block"`
}

// Domain returns the domain of a pool: the default one if this node has no view of it.
func (v *View) Domain(ref v1alpha1.PoolReference) string {
	if v == nil {
		return ref.Name
	}
	return v.Block.Domain
}

// View returns the saved view of a pool, or nil if there is none or it cannot be read.
func (h *Hint) View(ref v1alpha1.PoolReference) *View {
	var v View
	if !h.readJSON(&v, "pools", poolFile(ref)+".json") || v.Format != viewFormat || v.Block == nil || v.Block.Pool != ref {
		return nil
	}
	return &v
}

// SetView saves the view of a pool.
func (h *Hint) SetView(ref v1alpha1.PoolReference, version string, b *pool.Block) {
	h.failed("saving the pool", h.saveJSON(View{Format: viewFormat, Version: version, Block: b}, "pools", poolFile(ref)+".json"))
}

// DropView removes the view of a pool.
func (h *Hint) DropView(ref v1alpha1.PoolReference) {
	_ = os.Remove(h.path("pools", poolFile(ref)+".json"))
}

// DropPool removes everything that is saved about a pool. It is for pools that are gone.
func (h *Hint) DropPool(ref v1alpha1.PoolReference) {
	spaces, _ := filepath.Glob(escape(h.path("pools", poolFile(ref))) + "@*")
	for _, file := range spaces {
		_ = os.Remove(file)
	}
	for _, suffix := range []string{".json", ".last", ".full", ".passed", ".window", ".listing", epochSuffix} {
		_ = os.Remove(h.path("pools", poolFile(ref)+suffix))
	}
}

// Last returns where the search in a space goes on: after this address. It is zero if no search
// has begun. A new site continues where another site of this node stopped: the cluster's
// certificate authorities may have changed, and the installer may use others than the
// plugin.
func (h *Hint) Last(ref v1alpha1.PoolReference) netip.Addr {
	text, err := os.Readlink(h.path("pools", poolFile(ref)+".last"))
	if err != nil {
		text = h.lastElsewhere(ref)
	}
	addr, _ := netip.ParseAddr(text)
	return addr
}

func (h *Hint) lastElsewhere(ref v1alpha1.PoolReference) (text string) {
	for _, other := range All(h.root, h.log) {
		if other.Namespace == h.Namespace && !other.Same(h) && text == "" {
			text, _ = os.Readlink(other.path("pools", poolFile(ref)+".last"))
		}
	}
	return text
}

// SetLast saves where the search in a space goes on: after this address.
func (h *Hint) SetLast(ref v1alpha1.PoolReference, addr netip.Addr) {
	h.failed("noting where round robin stopped", h.replace(addr.String(), "pools", poolFile(ref)+".last"))
}

// fullTime is how long a block that was found full counts as full. A release on this
// node ends that at once. A release from elsewhere, for example by the controller, is
// noticed only after this time.
const fullTime = 10 * time.Second

// passedTime is how long a full block counts as full if the pool overflows: there are
// other addresses, so nobody waits for it. A release on this node is noticed at once in any
// case, since the hint has no entry then.
const passedTime = 5 * time.Minute

// Full reports whether a space was found full within fullTime, in the same version of the pool, and
// this node has released nothing in the domain since that proof began. If all of so many addresses
// had to be listed to find that, it counts for at least one millisecond each.
func (h *Hint) Full(ref v1alpha1.PoolReference, domain, version string, listed int64) bool {
	return h.marked(poolFile(ref)+".full", fullText(version, h.Freed(domain)), max(fullTime, time.Duration(listed)*time.Millisecond))
}

// SetFull saves that a space is full. freed is what Freed has returned before the proof began.
func (h *Hint) SetFull(ref v1alpha1.PoolReference, version, freed string) {
	h.failed("noting that a block is full", h.replace(hash(fullText(version, freed)), "pools", poolFile(ref)+".full"))
}

func fullText(version, freed string) string { return version + " " + freed }

// Freed stands for all that this node has released in a domain so far: it changes with each release.
// So a proof that a space is full, which takes a while, is not believed if something was released
// meanwhile.
func (h *Hint) Freed(domain string) string {
	text, _ := os.Readlink(h.path("pools", freedFile(domain)))
	return text
}

// setFreed changes what Freed returns.
func (h *Hint) setFreed(domain string) {
	h.failed("noting that an address is free", h.replace(rand.Text(), "pools", freedFile(domain)))
}

// freedFile is of a domain, whose pools may share an address. No pool's name begins with "@".
func freedFile(domain string) string { return "@" + domain + ".freed" }

// Passed is like Full, where other space remains and the search has passed on to that. It is
// believed for passedTime.
func (h *Hint) Passed(ref v1alpha1.PoolReference, version string) bool {
	return h.marked(poolFile(ref)+".passed", version, passedTime)
}

// SetPassed saves that the block of a pool that overflows is full.
func (h *Hint) SetPassed(ref v1alpha1.PoolReference, version string) {
	h.failed("noting that a block is full", h.replace(hash(version), "pools", poolFile(ref)+".passed"))
}

func (h *Hint) marked(file, version string, age time.Duration) bool {
	text, err := os.Readlink(h.path("pools", file))
	return err == nil && text == hash(version) && h.youngerThan(age, "pools", file)
}

// SpaceOf names a space of a pool, for Last, Full, Passed and Window: 0 is the node's block, or
// all of a pool without blocks, and has the pool's name; those behind it are what the pool
// overflows to. No pool's name contains "@".
func SpaceOf(ref v1alpha1.PoolReference, number int) v1alpha1.PoolReference {
	if number > 0 {
		ref.Name += "@" + strconv.Itoa(number)
	}
	return ref
}

// LastingOf names the space of a pool in which pods keep their addresses, for Full and Listing.
func LastingOf(ref v1alpha1.PoolReference) v1alpha1.PoolReference {
	ref.Name += "@lasting"
	return ref
}

func poolFile(ref v1alpha1.PoolReference) string {
	return pool.Type(ref.Kind) + "." + filepath.Base(ref.Name)
}
