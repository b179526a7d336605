// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import "go4.org/netipx"

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
// In a pool without blocks that is the whole subnet, for every node.
func (p *Pool) BlockOf(current []Assignment, node string) (b *Block, ok bool) {
	if p.Shared {
		b = p.block(Assignment{Node: node, Range: p.whole()})
		b.Shared, b.NodeSelector = true, p.terms
		return b, true
	}
	fits := p.fitting()
	var old []Assignment
	for _, a := range current {
		switch {
		case a.Node != node:
		case fits(a):
			return p.block(a), true
		default:
			old = append(old, a)
		}
	}
	if len(old) == 0 {
		return nil, false
	}
	b = p.block(old[0])
	b.Earlier = true
	return b, true
}
