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

// closedFile is there while addresses of another IPAM are adopted.
const closedFile = "closed"

// Foreign is what another IPAM, nv-ipam, has given on this node as far as that has
// not become an allocation yet.
type Foreign struct {
	// Store is nv-ipam's store, which may have more by the time it is looked at. A
	// relative path begins at the hint's directory, which may have another path in
	// the container of whoever adopts than on the host.
	Store string `json:"store"`
	// Held are the addresses that were in the store and are to be adopted.
	Held []ForeignEntry `json:"held"`
	// Settled are the ones in the store that are allocations, or were: the API
	// server says who has them.
	Settled []ForeignEntry `json:"settled"`
}

// ForeignEntry is one address of an attachment.
type ForeignEntry string

// NewForeignEntry returns an entry of a pool.
func NewForeignEntry(poolName string, addr netip.Addr, att Attachment) ForeignEntry {
	return ForeignEntry(v1alpha1.AllocationName(poolName, addr) + " " + att.ContainerID + "/" + att.Interface)
}

// allocation is the name that the entry's allocation will have.
func (e ForeignEntry) allocation() string {
	name, _, _ := strings.Cut(string(e), " ")
	return name
}

// Close keeps ADDs of this node waiting while addresses are adopted. It has to be
// repeated: after settleTime ADDs go on, since whoever adopts may have died, and
// pods must not depend on that. From then until Open they are given no address that
// nv-ipam has given and that is not adopted yet.
func (h *Hint) Close(foreign Foreign) error {
	if rel, err := filepath.Rel(h.root, foreign.Store); err == nil && filepath.IsLocal(rel) {
		foreign.Store = rel
	}
	data, err := json.Marshal(foreign)
	if err != nil {
		return err
	}
	node := &Hint{dir: h.root}
	return node.rename(func(tmp string) error { return os.WriteFile(tmp, data, 0o600) }, closedFile)
}

// Open says that all is adopted: it ends what Close began.
func (h *Hint) Open() error {
	err := os.Remove(filepath.Join(h.root, closedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Foreign returns the names of the allocations that this node must not make,
// because nv-ipam has given the addresses and nobody has adopted them yet. There are
// none unless an adoption has begun and not ended.
func (h *Hint) Foreign() map[string]bool {
	data, err := os.ReadFile(filepath.Join(h.root, closedFile))
	if err != nil {
		return nil
	}
	var f Foreign
	if json.Unmarshal(data, &f) != nil || f.Store == "" { // written by an earlier version, or lost with the power
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

// readForeign reads the addresses in nv-ipam's store, as far as there are any: what
// cannot be read cannot be kept free. Package migrate reads the rest of it.
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

// Closed reports whether ADDs of this node have to wait.
func (h *Hint) Closed() bool {
	info, err := os.Lstat(filepath.Join(h.root, closedFile))
	return err == nil && time.Since(info.ModTime()).Abs() < settleTime
}
