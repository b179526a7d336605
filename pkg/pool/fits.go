// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Misfits returns those of blocks that the pool would not give as it is
// specified now: they are from an earlier specification, and are kept because
// their nodes hold addresses of them (rule 1 of Carve).
func (p *Pool) Misfits(blocks []Assignment) []Assignment {
	byNode, byRange := map[string]netipx.IPRange{}, map[netipx.IPRange]string{}
	for _, s := range p.static {
		byNode[s.Node], byRange[s.Range] = s.Range, s.Node
	}
	delete(byNode, "") // kept for nobody
	return slices.DeleteFunc(slices.Clone(blocks), func(a Assignment) bool {
		if own, fixed := byNode[a.Node]; fixed {
			return own == a.Range
		}
		_, othersOwn := byRange[a.Range]
		return !othersOwn && p.grid.has(a.Range) && !p.wasted(a.Range)
	})
}

// FitsAddress reports whether the pool as it is specified now could have given
// an address: it is in the subnet, and unless it was requested it is not
// excluded.
func (p *Pool) FitsAddress(a netip.Addr, requested bool) bool {
	return p.Subnet.Contains(a) && (requested || !p.excluded.Contains(a))
}
