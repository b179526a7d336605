// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// overlapsWith names those of all pools that have addresses in common with this one.
func overlapsWith(this *pool.Object, all iter.Seq[*pool.Object]) (others []string) {
	for other := range all {
		// Pools of one name share their addresses' names, whatever their kinds.
		if other.Ref.Name != this.Ref.Name && overlaps(this.Subnet, other.Subnet) {
			others = append(others, fmt.Sprintf("%s %s (%s)", other.Ref.Kind, other.Ref.Name, other.Subnet))
		}
	}
	slices.Sort(others)
	return others
}

// overlapping says that there are such pools. It is no error: two pools may be for
// two networks that never meet. But an address is given once in each pool, so where
// they are one network, it is given twice.
func overlapping(obj *pool.Object, others []string) []notice {
	if len(others) == 0 {
		return nil
	}
	n := newNotice(v1alpha1.ConditionOverlapping, reasonOverlap, fmt.Sprintf("%s overlaps with %s", obj.Subnet, enumerate(others)))
	n.event = n.condition.Message
	return []notice{n}
}

// overlaps reports whether two subnets, as specifications have them, share an
// address; one that cannot be read shares none.
func overlaps(a, b string) bool {
	p, errA := netip.ParsePrefix(a)
	q, errB := netip.ParsePrefix(b)
	return errA == nil && errB == nil && p.Overlaps(q)
}
