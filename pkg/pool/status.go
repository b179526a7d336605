// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// IPPoolAssignments reads the blocks in an IPPool's status. An entry that is not
// a range of addresses is left out: it says nothing that could be kept.
func IPPoolAssignments(in []v1alpha1.Allocation) []Assignment {
	out := make([]Assignment, 0, len(in))
	for _, e := range in {
		from, errFrom := ParseAddr(e.StartIP)
		to, errTo := ParseAddr(e.EndIP)
		r := netipx.IPRangeFrom(from, to)
		if errFrom == nil && errTo == nil && r.IsValid() {
			out = append(out, Assignment{Node: e.NodeName, Range: r})
		}
	}
	return out
}

// IPPoolAllocations writes blocks as an IPPool's status has them; never nil,
// since the API requires the field.
func IPPoolAllocations(in []Assignment) []v1alpha1.Allocation {
	out := make([]v1alpha1.Allocation, len(in))
	for i, a := range in {
		out[i] = v1alpha1.Allocation{NodeName: a.Node, StartIP: a.Range.From().String(), EndIP: a.Range.To().String()}
	}
	return out
}

// CIDRPoolAssignments reads the prefixes in a CIDRPool's status. An entry that
// is not a prefix is left out.
func CIDRPoolAssignments(in []v1alpha1.CIDRPoolAllocation) []Assignment {
	out := make([]Assignment, 0, len(in))
	for _, e := range in {
		prefix, err := netip.ParsePrefix(e.Prefix)
		if err != nil || prefix.Addr().Is4In6() {
			continue
		}
		gateway, _ := ParseAddr(e.Gateway) // zero where there is none
		out = append(out, Assignment{Node: e.NodeName, Range: netipx.RangeOfPrefix(prefix), Gateway: gateway})
	}
	return out
}

// CIDRPoolAllocations writes prefixes as a CIDRPool's status has them; never
// nil, since the API requires the field.
func CIDRPoolAllocations(in []Assignment) []v1alpha1.CIDRPoolAllocation {
	out := make([]v1alpha1.CIDRPoolAllocation, 0, len(in))
	for _, a := range in {
		e := v1alpha1.CIDRPoolAllocation{NodeName: a.Node}
		if prefix, ok := a.Range.Prefix(); ok {
			e.Prefix = prefix.String()
		}
		if a.Gateway.IsValid() {
			e.Gateway = a.Gateway.String()
		}
		out = append(out, e)
	}
	return out
}
