// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Carve says which node has which block.
//
//	current  the blocks as they are
//	nodes    the nodes that the pool's selector matches, in any order
//	holds    whether a node holds addresses of this pool
//
// The rules, in their order:
//
//  1. A node that holds addresses keeps its block, whatever else has changed: a
//     block is not moved or given away under a live pod. Of two such blocks that
//     overlap, the first in current counts.
//  2. A static allocation gives its node its prefix, and keeps it from others.
//  3. Any other node that is still selected keeps its block, if that is still one
//     of the pool's and has an address that is not excluded.
//  4. Every other node, by name, is given the first block that is free and has
//     an address that is not excluded.
//
// It returns the blocks sorted by address, and the nodes that there was no room
// for, sorted by name.
func (p *Pool) Carve(current []Assignment, nodes []string, holds func(node string) bool) (blocks []Assignment, unserved []string) {
	c := carving{pool: p, fixed: map[string]Assignment{}, served: map[string]bool{}, position: new(big.Int)}
	for _, s := range p.static {
		if s.Node != "" {
			c.fixed[s.Node] = s
		}
	}
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	selected := func(node string) bool { _, ok := slices.BinarySearch(nodes, node); return ok }

	for _, a := range current { // rule 1
		if holds(a.Node) {
			c.give(a)
		}
	}
	for _, s := range p.static { // rule 2
		if s.Node != "" && selected(s.Node) {
			c.give(s)
		}
	}
	for _, s := range p.static {
		c.taken.add(s.Range)
	}
	for _, a := range current { // rule 3
		if selected(a.Node) && !c.hasFixed(a.Node) && p.grid.has(a.Range) && !p.wasted(a.Range) {
			c.give(a)
		}
	}
	for _, node := range nodes { // rule 4
		if c.served[node] {
			continue
		}
		r, ok := netipx.IPRange{}, false
		if !c.hasFixed(node) {
			r, ok = c.next()
		}
		if !ok {
			unserved = append(unserved, node)
			continue
		}
		c.give(Assignment{Node: node, Range: r})
	}
	slices.SortFunc(c.blocks, func(a, b Assignment) int { return a.Range.From().Compare(b.Range.From()) })
	return c.blocks, unserved
}

// carving is the state of one Carve.
type carving struct {
	pool     *Pool
	fixed    map[string]Assignment // static allocations by node
	blocks   []Assignment
	served   map[string]bool
	taken    ranges
	position *big.Int // no block before it is free
}

// give assigns a block, unless its node has one or a part of it is taken.
func (c *carving) give(a Assignment) {
	if c.served[a.Node] || !c.taken.add(a.Range) {
		return
	}
	a.Gateway = c.gateway(a)
	c.served[a.Node] = true
	c.blocks = append(c.blocks, a)
}

func (c *carving) hasFixed(node string) bool { _, ok := c.fixed[node]; return ok }

// gateway returns the gateway of a block as the specification has it now. A
// block that is none of the pool's any more was cut from an earlier one, and so
// was its gateway.
func (c *carving) gateway(a Assignment) netip.Addr {
	if s, ok := c.fixed[a.Node]; ok && s.Range == a.Range {
		return s.Gateway
	}
	if a.Gateway.IsValid() && !c.pool.grid.has(a.Range) {
		return a.Gateway
	}
	return c.pool.layout.gateway(a.Range)
}

// next returns the first free block that has an address to hand out. It jumps
// over what is taken or excluded, however large: an exclusion of a whole /64
// costs one step.
func (c *carving) next() (netipx.IPRange, bool) {
	g := c.pool.grid
	for {
		block, ok := g.at(c.position)
		if !ok {
			return netipx.IPRange{}, false
		}
		over, taken := c.taken.overlapping(block)
		if !taken {
			over, taken = c.pool.waste(block)
		}
		if !taken {
			return block, true
		}
		// The block that over ends in may still be free in part; this one is not.
		to := g.position(over.To())
		if to.Cmp(c.position) <= 0 {
			to.Add(c.position, one)
		}
		c.position = to
	}
}

// wasted reports whether a block has no address that is not excluded.
func (p *Pool) wasted(block netipx.IPRange) bool {
	_, yes := p.waste(block)
	return yes
}

// waste returns the last of the excluded ranges that together leave no address
// of a block, or false where they leave one. As in nv-ipam, the network address
// of a CIDRPool's prefix counts as an address here, its broadcast address not.
func (p *Pool) waste(block netipx.IPRange) (over netipx.IPRange, yes bool) {
	_, hosts := p.layout.view(block)
	// Per-node exclusions that leave nothing do so in every block to come.
	over, yes = netipx.IPRangeFrom(block.From(), p.grid.last), true
	for _, part := range p.open(netipx.IPRangeFrom(block.From(), hosts.To())) {
		if over, yes = p.unusable.containing(part); !yes {
			break
		}
	}
	return over, yes
}

// ranges are disjoint ranges of addresses in ascending order.
type ranges []netipx.IPRange

// add inserts r, or reports false where a part of it is there already.
func (s *ranges) add(r netipx.IPRange) bool {
	if _, ok := s.overlapping(r); ok {
		return false
	}
	*s = slices.Insert(*s, s.search(r.From()), r)
	return true
}

// overlapping returns the first range that has an address in common with r.
func (s ranges) overlapping(r netipx.IPRange) (netipx.IPRange, bool) {
	i := s.search(r.From())
	if i < len(s) && s[i].Overlaps(r) {
		return s[i], true
	}
	return netipx.IPRange{}, false
}

// containing returns the range that holds every address of r.
func (s ranges) containing(r netipx.IPRange) (netipx.IPRange, bool) {
	over, ok := s.overlapping(r)
	if !ok || !over.Contains(r.From()) || !over.Contains(r.To()) {
		return netipx.IPRange{}, false
	}
	return over, true
}

// search returns the index of the first range that ends at a or later.
func (s ranges) search(a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(s, a, func(r netipx.IPRange, a netip.Addr) int { return r.To().Compare(a) })
	return i
}
