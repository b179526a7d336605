// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Pool is the specification of an IPPool or a CIDRPool, checked and parsed.
type Pool struct {
	// Ref is the pool's kind and name.
	Ref v1alpha1.PoolReference
	// Subnet is all that the pool may hand out, host bits cleared.
	Subnet netip.Prefix

	selector *nodeaffinity.NodeSelector // nil selects all nodes
	terms    *corev1.NodeSelector       // the same, as it was written
	grid     grid
	static   []Assignment // of a CIDRPool; Node is empty where a prefix is kept for nobody
	excluded *netipx.IPSet
	// unusable are addresses that make a block a waste when it has no others but
	// those at perNode: the excluded ones, and the gateway where a block of an
	// IPPool is a single address.
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

// sharedSubnet is the layout of an IPPool: one subnet, one gateway for all.
type sharedSubnet struct {
	subnet netip.Prefix
	gw     netip.Addr
}

func (l sharedSubnet) gateway(netipx.IPRange) netip.Addr { return l.gw }

func (l sharedSubnet) view(r netipx.IPRange) (netip.Prefix, netipx.IPRange) { return l.subnet, r }

func (l sharedSubnet) anywhere() bool { return true }

// ownSubnet is the layout of a CIDRPool: a prefix and a gateway for each node.
type ownSubnet struct {
	gatewayIndex *int32
}

func (l ownSubnet) gateway(r netipx.IPRange) netip.Addr {
	if l.gatewayIndex == nil {
		return netip.Addr{}
	}
	gw, _ := offset(r.From(), big.NewInt(int64(*l.gatewayIndex)))
	if _, inside := l.view(r); !inside.Contains(gw) {
		return netip.Addr{}
	}
	return gw
}

func (l ownSubnet) anywhere() bool { return false }

// view takes the prefix from r and not from the specification: a node that holds
// addresses keeps its prefix when perNodeNetworkPrefix is edited.
func (l ownSubnet) view(r netipx.IPRange) (netip.Prefix, netipx.IPRange) {
	prefix, ok := r.Prefix()
	if !ok {
		return netip.Prefix{}, netipx.IPRange{} // no prefix, no addresses
	}
	return prefix, hosts(prefix)
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
