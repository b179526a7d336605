// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Want is what a caller asks for beyond any address at all. Its fields exclude
// each other.
type Want struct {
	// Addresses are requested ones, in canonical form (ParseAddr).
	Addresses []netip.Addr
	// DefaultGateway asks for the pool's gateway itself.
	DefaultGateway bool
	// Index asks for the address at a position in the node's block, from 0.
	Index *int
}

// IsZero reports whether nothing is asked for.
func (w Want) IsZero() bool { return len(w.Addresses) == 0 && !w.DefaultGateway && w.Index == nil }

// RequestError says that what was asked for cannot be had from these pools,
// whoever holds which address: asking again does not help. The words are
// nv-ipam's, which people search their logs for.
type RequestError struct{ Message string }

func (e *RequestError) Error() string { return e.Message }

func refuse(format string, args ...any) error {
	return &RequestError{Message: fmt.Sprintf(format, args...)}
}

// Match says which address each block has to hand out; a zero address is any
// that is free. It returns a RequestError where something that was asked for
// cannot be had.
//
// Each block takes a requested address inside its subnet (choose), no two of a domain the same. An
// excluded address or the gateway may be requested. A block of a pool whose assignment is Manual
// refuses to hand out any address: the gateway or an index asks for a certain one, too.
func Match(blocks []*Block, want Want) ([]netip.Addr, error) {
	out := make([]netip.Addr, len(blocks))
	taken := make(map[netip.Addr]bool, len(want.Addresses))
	type place struct {
		domain string
		addr   netip.Addr
	}
	given := map[place]*Block{} // in a domain an address is given once
	for i, b := range blocks {
		switch {
		case want.DefaultGateway:
			if !b.Gateway.IsValid() {
				return nil, refuse("pool without gateway can't be used with allocate_default_gateway feature,pool %q, poolType %q", b.Pool.Name, Type(b.Pool.Kind))
			}
			out[i] = b.Gateway
		case want.Index != nil:
			a, err := b.at(*want.Index)
			if err != nil {
				return nil, err
			}
			out[i] = a
		default:
			a := b.choose(want.Addresses, blocks, func(a netip.Addr) bool { return given[place{b.Domain, a}] != nil })
			if a.IsValid() && !hosts(b.Subnet).Contains(a) {
				return nil, refuse("requested IP %s is the network or broadcast address of %s (pool %q, poolType %q), which no interface can have",
					a, b.Subnet, b.Pool.Name, Type(b.Pool.Kind))
			}
			if a.IsValid() {
				out[i], taken[a] = a, true
			}
		}
		if other := given[place{b.Domain, out[i]}]; other != nil { // the gateway of both, or at the index in both
			return nil, refuse("pools %q and %q are of domain %q, and both would hand out %s: name one of them", other.Pool.Name, b.Pool.Name, b.Domain, out[i])
		}
		if out[i].IsValid() {
			given[place{b.Domain, out[i]}] = b
		}
		if b.Manual && !out[i].IsValid() {
			return nil, refuse("pool %q, poolType %q gives only addresses that are asked for because its spec.assignment is Manual: request an address of %s, or name another pool", b.Pool.Name, Type(b.Pool.Kind), b.Subnet)
		}
	}
	for _, a := range want.Addresses {
		if !taken[a] {
			return nil, refuse("not all requested static IPs can be allocated from the ranges available on the node, ip %s has no matching Pool%s", a, subnets(blocks))
		}
	}
	return out, nil
}

// choose returns the requested address that a block takes, zero for none: the first in its subnet
// that is not given and that no other block of its domain has, or else the first. It leaves a block
// of a Manual pool what only that can take.
func (b *Block) choose(requested []netip.Addr, blocks []*Block, given func(netip.Addr) bool) (first netip.Addr) {
	for _, a := range requested {
		if !b.Subnet.Contains(a) || given(a) {
			continue
		}
		others, manual := false, false
		for _, o := range blocks {
			if o != b && o.Domain == b.Domain && o.Subnet.Contains(a) {
				others, manual = true, manual || o.Manual
			}
		}
		if !others {
			return a
		}
		if !first.IsValid() && (b.Manual || !manual) {
			first = a
		}
	}
	return first
}

// subnets says which addresses can be requested.
func subnets(blocks []*Block) string {
	var texts []string
	for _, b := range blocks {
		texts = append(texts, fmt.Sprintf("%s %s has %s", Type(b.Pool.Kind), b.Pool.Name, b.Subnet))
	}
	if len(texts) == 0 {
		return ""
	}
	return ": " + strings.Join(texts, ", ")
}

// OnePerFamily returns a RequestError if two blocks are of one address family.
func OnePerFamily(blocks []*Block) error {
	seen := map[bool]string{}
	for _, b := range blocks {
		is4 := b.Subnet.Addr().Is4()
		if other, twice := seen[is4]; twice {
			return refuse("pools %q and %q are of one address family, and a result of this cniVersion has room for one address of each: set cniVersion to 0.3.0 or newer", other, b.Pool.Name)
		}
		seen[is4] = b.Pool.Name
	}
	return nil
}

// at returns the address at a position in the block.
func (b *Block) at(index int) (netip.Addr, error) {
	a, _ := offset(b.Range.From(), big.NewInt(int64(index))) // zero is nowhere
	switch {
	case index >= 0 && a.IsValid() && a == b.Gateway:
		return netip.Addr{}, refuse("requested IP index \"%d\" is the actual gateway, use allocate_default_gateway feature instead", index)
	case !b.Range.Contains(a) || !b.Subnet.Contains(a):
		return netip.Addr{}, refuse("requested IP index \"%d\" is outside of the given chunk", index)
	}
	return a, nil
}

// Invalid returns the error of a pool whose specification is not valid, or nil
// where nothing is wrong with it.
func Invalid(ref v1alpha1.PoolReference, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return refuse("%s %q is invalid: %s", ref.Kind, ref.Name, Explain(errs))
}
