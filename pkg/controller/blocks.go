// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// reasonPoolGone is the reason of the event about a pool that does not exist while
// addresses of it are held.
const reasonPoolGone = "PoolGone"

// maxGone is how many pools at a time are told to be gone: whoever writes allocations
// chooses their pools' names. The metric counts all.
const maxGone = 100

// outcome is what reconciling a pool comes to.
type outcome struct {
	// assigned is what status.allocations ought to be; nil leaves it alone.
	assigned []pool.Assignment
	ready    metav1.Condition
	notices  []notice
	news     []nodeNews
	unserved []string  // nodes without a block, for lack of room, by name
	use      *pool.Use // nil if the specification is invalid
	// kept is true if something is kept only as long as it is held.
	kept bool
}

// blockReconciler gives the nodes their blocks of a pool, and says in the pool's status
// and events how that went.
type blockReconciler struct {
	caches   *caches
	memories *memories
	status   *statusWriter
	events   *poolEvents
	former   formerBlocks
	// lossGrace is how long a new pool waits for its blocks after a loss of the record.
	lossGrace time.Duration
	// later reconciles a pool again after a while.
	later func(v1alpha1.PoolReference, time.Duration)
	// gone are the pools of which an event has said that they do not exist.
	gone table[v1alpha1.PoolReference, bool]
}

// reconcile does so for one pool. The cases are
//
//  1. Valid, with room for every node: the blocks, Ready.
//  2. Valid, without room for some: the blocks of the others; not Ready,
//     NoFreeRanges, an event for each node that has none.
//  3. Invalid, with blocks from before: those, untouched, since pods live in
//     them; not Ready, InvalidSpec, an event.
//  4. Invalid from the start: no blocks, and as 3.
//  5. Valid, and no node matches the selector: Ready, NoMatchingNodes.
//  6. Valid, and a pool without blocks: Ready, NoBlocks.
//  7. Valid, and disabled: as 1 to 6, but where it is Ready, the reason is Disabled.
//  8. Valid and new, while nodes write lost allocations again: no blocks for a while;
//     not Ready, RecordLost, an event.
//  9. The pool does not exist, and addresses of it are held: an event, PoolGone.
//
// Whatever else there is to tell is a notice: a condition of its own, which does not
// change Ready.
//
// Several workers call this, but not two of them for one pool at a time.
func (r *blockReconciler) reconcile(ctx context.Context, ref v1alpha1.PoolReference) error {
	obj := r.caches.pool(ref)
	if obj == nil {
		r.memories.forget(ref)
		r.tellGone(ref)
		return nil
	}
	r.gone.forget(ref)
	before := obj.Status.Conditions
	nodes, others := r.caches.nodes.all(), overlapsWith(obj, r.caches.allPools())
	held := slices.Collect(r.caches.heldIn(obj))
	have := r.former.recall(obj)
	out := blocks(obj, have, nodes, held)
	if wait := tooEarly(obj.Meta, have, r.caches.allocations.all, time.Now(), r.lossGrace); wait > 0 && out.use != nil && len(out.use.Blocks) > 0 { // 8
		out = waiting(obj.Meta.CreationTimestamp.Add(r.lossGrace))
		r.later(ref, wait)
	}
	out.notices = append(out.notices, overlapping(obj, append(others, r.caches.outlived(obj)...), gatewaysIn(obj, r.caches.allPools()), nodeAddressIn(obj, nodes))...)
	out.notices = append(out.notices, dropped(obj)...)
	out.notices = append(out.notices, podNetwork(obj, nodes)...)

	known := r.memories.of(ref)
	known.kept, known.summary = out.kept, out.summary(len(others), held)
	r.status.learn(ctx, obj, &known)
	r.memories.set(ref, known)
	obj, err := r.status.writeAllocations(ctx, obj, &known, out.assigned)
	if err != nil {
		return err
	}
	r.former.remember(obj)
	known.written = []string{obj.Meta.ResourceVersion}
	r.memories.set(ref, known) // before the watch tells
	if err := r.status.writeRest(ctx, obj, &known, out.notices); err != nil {
		return err
	}
	r.status.tryLater(obj)
	known.events = r.events.tell(obj, before, out, known.events)
	r.memories.set(ref, known)
	return nil
}

// tellGone says that a pool does not exist while addresses of it are held, once until that
// has changed. If another pool of their domain has taken its place, it does not.
func (r *blockReconciler) tellGone(ref v1alpha1.PoolReference) {
	count := 0
	for _, a := range r.caches.allocations.by(byPool, poolKey(ref)) {
		if !a.Spec.Rests() && r.caches.outlivedPools(a) {
			count++
		}
	}
	if count == 0 {
		r.gone.forget(ref)
		return
	}
	if !r.gone.of(ref) && r.gone.len() < maxGone {
		r.gone.set(ref, true)
		r.events.gone(r.caches.namespace, ref, count)
	}
}

// blocks decides which node gets which block of a pool, and what there is to tell. have
// are the blocks so far.
func blocks(obj *pool.Object, have []pool.Assignment, nodes []*corev1.Node, heldOrResting []pool.Held) outcome {
	held := pool.NotResting(heldOrResting)
	parsed, errs := obj.Parse()
	if len(errs) > 0 {
		out := outcome{ready: notReady(v1alpha1.ReasonInvalidSpec, pool.Explain(errs))}
		if obj.Allocations == nil {
			out.assigned = []pool.Assignment{}
		}
		return out
	}
	var selected []string
	for _, node := range nodes {
		if parsed.Selects(node) {
			selected = append(selected, node.Name)
		}
	}
	assigned, unserved := parsed.Carve(have, selected, held)
	use := parsed.Use(assigned, heldOrResting)
	if assigned == nil {
		assigned = []pool.Assignment{}
	}
	out := outcome{assigned: assigned, unserved: unserved, use: use}
	out.kept = len(use.Gateways)+len(use.Unfit) > 0 || len(assigned)+len(unserved) > len(selected) ||
		slices.ContainsFunc(use.Blocks, func(b pool.BlockUse) bool { return b.Earlier })
	out.notices = slices.Concat(earlierSpec(obj, use), foreign(parsed, use), full(use), fullWhole(use, held))
	out.news = slices.Concat(newlyFull(use), newlyOutside(use), newlyForeign(parsed, use))
	switch {
	case len(unserved) > 0:
		out.ready = notReady(v1alpha1.ReasonNoFreeRanges, noRoom(unserved))
	case len(selected) == 0 && parsed.SelectorText() != "":
		out.ready = ready(v1alpha1.ReasonNoMatchingNodes, fmt.Sprintf("no node matches spec.nodeSelector (%s); nodes with a block: %d", parsed.SelectorText(), len(use.Active)))
	case parsed.Shared:
		out.ready = ready(v1alpha1.ReasonNoBlocks, "no blocks: every node that the pool selects may use the whole subnet")
	default: // no count, which would be one more write for each node that joins
		out.ready = ready(v1alpha1.ReasonBlocksAssigned, "every node that the pool selects has a block")
	}
	if obj.Disabled && out.ready.Status == metav1.ConditionTrue { // no count, which would be a write for each release: see status.used
		out.ready = ready(v1alpha1.ReasonDisabled, "spec.disabled is true: the pool gives no addresses")
	}
	return out
}

func (out *outcome) summary(overlaps int, heldOrResting []pool.Held) summary {
	held := pool.NotResting(heldOrResting)
	s := summary{ready: out.ready, overlaps: overlaps, unserved: len(out.unserved), held: int64(len(held)), resting: int64(len(heldOrResting) - len(held))}
	if out.use != nil && out.use.Whole != nil {
		s.topNodes = topNodes(held)
	}
	if out.use != nil {
		s.blocks, s.outside, s.foreign = countBlocks(out.use), len(out.use.Outside), len(out.use.Foreign)
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
	return fmt.Sprintf("no free ranges for %d nodes: %s", len(nodes), pool.Enumerate(nodes))
}
