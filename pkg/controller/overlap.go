// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// overlapsWith names the other pools that have addresses in common with this one.
func (c *Controller) overlapsWith(view *poolView) (others []string) {
	for _, kind := range c.kinds {
		for _, obj := range kind.informer.GetIndexer().List() {
			other := kind.view(obj)
			// Pools of one name share their addresses' names, whatever their kinds.
			if other.ref.Name != view.ref.Name && overlaps(view.subnet, other.subnet) {
				others = append(others, fmt.Sprintf("%s %s (%s)", other.ref.Kind, other.ref.Name, other.subnet))
			}
		}
	}
	slices.Sort(others)
	return others
}

// overlapping says that there are such pools. It is no error: two pools may be for
// two networks that never meet. But an address is given once in each pool, so where
// they are one network, it is given twice.
func overlapping(view *poolView, others []string) []notice {
	if len(others) == 0 {
		return nil
	}
	n := newNotice(v1alpha1.ConditionOverlapping, reasonOverlap, fmt.Sprintf("%s overlaps with %s", view.subnet, enumerate(others)))
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
