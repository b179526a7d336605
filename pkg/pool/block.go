// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Block is a pool as one node sees it: all that the node needs to hand out
// addresses. It is kept on the node's disk as JSON.
type Block struct {
	// Pool is the pool's kind and name.
	Pool v1alpha1.PoolReference `json:"pool"`
	// Domain that the addresses are unique in: see v1alpha1.PoolAccess.
	Domain string `json:"domain"`
	// Subnet that addresses belong to: a requested address is inside of it, and
	// a result carries its prefix length.
	Subnet netip.Prefix `json:"subnet"`
	// Range is the node's block. Addresses are handed out from it, and an index
	// counts from its first address.
	Range netipx.IPRange `json:"range"`
	// Usable is Range without the gateway and what is excluded, ascending.
	Usable []netipx.IPRange `json:"usable"`
	// Gateway of the subnet; zero when there is none.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Routes that come with an address, via Gateway; sorted.
	Routes []netip.Prefix `json:"routes,omitempty"`
	// Shared is true if other nodes hand out addresses from Range as well: it is the whole
	// subnet of a pool without blocks, or space that an overflowing node goes on in.
	Shared bool `json:"shared,omitempty"`
	// Seed of this node's order in a shared space.
	Seed uint64 `json:"seed,omitempty"`
	// FromEnd is true if a shared space is used from its end: its first part is kept free for
	// blocks to come.
	FromEnd bool `json:"fromEnd,omitempty"`
	// Overflow are the spaces in which the node goes on if the block is full, in this order.
	// The last one is the whole subnet.
	Overflow []*Block `json:"overflow,omitempty"`
	// Whole is the whole subnet, in which pods that keep their addresses have theirs, if
	// nothing above is: see Lasting.
	Whole *Block `json:"whole,omitempty"`
	// Earlier is true where the block is of an earlier specification of the pool,
	// and the node has none of the present one.
	Earlier bool `json:"earlier,omitempty"`

	access
}

// block returns what a node needs to know about the block that it was assigned.
// Where the pool's subnet was changed under a block, only its hosts that lie in
// both are usable.
func (p *Pool) block(a Assignment) *Block {
	if !a.Gateway.IsValid() {
		a.Gateway = p.layout.gateway(a.Range)
	}
	subnet, r := p.layout.view(a.Range)
	var b netipx.IPSetBuilder
	for _, part := range p.open(a.Range) {
		for _, bound := range []netipx.IPRange{r, hosts(subnet), netipx.RangeOfPrefix(p.Subnet)} {
			part, _ = intersection(part, bound)
		}
		if part.IsValid() {
			b.AddRange(part)
		}
	}
	b.RemoveSet(p.excluded)
	if a.Gateway.IsValid() {
		b.Remove(a.Gateway)
	}
	usable, _ := b.IPSet() // fails on invalid ranges only, and there are none
	return &Block{Pool: p.Ref, Domain: p.Domain, Subnet: subnet, Range: r, Usable: usable.Ranges(), Gateway: a.Gateway, Routes: p.routes, access: p.access}
}

// greatest is the largest size that is told: every JSON reader knows integers up
// to it, and an int64 has room for the sum of many.
const greatest = 1<<53 - 1

// Size returns how many addresses are usable, at most greatest.
func (b *Block) Size() int64 {
	sum := new(big.Int)
	for _, r := range b.Usable {
		sum.Add(sum, distance(r.From(), r.To())).Add(sum, one)
	}
	if sum.Cmp(big.NewInt(greatest)) > 0 {
		return greatest
	}
	return sum.Int64()
}

// open returns the parts of the block r that no per-node exclusion covers.
func (p *Pool) open(r netipx.IPRange) []netipx.IPRange {
	if len(p.perNode) == 0 {
		return []netipx.IPRange{r}
	}
	var b netipx.IPSetBuilder
	b.AddRange(r)
	for _, x := range p.perNode {
		if positions, ok := x.of(r); ok {
			b.RemoveRange(positions)
		}
	}
	set, _ := b.IPSet() // fails on invalid ranges only, and there are none
	return set.Ranges()
}

// of returns the addresses at the positions x of r, or false where r is too
// short to have any.
func (x indexRange) of(r netipx.IPRange) (netipx.IPRange, bool) {
	from, ok := offset(r.From(), big.NewInt(x.from))
	if !ok {
		return netipx.IPRange{}, false
	}
	to, ok := offset(r.From(), big.NewInt(x.to))
	if !ok {
		to = r.To()
	}
	return intersection(r, netipx.IPRangeFrom(from, to))
}

// intersection returns the addresses that a and b have in common, or false where
// there are none.
func intersection(a, b netipx.IPRange) (netipx.IPRange, bool) {
	from, to := a.From(), a.To()
	if from.Less(b.From()) {
		from = b.From()
	}
	if b.To().Less(to) {
		to = b.To()
	}
	r := netipx.IPRangeFrom(from, to)
	return r, r.IsValid()
}

// each yields the addresses of rs that are not before from nor after to, and
// reports whether to go on.
func each(rs []netipx.IPRange, from, to netip.Addr, yield func(netip.Addr) bool) bool {
	for _, r := range rs {
		part, ok := intersection(r, netipx.IPRangeFrom(from, to))
		if !ok {
			continue
		}
		for a := part.From(); a.IsValid() && !part.To().Less(a); a = a.Next() {
			if !yield(a) {
				return false
			}
		}
	}
	return true
}
