// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"net/netip"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Pool is the specification of a pool of any kind, checked and parsed.
type Pool struct {
	// Ref is the pool's kind and name.
	Ref v1alpha1.PoolReference
	// Domain that the addresses are unique in: see v1alpha1.PoolAccess.
	Domain string
	// Subnet is all that the pool may hand out, host bits cleared.
	Subnet netip.Prefix

	// Shared is true if the pool has no blocks: every node that it selects hands out
	// addresses from the whole subnet.
	Shared bool

	overflows bool                       // a node whose block is full goes on in the rest of the subnet
	selector  *nodeaffinity.NodeSelector // nil selects all nodes
	terms     *corev1.NodeSelector       // the same, as it was written
	grid      grid
	static    []Assignment // that the specification itself has; Node is empty if a block is kept for nobody
	excluded  *netipx.IPSet
	// unusable are addresses that are never allocated automatically; a block with
	// only these and those at perNode is not assigned. They are the excluded ones,
	// and the gateway if each block of the shared subnet is a single address.
	unusable ranges
	perNode  []indexRange
	routes   []netip.Prefix

	// layout is what differs between the kinds.
	layout layout
}

// layout turns an assigned range into what a node needs to know about it.
type layout interface {
	// gateway of the block r, zero when there is none in it.
	gateway(r netipx.IPRange) netip.Addr
	// view returns the subnet that addresses of the block r belong to and the
	// part of r that may be handed out.
	view(r netipx.IPRange) (netip.Prefix, netipx.IPRange)
	// anywhere reports whether a requested address may lie outside of its node's
	// block.
	anywhere() bool
}

// domainOf returns the domain of a pool: its own name, unless it says another.
func domainOf(poolName string, access v1alpha1.PoolAccess) string {
	return cmp.Or(access.Domain, poolName)
}

// Assignment is the block of one node.
type Assignment struct {
	Node  string
	Range netipx.IPRange
	// Gateway of the block; zero when there is none.
	Gateway netip.Addr
}

// indexRange is an inclusive range of positions in a block.
type indexRange struct{ from, to int64 }

// whole returns all addresses that nodes may hand out blocks of.
func (p *Pool) whole() netipx.IPRange { return netipx.IPRangeFrom(p.grid.first, p.grid.last) }

// hosts returns the addresses of prefix that a host may have: not the network
// address, nor in IPv4 the broadcast address, except where the prefix is a
// single address or a point-to-point link (RFC 3021, RFC 6164).
func hosts(prefix netip.Prefix) netipx.IPRange {
	r := netipx.RangeOfPrefix(prefix)
	if pointToPoint(prefix) {
		return r
	}
	to := r.To()
	if to.Is4() {
		to = to.Prev()
	}
	return netipx.IPRangeFrom(r.From().Next(), to)
}

// pointToPoint reports whether prefix has one or two addresses.
func pointToPoint(prefix netip.Prefix) bool {
	return prefix.Addr().BitLen()-prefix.Bits() <= 1
}
