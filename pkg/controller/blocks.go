// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Reasons of a pool's conditions, and of its events. InvalidSpec and NoFreeRanges
// are nv-ipam's words.
const (
	reasonBlocksAssigned = "BlocksAssigned"
	reasonNoNodes        = "NoMatchingNodes"
	reasonInvalidSpec    = "InvalidSpec"
	reasonNoFreeRanges   = "NoFreeRanges"
	reasonReclaimed      = "Reclaimed"
	reasonReclaimUnknown = "UnknownReclaimAnnotation"
)

// named is how many nodes, or pools, a condition names before it only counts.
const named = 10

// outcome is what reconciling a pool comes to.
type outcome struct {
	// allocations is what status.allocations ought to be; nil leaves it alone.
	allocations any
	ready       metav1.Condition
	notices     []notice
	news        []nodeNews
	unserved    []string  // nodes that there was no room for, by name
	use         *pool.Use // nil where the specification is invalid
	// kept is true where there is something that is kept only as long as it is held.
	kept bool
}

// reconcilePool gives the nodes their blocks of a pool.
//
//  1. Valid, with room for every node: the blocks, Ready.
//  2. Valid, without room for some: the blocks of the others; not Ready,
//     NoFreeRanges, an event for each node that has none.
//  3. Invalid, with blocks from before: those, untouched, since pods live in
//     them; not Ready, InvalidSpec, an event.
//  4. Invalid from the start: no blocks, and as 3.
//  5. Valid, and no node matches the selector: Ready, NoMatchingNodes.
//
// What else there is to tell are notices: conditions of their own, which do not
// change Ready.
func (c *Controller) reconcilePool(ctx context.Context, ref v1alpha1.PoolReference) error {
	kind := c.kinds[ref.Kind]
	obj, found, _ := kind.informer.GetIndexer().GetByKey(c.opts.Namespace + "/" + ref.Name) // never fails
	if !found {
		delete(c.reported, ref)
		delete(c.counted, ref)
		c.misfitting.Delete(ref)
		c.summaries.Delete(ref)
		return nil
	}
	view := kind.view(obj)
	before := view.status.Conditions
	nodes, others := c.nodes.List(), c.overlapsWith(view)
	held, count := c.heldOf(ref)
	view.blocks = c.former.recall(ref, view.meta, view.blocks)
	out := blocks(kind, view, nodes, held)
	if wait := tooEarly(view.meta, view.blocks, c.allocations.List, time.Now(), c.opts.LossGrace); wait > 0 {
		out = waiting(kind, view.meta.CreationTimestamp.Add(c.opts.LossGrace))
		c.pools.AddAfter(ref, wait)
	}
	out.notices = append(out.notices, overlapping(view, others)...)
	out.notices = append(out.notices, podNetwork(view, nodes)...)
	if out.kept {
		c.misfitting.Store(ref, nil)
	} else {
		c.misfitting.Delete(ref)
	}
	sum := out.summary(len(others), count)
	c.summaries.Store(ref, sum)

	view, err := c.writeAllocations(ctx, kind, view, out.allocations)
	if err != nil {
		return err
	}
	c.former.remember(ref, view.meta, view.blocks)
	if err := c.writeRest(ctx, kind, view, sum, out.notices); err != nil {
		return err
	}
	c.report(view, before, out)
	return nil
}

// heldOf returns the addresses of a pool that are held, and how many allocations
// there are.
func (c *Controller) heldOf(ref v1alpha1.PoolReference) (held []pool.Held, count int) {
	all, _ := c.allocations.ByIndex(byPool, poolKey(ref)) // fails for unknown indexes only
	held = make([]pool.Held, 0, len(all))
	for _, obj := range all {
		spec := &obj.(*v1alpha1.IPAllocation).Spec
		if addr, err := pool.ParseAddr(spec.Address); err == nil {
			held = append(held, pool.Held{Node: spec.NodeName, Addr: addr, Requested: spec.Requested})
		}
	}
	return held, len(all)
}

// blocks says which node gets which block of a pool, and what there is to tell.
func blocks(kind poolKind, view *poolView, nodes []any, held []pool.Held) outcome {
	parsed, errs := view.parse()
	if len(errs) > 0 {
		out := outcome{ready: notReady(reasonInvalidSpec, pool.Explain(errs))}
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
	assigned, unserved := parsed.Carve(view.blocks, selected, held)
	use := parsed.Use(assigned, held)
	out := outcome{allocations: kind.allocations(assigned), unserved: unserved, use: use}
	out.kept = len(use.Gateways)+len(use.Unfit) > 0 || len(assigned)+len(unserved) > len(selected) ||
		slices.ContainsFunc(use.Blocks, func(b pool.BlockUse) bool { return b.Earlier })
	out.notices = slices.Concat(earlierSpec(view, use), foreign(parsed, use), full(use))
	out.news = slices.Concat(newlyFull(use), newlyOutside(use), newlyForeign(parsed, use))
	active := use.Active()
	switch {
	case len(unserved) > 0:
		out.ready = notReady(reasonNoFreeRanges, noRoom(unserved))
	case len(selected) == 0 && parsed.SelectorText() != "":
		out.ready = ready(reasonNoNodes, fmt.Sprintf("no node matches spec.nodeSelector (%s); nodes with a block: %d", parsed.SelectorText(), len(active)))
	default:
		out.ready = ready(reasonBlocksAssigned, fmt.Sprintf("nodes with a block: %d", len(active)))
	}
	return out
}

func (out *outcome) summary(overlaps, held int) summary {
	s := summary{ready: out.ready, overlaps: overlaps, unserved: len(out.unserved), held: int64(held)}
	if out.use != nil {
		s.blocks, s.outside, s.foreign = countBlocks(out.use.Active()), len(out.use.Outside), len(out.use.Foreign)
	}
	return s
}

func ready(reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: reason, Message: message}
}

func notReady(reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

func noRoom(nodes []string) string {
	return fmt.Sprintf("no free ranges for %d nodes: %s", len(nodes), enumerate(nodes))
}

// enumerate names the first few of many.
func enumerate(names []string) string {
	text := strings.Join(names[:min(len(names), named)], ", ")
	if more := len(names) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
