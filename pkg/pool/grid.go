// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"

	"go4.org/netipx"
)

// grid is the sequence of equal blocks that a subnet is cut into. Positions are
// big integers: a /48 holds 2^80 addresses.
type grid struct {
	first netip.Addr // first address of block 0
	last  netip.Addr // no block ends after this address
	step  *big.Int   // addresses in a block, at least 1
}

// at returns the block at position i, or false where it would end after last.
func (g grid) at(i *big.Int) (netipx.IPRange, bool) {
	from, ok := offset(g.first, new(big.Int).Mul(i, g.step))
	if !ok {
		return netipx.IPRange{}, false
	}
	to, ok := offset(from, new(big.Int).Sub(g.step, one))
	if !ok || g.last.Less(to) {
		return netipx.IPRange{}, false
	}
	return netipx.IPRangeFrom(from, to), true
}

// position returns the position of the block that a lies in; a is not before
// the first block.
func (g grid) position(a netip.Addr) *big.Int {
	return new(big.Int).Div(distance(g.first, a), g.step)
}

// containing returns the block that a lies in, or false where there is none.
func (g grid) containing(a netip.Addr) (netipx.IPRange, bool) {
	if a.BitLen() != g.first.BitLen() || a.Less(g.first) {
		return netipx.IPRange{}, false
	}
	return g.at(g.position(a))
}

// has reports whether r is one of the blocks.
func (g grid) has(r netipx.IPRange) bool {
	if r.From().Less(g.first) {
		return false
	}
	block, ok := g.at(g.position(r.From()))
	return ok && block == r
}

var one = big.NewInt(1)

// offset returns the address n after a, or false where the family ends before.
func offset(a netip.Addr, n *big.Int) (netip.Addr, bool) {
	bytes := a.AsSlice()
	sum := new(big.Int).SetBytes(bytes)
	sum.Add(sum, n)
	if sum.Sign() < 0 || sum.BitLen() > len(bytes)*8 {
		return netip.Addr{}, false
	}
	out, ok := netip.AddrFromSlice(sum.FillBytes(bytes))
	return out, ok
}

// distance returns b - a; both are of one family.
func distance(a, b netip.Addr) *big.Int {
	from := new(big.Int).SetBytes(a.AsSlice())
	to := new(big.Int).SetBytes(b.AsSlice())
	return to.Sub(to, from)
}
