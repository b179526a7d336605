// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Reasons of a pool's Ready condition, and of its events. InvalidSpec and
// NoFreeRanges are nv-ipam's words.
const (
	reasonBlocksAssigned = "BlocksAssigned"
	reasonInvalidSpec    = "InvalidSpec"
	reasonNoFreeRanges   = "NoFreeRanges"
	reasonReclaimed      = "Reclaimed"
	reasonSpecInUse      = "EarlierSpecInUse"
	reasonReclaimUnknown = "UnknownReclaimAnnotation"
)

// named is how many nodes, or pools, a condition names before it only counts.
const named = 10

// outcome is what reconciling a pool comes to.
type outcome struct {
	// allocations is what status.allocations ought to be; nil leaves it alone.
	allocations any
	ready       metav1.Condition
	unserved    []string // nodes that there was no room for, by name
	blocks      []size   // nil where the specification is invalid
}

// reconcilePool gives the nodes their blocks of a pool.
//
//  1. Valid, with room for every node: the blocks, Ready.
//  2. Valid, without room for some: the blocks of the others; not Ready,
//     NoFreeRanges, an event for each node that has none.
//  3. Invalid, with blocks from before: those, untouched, since pods live in
//     them; not Ready, InvalidSpec, an event.
//  4. Invalid from the start: no blocks, and as 3.
//  5. Valid, but blocks or addresses of an earlier specification are in use and
//     do not fit: they stay; not Ready, EarlierSpecInUse.
func (c *Controller) reconcilePool(ctx context.Context, ref v1alpha1.PoolReference) error {
	kind := c.kinds[ref.Kind]
	obj, found, _ := kind.informer.GetIndexer().GetByKey(c.opts.Namespace + "/" + ref.Name) // never fails
	if !found {
		delete(c.reported, ref)
		delete(c.overlapping, ref)
		delete(c.counted, ref)
		c.misfitting.Delete(ref)
		c.censuses.Delete(ref)
		return nil
	}
	view := kind.view(obj)
	before := view.status.Conditions
	others := c.overlapsWith(view)
	overlap := overlapping(view, others)
	holds := func(node string) bool { return c.holds(ref, node) }
	held, _ := c.allocations.ByIndex(byPool, poolKey(ref)) // fails for unknown indexes only
	out := blocks(kind, view, c.nodes.List(), held, holds)
	if out.ready.Reason == reasonSpecInUse {
		c.misfitting.Store(ref, nil)
	} else {
		c.misfitting.Delete(ref)
	}

	census := census{ready: out.ready, overlaps: len(others), unserved: len(out.unserved), blocks: out.blocks, held: int64(len(held))}
	c.censuses.Store(ref, census)

	view, err := c.writeAllocations(ctx, kind, view, out.allocations)
	if err != nil {
		return err
	}
	if err := c.writeRest(ctx, kind, view, census, overlap); err != nil {
		return err
	}
	c.report(view, meta.FindStatusCondition(before, v1alpha1.ConditionReady), out)
	c.reportOverlap(view, before, overlap)
	return nil
}

// blocks says which node gets which block of a pool, of which the allocations
// held exist.
func blocks(kind poolKind, view *poolView, nodes, held []any, holds func(node string) bool) outcome {
	parsed, errs := view.parse()
	if len(errs) > 0 {
		out := outcome{ready: notReady(reasonInvalidSpec, errs.ToAggregate().Error())}
		if view.allocations == nil {
			out.allocations = kind.allocations(nil)
		}
		return out
	}
	var selected []string
	for _, obj := range nodes {
		if node := obj.(*corev1.Node); parsed.Selects(node) {
			selected = append(selected, node.Name)
		}
	}
	assigned, unserved := parsed.Carve(view.blocks, selected, holds)
	out := outcome{allocations: kind.allocations(assigned), unserved: unserved, blocks: sizes(parsed, assigned)}
	if len(unserved) > 0 {
		out.ready = notReady(reasonNoFreeRanges, noRoom(unserved))
		return out
	}
	if message := misfits(parsed, assigned, held); message != "" {
		out.ready = notReady(reasonSpecInUse, message)
		return out
	}
	out.ready = metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: reasonBlocksAssigned,
		Message: fmt.Sprintf("nodes with a block: %d", len(assigned)),
	}
	return out
}

func notReady(reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

func noRoom(nodes []string) string {
	return fmt.Sprintf("no free ranges for %d nodes: %s", len(nodes), enumerate(nodes))
}

// misfits says what is in use of an earlier specification, "" where nothing is.
// Nobody's address changes for that: it is kept until it is given back.
func misfits(p *pool.Pool, assigned []pool.Assignment, held []any) string {
	var nodes, addresses []string
	for _, a := range p.Misfits(assigned) {
		nodes = append(nodes, fmt.Sprintf("%s (%s)", a.Node, a.Range))
	}
	for _, obj := range held {
		a := obj.(*v1alpha1.IPAllocation)
		if addr, err := pool.ParseAddr(a.Spec.Address); err == nil && !p.FitsAddress(addr, a.Spec.Requested) {
			addresses = append(addresses, a.Spec.Address)
		}
	}
	slices.Sort(addresses)
	var parts []string
	if len(nodes) > 0 {
		parts = append(parts, "blocks of nodes "+enumerate(nodes))
	}
	if len(addresses) > 0 {
		parts = append(parts, "addresses "+enumerate(addresses))
	}
	if len(parts) == 0 {
		return ""
	}
	return "kept from an earlier specification until they are given back: " + strings.Join(parts, "; ")
}

// enumerate names the first few of many.
func enumerate(names []string) string {
	text := strings.Join(names[:min(len(names), named)], ", ")
	if more := len(names) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// report is what was last said about a pool in events.
type report struct {
	uid      types.UID
	ready    metav1.Condition
	unserved []string
	optOut   string
}

// report records what is new since the last time as events. After a restart,
// the condition as it was before tells what has been said already.
func (c *Controller) report(view *poolView, before *metav1.Condition, out outcome) {
	last, known := c.reported[view.ref]
	optOut := optOut(view.meta.Annotations)
	c.reported[view.ref] = report{uid: view.meta.UID, ready: out.ready, unserved: out.unserved, optOut: optOut}
	if last.uid != view.meta.UID {
		last, known = report{}, false
	}
	if value := view.meta.Annotations[v1alpha1.AnnotationReclaim]; optOut != last.optOut && optOut != "" && value != v1alpha1.ReclaimDisabled {
		c.recorder.Eventf(view.object(), corev1.EventTypeWarning, reasonReclaimUnknown,
			"no address is reclaimed: annotation %s is %q, want %q or %q", v1alpha1.AnnotationReclaim, value, v1alpha1.ReclaimEnabled, v1alpha1.ReclaimDisabled)
	}
	if !known && before != nil && same(*before, out.ready) {
		return
	}
	if out.ready.Reason == reasonInvalidSpec && !same(last.ready, out.ready) {
		c.recorder.Event(view.object(), corev1.EventTypeWarning, reasonInvalidSpec, out.ready.Message)
	}
	for _, node := range out.unserved {
		if _, said := slices.BinarySearch(last.unserved, node); !said {
			c.recorder.Event(view.object(), corev1.EventTypeWarning, reasonNoFreeRanges, "failed to allocate IPs on Node: "+node)
		}
	}
}

func same(a, b metav1.Condition) bool {
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}
