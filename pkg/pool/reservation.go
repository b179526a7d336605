// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// maxReserved is how many addresses one reservation keeps at most: each is an object.
const maxReserved = 1024

// Reserved returns the addresses that a reservation names, in their order and each once.
func (o *Object) Reserved(spec *v1alpha1.IPReservationSpec) ([]netip.Addr, field.ErrorList) {
	path := field.NewPath("spec", "addresses")
	subnet, err := netip.ParsePrefix(o.Subnet)
	if err != nil {
		return nil, field.ErrorList{field.Invalid(field.NewPath("spec", "poolRef"), o.Ref.Name, "the subnet of the pool is invalid: "+o.Subnet)}
	}
	var c checker
	var out []netip.Addr
	for _, r := range c.ranges(path, spec.Addresses, subnet.Masked()) {
		for a := r.From(); a.IsValid() && r.Contains(a); a = a.Next() {
			if out = append(out, a); len(out) > maxReserved+1024 { // some may be named twice
				break
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	if len(out) > maxReserved {
		c.errs = append(c.errs, field.Invalid(path, spec.Addresses, fmt.Sprintf("are more than %d addresses: make several reservations, or exclude a range in the pool", maxReserved)))
	}
	return out, c.errs
}

// IsReserved reports whether a reservation names an address.
func IsReserved(spec *v1alpha1.IPReservationSpec, addr netip.Addr) bool {
	var c checker
	for _, r := range c.ranges(nil, spec.Addresses, netip.PrefixFrom(addr, 0).Masked()) {
		if r.Contains(addr) {
			return true
		}
	}
	return false
}
