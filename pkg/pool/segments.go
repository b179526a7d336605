// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Segment is a part of a pool that is one node's block, or nobody's.
type Segment struct {
	Range netipx.IPRange
	// Node is "" where the segment is no node's block.
	Node string
	// Earlier is true where the block is of an earlier specification.
	Earlier bool
	// Given is true if some node takes addresses from the segment.
	Given bool

	block *Block // as its node sees it; nil where a CIDRPool has no block
}

// Kind of an address that nobody holds.
type Kind int

// The kinds.
const (
	Free       Kind = iota
	Unassigned      // in nobody's block
	Excluded        // never allocated automatically; or not an address of a host
	Gateway
)

// Segments returns the blocks, and the space between them, by address. A pool without
// blocks is one segment.
func (p *Pool) Segments(blocks []Assignment) []Segment {
	if p.Shared {
		return []Segment{{Range: netipx.RangeOfPrefix(p.Subnet), Given: true, block: p.Whole()}}
	}
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b Assignment) int { return a.Range.From().Compare(b.Range.From()) })
	fits := p.fitting()
	var out []Segment
	next := p.whole().From() // the first address that is not in a segment yet; zero after the last
	gap := func(before netip.Addr) {
		to := before.Prev()
		if !p.whole().Contains(to) {
			to = p.whole().To()
		}
		if r := netipx.IPRangeFrom(next, to); r.IsValid() && next.Less(before) {
			out = append(out, p.between(r))
		}
	}
	for _, a := range blocks {
		if p.whole().Contains(a.Range.From()) {
			gap(a.Range.From())
		}
		out = append(out, Segment{Range: a.Range, Node: a.Node, Earlier: !fits(a), Given: true, block: p.block(a)})
		if p.whole().Contains(a.Range.To()) && !a.Range.To().Less(next) {
			next = a.Range.To().Next()
		}
	}
	if p.whole().Contains(next) {
		out = append(out, p.between(netipx.IPRangeFrom(next, p.whole().To())))
	}
	slices.SortStableFunc(out, func(a, b Segment) int { return a.Range.From().Compare(b.Range.From()) })
	return out
}

// between is space that is nobody's block.
func (p *Pool) between(r netipx.IPRange) Segment {
	s := Segment{Range: r, Given: p.Overflow}
	if p.layout.anywhere() {
		s.block = p.block(Assignment{Range: r})
	}
	return s
}

// Size returns how many addresses can be allocated automatically, or could if the segment
// were a node's block; at most greatest.
func (s *Segment) Size() int64 {
	if s.block != nil {
		return s.block.Size()
	}
	n := new(big.Int).Add(distance(s.Range.From(), s.Range.To()), one)
	if n.Cmp(big.NewInt(greatest)) > 0 {
		return greatest
	}
	return n.Int64()
}

// Kind returns what an address of the segment is if nobody holds it.
func (s *Segment) Kind(a netip.Addr) Kind {
	switch {
	case s.block == nil:
		return Unassigned
	case a == s.block.Gateway:
		return Gateway
	case !s.block.Contains(a):
		return Excluded
	case !s.Given:
		return Unassigned
	}
	return Free
}
