// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"

	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// maxReserved is how many addresses one reservation keeps at most: each is an object.
const maxReserved = 1024

// Reserved returns the addresses that a reservation names, in their order and each once.
// They are not complete if there is an error.
func (o *Object) Reserved(spec *v1alpha1.IPReservationSpec) ([]netip.Addr, field.ErrorList) {
	path := field.NewPath("spec", "addresses")
	subnet, err := netip.ParsePrefix(o.Subnet)
	if err != nil {
		return nil, field.ErrorList{field.Invalid(field.NewPath("spec", "poolRef"), o.Ref.Name, "the subnet of the pool is invalid: "+o.Subnet)}
	}
	var c checker
	out := firstFew(setOf(c.ranges(path, spec.Addresses, subnet.Masked())), maxReserved+1)
	if len(out) > maxReserved {
		c.errs = append(c.errs, field.Invalid(path, spec.Addresses, fmt.Sprintf("are more than %d addresses: make several reservations, or exclude a range in the pool", maxReserved)))
	}
	return out, c.errs
}

// ReservedIn returns what a reservation names, whatever its pool and however much that is. It
// leaves out what cannot be read.
func ReservedIn(spec *v1alpha1.IPReservationSpec) *netipx.IPSet {
	var c checker
	var all []netipx.IPRange
	for _, family := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		all = append(all, c.ranges(nil, spec.Addresses, netip.PrefixFrom(family, 0))...)
	}
	return setOf(all)
}

// setOf merges ranges: what is named twice is in the set once.
func setOf(ranges []netipx.IPRange) *netipx.IPSet {
	var b netipx.IPSetBuilder
	for _, r := range ranges {
		b.AddRange(r)
	}
	set, _ := b.IPSet() // fails on invalid ranges only, and there are none
	return set
}

// firstFew returns the first addresses of a set, at most so many.
func firstFew(set *netipx.IPSet, most int) (out []netip.Addr) {
	for _, r := range set.Ranges() {
		for a := r.From(); a.IsValid() && r.Contains(a) && len(out) < most; a = a.Next() {
			out = append(out, a)
		}
	}
	return out
}
