// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

const reasonOverlap = "SubnetsOverlap"

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

// overlapping returns the condition that says so, or nil where there are none. It
// is no error: two pools may be for two networks that never meet. But an address
// is given once in each pool, so where they are one network, it is given twice.
func overlapping(view *poolView, others []string) *metav1.Condition {
	if len(others) == 0 {
		return nil
	}
	message := fmt.Sprintf("%s overlaps with %s", view.subnet, enumerate(others))
	return &metav1.Condition{Type: v1alpha1.ConditionOverlapping, Status: metav1.ConditionTrue, Reason: reasonOverlap, Message: message}
}

// overlaps reports whether two subnets, as specifications have them, share an
// address; one that cannot be read shares none.
func overlaps(a, b string) bool {
	p, errA := netip.ParsePrefix(a)
	q, errB := netip.ParsePrefix(b)
	return errA == nil && errB == nil && p.Overlaps(q)
}

// reportOverlap records a new overlap as an event.
func (c *Controller) reportOverlap(view *poolView, before []metav1.Condition, now *metav1.Condition) {
	if now == nil {
		return
	}
	if said := meta.FindStatusCondition(before, now.Type); said != nil && same(*said, *now) {
		return
	}
	if c.overlapping[view.ref] == now.Message { // where the CRD has no conditions
		return
	}
	c.overlapping[view.ref] = now.Message
	c.recorder.Event(view.object(), corev1.EventTypeWarning, now.Reason, now.Message)
}
