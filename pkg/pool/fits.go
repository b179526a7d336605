// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"

	"go4.org/netipx"
)

// fitting returns a function that reports whether the pool as it is specified now
// would give a block to its node. A block that does not fit is of an earlier
// specification, and is kept because its node holds addresses of it (rule 1 of
// Carve).
func (p *Pool) fitting() func(Assignment) bool {
	byNode, byRange := map[string]netipx.IPRange{}, map[netipx.IPRange]bool{}
	for _, s := range p.static {
		byNode[s.Node], byRange[s.Range] = s.Range, true
	}
	delete(byNode, "") // kept for nobody
	return func(a Assignment) bool {
		if own, fixed := byNode[a.Node]; fixed {
			return own == a.Range
		}
		return !byRange[a.Range] && p.grid.has(a.Range) && !p.wasted(a.Range)
	}
}

// BlockOf returns the block from which a node hands out addresses, of those that
// it has in current: one that fits the specification, else one of an earlier
// specification, which its node has only as long as it holds addresses of it. It
// returns false where the node has none.
//
// In a pool without blocks that is the whole subnet, for every node. In a pool that
// overflows, the block says where the node goes on if it is full.
func (p *Pool) BlockOf(current []Assignment, node string) (b *Block, ok bool) {
	if p.Shared {
		b = p.sharedBlock(p.whole(), node)
		b.NodeSelector = p.terms
		return b, true
	}
	a, fits, ok := p.assignmentOf(current, node)
	if !ok {
		return nil, false
	}
	b = p.block(a)
	b.Earlier = !fits
	if p.Overflow {
		b.Overflow = p.overflow(current, node)
	}
	if p.layout.anywhere() && len(p.perNode) == 0 && !p.Overflow {
		b.Whole = p.sharedBlock(p.whole(), node)
	}
	return b, true
}

// Lasting returns the space from which pods have the addresses that they keep, whichever
// node they are on; nil if an address of the pool belongs to a node, or to a place in a block.
func (b *Block) Lasting() *Block {
	switch n := len(b.Overflow); {
	case b.Shared:
		return b
	case n > 0:
		return b.Overflow[n-1]
	}
	return b.Whole
}

// assignmentOf returns the block from which a node hands out addresses, and whether it
// fits.
func (p *Pool) assignmentOf(current []Assignment, node string) (a Assignment, fits, ok bool) {
	fitting := p.fitting()
	for _, c := range current {
		if c.Node == node && fitting(c) {
			return c, true, true
		}
		if c.Node == node && !ok {
			a, ok = c, true
		}
	}
	return a, false, ok
}

// sharedBlock returns a space that all nodes hand out addresses from.
func (p *Pool) sharedBlock(r netipx.IPRange, node string) *Block {
	b := p.block(Assignment{Node: node, Range: r})
	b.Shared, b.Seed = true, seedOf(node, p.Domain)
	return b
}

// Whole returns the whole subnet as a block, if any node may use all of it; else nil.
func (p *Pool) Whole() *Block {
	if !p.Shared && !p.Overflow {
		return nil
	}
	return p.block(Assignment{Range: p.whole()})
}

// Gives reports whether a node may hand out an address to a pod that does not ask for it.
func (p *Pool) Gives(a netip.Addr) bool {
	if p.access.Manual || p.excluded.Contains(a) { // a block costs more, with many exclusions
		return false
	}
	if whole := p.Whole(); whole != nil {
		return within(whole.Usable, a)
	}
	r, ok := p.grid.containing(a)
	return ok && within(p.block(Assignment{Range: r}).Usable, a)
}

// maxFreeRanges bounds what a node keeps on its disk of the space that is nobody's block.
// What is beyond is in the whole subnet.
const maxFreeRanges = 16

// overflow returns where a node goes on whose block is full: the end of the space that is
// nobody's block, if there is any, and then the whole subnet.
func (p *Pool) overflow(blocks []Assignment, node string) []*Block {
	whole := p.sharedBlock(p.whole(), node)
	var b netipx.IPSetBuilder
	for _, r := range whole.Usable {
		b.AddRange(r)
	}
	for _, a := range blocks {
		b.RemoveRange(a.Range)
	}
	set, _ := b.IPSet() // fails on invalid ranges only, and there are none
	free := set.Ranges()
	if len(free) == 0 {
		return []*Block{whole}
	}
	rest := *whole
	rest.Usable, rest.FromEnd = free[max(0, len(free)-maxFreeRanges):], true
	return []*Block{&rest, whole}
}
