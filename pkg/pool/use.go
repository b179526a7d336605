// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Use says how the addresses that are held lie to the blocks of a pool.
type Use struct {
	// Blocks are all blocks, by address.
	Blocks []BlockUse
	// Whole is the whole subnet, if any node may use all of it; else nil.
	Whole *BlockUse
	// Gateways are held addresses that are a gateway now, and were not when they
	// were given: nobody requested them.
	Gateways []Held
	// Unfit are other held addresses that the pool would not give as it is
	// specified now. Those outside of the subnet lie in a block that their node has
	// kept from an earlier specification.
	Unfit []Held
	// Outside are held addresses of the subnet that lie in no block of their node,
	// although nobody requested them.
	Outside []Held
	// Foreign are held addresses outside of the subnet and of their node's blocks.
	Foreign []Held
	// Active are the blocks that nodes hand out addresses from: one for each node, and of an
	// earlier specification only where the node has no other (BlockOf).
	Active []*BlockUse
}

// BlockUse is how much of a block is held.
type BlockUse struct {
	Assignment

	// Earlier is true where the block is of an earlier specification.
	Earlier bool
	// Size is how many addresses are usable, at most greatest; Held is how many of
	// these anybody holds, and Rests how many rest after their release.
	Size, Held, Rests int64

	usable []netipx.IPRange
}

// Use measures blocks, which are as Carve returns them.
func (p *Pool) Use(blocks []Assignment, held []Held) *Use {
	u := &Use{Blocks: make([]BlockUse, len(blocks))}
	fits := p.fitting()
	for i, a := range blocks {
		u.Blocks[i] = p.unused(a)
		u.Blocks[i].Earlier = !fits(a)
	}
	u.active()
	if p.Shared || p.Overflow {
		whole := p.unused(Assignment{Range: p.whole()})
		u.Whole = &whole
	}
	for _, h := range held {
		p.sort(u, u.blockAt(h.Addr), h)
	}
	return u
}

func (p *Pool) unused(a Assignment) BlockUse {
	b := p.block(a)
	return BlockUse{Assignment: a, Size: b.Size(), usable: b.Usable}
}

// active sets Active.
func (u *Use) active() {
	current, seen := make(map[string]bool, len(u.Blocks)), make(map[string]bool, len(u.Blocks))
	for _, b := range u.Blocks {
		if !b.Earlier {
			current[b.Node] = true
		}
	}
	for i := range u.Blocks {
		if b := &u.Blocks[i]; !seen[b.Node] && b.Earlier != current[b.Node] {
			seen[b.Node] = true
			u.Active = append(u.Active, b)
		}
	}
}

// Capacity returns how many addresses nodes hand out automatically, at most greatest.
func (u *Use) Capacity() int64 {
	if u.Whole != nil {
		return u.Whole.Size
	}
	sum := int64(0)
	for _, b := range u.Active {
		sum = min(sum+b.Size, greatest)
	}
	return sum
}

// Full reports whether a block has no free address. A block without any usable address
// is not full: pods request the addresses of its pool, or ask by index.
func (b *BlockUse) Full() bool { return b.Size > 0 && b.Held+b.Rests >= b.Size }

// FullBlocks returns the active blocks without a free address whose nodes cannot go on
// elsewhere.
func (u *Use) FullBlocks() (full []*BlockUse) {
	if u.Whole != nil {
		return nil
	}
	for _, b := range u.Active {
		if b.Full() {
			full = append(full, b)
		}
	}
	return full
}

// blockAt returns the block that a lies in, nil where there is none.
func (u *Use) blockAt(a netip.Addr) *BlockUse {
	i, _ := slices.BinarySearchFunc(u.Blocks, a, func(b BlockUse, a netip.Addr) int { return b.Range.To().Compare(a) })
	if i < len(u.Blocks) && u.Blocks[i].Range.Contains(a) {
		return &u.Blocks[i]
	}
	return nil
}

// place says how a held address lies.
type place struct {
	own     bool // where its node hands out addresses from
	current bool // under the present specification
	usable  bool
}

// count enters a held address that lies in block b, nil is no block, and returns how it
// lies.
func (p *Pool) count(u *Use, b *BlockUse, h Held) place {
	var at place
	if b != nil {
		at = place{own: b.Node == h.Node, current: !b.Earlier, usable: within(b.usable, h.Addr)}
	}
	if at.usable {
		b.add(h)
	}
	if u.Whole != nil && within(u.Whole.usable, h.Addr) {
		u.Whole.add(h)
		return place{own: true, current: true, usable: true}
	}
	if p.Shared {
		at.own, at.current = p.Subnet.Contains(h.Addr), true
	}
	return at
}

func (b *BlockUse) add(h Held) {
	if h.Rests {
		b.Rests++
	} else {
		b.Held++
	}
}

// sort enters a held address that lies in block b; nil is no block.
func (p *Pool) sort(u *Use, b *BlockUse, h Held) {
	at := p.count(u, b, h)
	if h.Node == "" || h.Elsewhere { // no container would lose it, or it is the other pool's affair
		return
	}
	if !p.Subnet.Contains(h.Addr) {
		if at.own {
			u.Unfit = append(u.Unfit, h)
		} else {
			u.Foreign = append(u.Foreign, h)
		}
		return
	}
	at.own = at.own || h.Sticky // wherever it is
	requested := h.Requested && (at.own || p.layout.anywhere())
	switch {
	case requested:
		if !p.requestable(b, h.Addr) {
			u.Unfit = append(u.Unfit, h)
		}
	case p.isGateway(b, h.Addr):
		u.Gateways = append(u.Gateways, h)
	case p.excluded.Contains(h.Addr), at.own && at.current && !at.usable:
		u.Unfit = append(u.Unfit, h)
	}
	if !requested && !at.own {
		u.Outside = append(u.Outside, h)
	}
}

// isGateway reports whether a, which lies in block b, is a gateway.
func (p *Pool) isGateway(b *BlockUse, a netip.Addr) bool {
	return b != nil && b.Gateway == a || p.layout.anywhere() && p.layout.gateway(netipx.IPRange{}) == a
}

// requestable reports whether a, which lies in block b, may be requested: not where
// it is a network or broadcast address.
func (p *Pool) requestable(b *BlockUse, a netip.Addr) bool {
	var r netipx.IPRange // an IPPool's subnet is that of every block
	if b != nil {
		r = b.Range
	}
	subnet, _ := p.layout.view(r)
	return a.Is6() || hosts(subnet).Contains(a)
}

// within reports whether one of rs, which are in ascending order, contains a.
func within(rs []netipx.IPRange, a netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(rs, a, func(r netipx.IPRange, a netip.Addr) int { return r.To().Compare(a) })
	return i < len(rs) && rs[i].Contains(a)
}
