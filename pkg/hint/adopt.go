// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// pausedFile exists while addresses of another IPAM are being adopted.
const pausedFile = "closed"

// Foreign lists the addresses that nv-ipam has given on this node and that may not be
// allocations yet.
type Foreign struct {
	// Store is the path of nv-ipam's store, which is read again by each ADD. A relative
	// path begins at the hint's directory, since that may have one path on the host and
	// another in the container that adopts.
	Store string `json:"store"`
	// Held are the addresses that were in the store and are to be adopted.
	Held []ForeignEntry `json:"held"`
	// Settled are the addresses in the store that are or were allocations. The API
	// server knows who holds them.
	Settled []ForeignEntry `json:"settled"`
}

// ForeignEntry is one address that nv-ipam has given to an attachment.
type ForeignEntry string

// NewForeignEntry returns the entry for an address of a pool.
func NewForeignEntry(poolName string, addr netip.Addr, att Attachment) ForeignEntry {
	return ForeignEntry(v1alpha1.AllocationName(poolName, addr) + " " + att.ContainerID + "/" + att.Interface)
}

// allocation returns the name of the IPAllocation of the entry.
func (e ForeignEntry) allocation() string {
	name, _, _ := strings.Cut(string(e), " ")
	return name
}

// PauseADDs keeps the ADDs of this node waiting while addresses are adopted. The caller
// repeats it: InFlight after the last time ADDs continue, since the caller may have
// died. Until ResumeADDs they then claim no address that nv-ipam has given and nobody
// has adopted.
func (h *Hint) PauseADDs(foreign Foreign) error {
	if rel, err := filepath.Rel(h.root, foreign.Store); err == nil && filepath.IsLocal(rel) {
		foreign.Store = rel
	}
	node := &Hint{dir: h.root}
	return node.saveJSON(foreign, pausedFile)
}

// ResumeADDs ends what PauseADDs began: everything is adopted.
func (h *Hint) ResumeADDs() error {
	err := os.Remove(filepath.Join(h.root, pausedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Foreign returns the addresses that this node must not claim, because nv-ipam has given them
// and nobody has adopted them yet; each as the name that its allocation has in a pool without a
// domain. There are none unless an adoption is unfinished.
func (h *Hint) Foreign() map[string]bool {
	data, err := os.ReadFile(filepath.Join(h.root, pausedFile))
	if err != nil {
		return nil
	}
	var f Foreign
	if json.Unmarshal(data, &f) != nil || f.Store == "" { // an earlier version wrote it, or a power failure damaged it
		f = Foreign{Store: "store"}
	}
	path := f.Store
	if !filepath.IsAbs(path) {
		path = filepath.Join(h.root, path)
	}
	names := map[string]bool{}
	for _, e := range append(f.Held, readForeign(path)...) {
		if !slices.Contains(f.Settled, e) {
			names[e.allocation()] = true
		}
	}
	return names
}

// readForeign reads the addresses in nv-ipam's store. It ignores what it cannot read.
// Package migrate reads the other fields of the store.
func readForeign(path string) (out []ForeignEntry) {
	var store struct {
		Pools map[string]struct {
			Entries map[string]struct {
				ContainerID string `json:"container_id"`
				Interface   string `json:"interface_name"`
				Address     string `json:"ip_address"`
			} `json:"entries"`
		} `json:"pools"`
	}
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &store) != nil {
		return nil
	}
	for key, p := range store.Pools {
		for _, e := range p.Entries {
			if addr, err := pool.ParseAddr(e.Address); err == nil {
				out = append(out, NewForeignEntry(strings.TrimPrefix(key, "cidrpool/"), addr, Attachment{ContainerID: e.ContainerID, Interface: e.Interface}))
			}
		}
	}
	return out
}

// ADDsPaused reports whether the ADDs of this node have to wait.
func (h *Hint) ADDsPaused() bool {
	info, err := os.Lstat(filepath.Join(h.root, pausedFile))
	return err == nil && time.Since(info.ModTime()).Abs() < InFlight
}
