// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// reasonReclaimed is the reason of the event about a reclaimed address.
const reasonReclaimed = "Reclaimed"

// proposalAge is how old a workload's reservation is when no ADD can be about to take it.
const proposalAge = 10 * time.Minute

// untakenIn returns how long an ADD may still take what a workload has reserved.
func untakenIn(a *v1alpha1.IPAllocation) time.Duration {
	return time.Until(a.CreationTimestamp.Add(proposalAge))
}

// leakReconciler frees the addresses that no container holds any more. What is leaked is
// decided in pkg/reclaim.
type leakReconciler struct {
	caches       *caches
	evidence     *evidence
	confirmation *confirmation
	observations *observations
	allocations  clientv1alpha1.IPAllocationInterface
	recorder     record.EventRecorder
	metrics      *metrics
	// Graces are Options.ReclaimGrace and Options.ReclaimGraceReadyNode.
	grace, graceReadyNode time.Duration
	// later examines an allocation again after a while.
	later func(key string, after time.Duration)
	// locate finds out which pods are on a node.
	locate func(node string)
}

// examine frees the allocation at key if it is proven leaked. Several workers call it,
// but not two of them with one key at a time.
func (r *leakReconciler) examine(ctx context.Context, key string) error {
	a, found := r.caches.allocations.get(key)
	if !found {
		r.observations.forget(key)
		return nil
	}
	// If it is deleted, and somebody's finalizer keeps it, it goes when the finalizer does. A pod that
	// was given its address until then would lose it.
	if a.DeletionTimestamp != nil {
		klog.FromContext(ctx).Info("Allocation is deleted when its finalizers are removed", "allocation", a.Name, "finalizers", a.Finalizers)
		r.observations.forget(key)
		return nil
	}
	if promoted := a.Promoted(); promoted != nil {
		return r.examineMove(ctx, key, a, promoted)
	}
	if a.Spec.Owner.IsIPAMClaim() { // nothing else moves
		r.observations.forgetNext(key)
	}
	e := r.evidence.of(a)
	if e.Unplaced(a) {
		r.locate(a.Spec.NodeName)
	}
	if !a.Spec.Held() && a.Spec.IsSticky() { // its owner is not watched
		if a.Spec.IsReserved() {
			wait := untakenIn(a)
			if e.Untaken = wait <= 0; !e.Untaken {
				r.later(key, wait)
			}
		}
		gone, err := r.confirmation.ownerGone(ctx, a)
		if err != nil && !e.Untaken {
			return err
		}
		e.OwnerGone = err == nil && gone
	}
	now := time.Now()
	if wait := r.observations.cooling(key, a, now); wait > 0 {
		r.later(key, wait)
	} else {
		e.Rested = a.Spec.Rests()
	}
	v := reclaim.Decide(a, e)
	since := r.observe(ctx, a, v, now)
	switch v.Action {
	case reclaim.Candidate:
	case reclaim.Delete:
		return r.end(ctx, a, v)
	default:
		return nil
	}
	if !r.isDue(key, v, latest(since, a.CreationTimestamp.Time), now) {
		return nil
	}
	return r.free(ctx, a, v)
}

// isDue reports whether the grace of a candidate is over. If not, it is examined again then,
// and at least once more, however short the grace.
func (r *leakReconciler) isDue(key string, v reclaim.Verdict, since, now time.Time) bool {
	wait := since.Add(r.graceOf(v)).Sub(now)
	if wait > 0 || since.Equal(now) {
		r.later(key, max(wait, time.Millisecond))
		return false
	}
	return true
}

// graceOf is how long a leak candidate must have been one before it is freed.
func (r *leakReconciler) graceOf(v reclaim.Verdict) time.Duration {
	if v.Prompt {
		return r.grace
	}
	return r.graceReadyNode
}

// observe notes the verdict, logs it if it is new, and returns since when it has
// been the same.
func (r *leakReconciler) observe(ctx context.Context, a *v1alpha1.IPAllocation, v reclaim.Verdict, now time.Time) time.Time {
	before, since := r.observations.note(cache.MetaObjectToName(a).String(),
		observationOf(a, v, now))
	message, level := "Allocation stays", 4
	switch v.Action {
	case reclaim.Hold:
		message, level = "Allocation is held", 0
	case reclaim.Candidate:
		message, level = "Allocation looks leaked", 2
	}
	switch {
	case before.action == v.Action && before.reason == v.Reason:
		level = 4
	case before.action == reclaim.Hold: // the end of a hold is as important as its begin
		level = 0
	}
	if log := klog.FromContext(ctx).V(level); log.Enabled() {
		log.Info(message, describe(a, v)...)
	}
	return since
}

// describe returns what a log says of an allocation: which it is, who holds it, and the
// verdict.
func describe(a *v1alpha1.IPAllocation, v reclaim.Verdict) []any {
	out := []any{
		"allocation", a.Name, "pool", a.Spec.PoolRef, "address", a.Spec.Address, "pod", podKey(a), "podUID", a.Spec.PodRef.UID,
		"node", a.Spec.NodeName, "container", a.Spec.ContainerID, "reason", v.Reason, "message", v.Message,
	}
	if v.Action == reclaim.Hold {
		out = append(out, "until", reclaim.Until(a, v.Reason))
	}
	return out
}

// free deletes a leak candidate whose grace is over, if the API server confirms what the
// caches say.
func (r *leakReconciler) free(ctx context.Context, a *v1alpha1.IPAllocation, cached reclaim.Verdict) error {
	e, err := r.confirmation.of(ctx, a, r.evidence.others(a))
	if err != nil {
		return err
	}
	v := reclaim.Decide(a, e)
	if v.Action != reclaim.Candidate {
		r.metrics.spared.Inc()
		klog.FromContext(ctx).Info("Leak candidate is spared: the cache was behind", describe(a, v)...)
		r.observe(ctx, a, v, time.Now())
		return nil
	}
	if cached.Prompt && !v.Prompt { // the node is back, and has its time to say DEL itself
		r.observe(ctx, a, v, time.Now())
		r.later(cache.MetaObjectToName(a).String(), r.graceOf(v))
		return nil
	}
	err = r.give(ctx, a)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reclaim: %w", err)
	}
	r.metrics.reclaimed.WithLabelValues(v.Reason).Inc()
	klog.FromContext(ctx).Info("Reclaimed", describe(a, v)...)
	if pool := r.caches.pool(a.Spec.PoolRef); pool != nil {
		text := fmt.Sprintf("reclaimed %s of pod %s on node %s: %s", a.Spec.Address, podKey(a), a.Spec.NodeName, v.Message)
		if promoted := a.Promoted(); promoted != nil {
			text += fmt.Sprintf("; pod %s on node %s, to which the machine moved, has it now", podKey(promoted), promoted.Spec.NodeName)
		}
		r.recorder.Event(reference(pool), corev1.EventTypeNormal, reasonReclaimed, text)
	}
	return nil
}

// examineMove examines an allocation from which a machine moves: the holder as any other, and
// if that stays, the next attachment. It asks the API server about both pods, of which the
// caches do not say when they have ended: there are few moves.
func (r *leakReconciler) examineMove(ctx context.Context, key string, a, promoted *v1alpha1.IPAllocation) error {
	holder, err := r.confirmation.of(ctx, a, r.evidence.others(a))
	if err != nil {
		return err
	}
	next, err := r.confirmation.of(ctx, promoted, r.evidence.others(promoted))
	if err != nil {
		return err
	}
	now := time.Now()
	v := reclaim.Decide(a, holder)
	since := r.observe(ctx, a, v, now)
	if v.Action == reclaim.Candidate {
		if !r.isDue(key, v, latest(since, a.CreationTimestamp.Time), now) {
			return nil
		}
		return r.free(ctx, a, v)
	}
	v = reclaim.DecideNext(a, holder, next)
	_, since = r.observations.note(nextKey(key), observationOf(promoted, v, now))
	if v.Action != reclaim.Candidate || !r.isDue(key, v, since, now) {
		return nil
	}
	patch, err := ledger.LeavePatch(a)
	if err != nil {
		return err
	}
	_, err = r.allocations.Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: name})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end a move: %w", err)
	}
	klog.FromContext(ctx).Info("Ended a move: the machine stays where it is", describe(promoted, v)...)
	if pool := r.caches.pool(a.Spec.PoolRef); pool != nil {
		r.recorder.Eventf(reference(pool), corev1.EventTypeNormal, reasonReclaimed, "%s moves no more to pod %s on node %s (%s), and stays with pod %s",
			a.Spec.Address, podKey(promoted), promoted.Spec.NodeName, v.Message, podKey(a))
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// end deletes an allocation that no container holds and nothing keeps any more.
func (r *leakReconciler) end(ctx context.Context, a *v1alpha1.IPAllocation, v reclaim.Verdict) error {
	if confirmed, err := r.confirmation.keptByNobody(ctx, a, r.evidence.others(a)); err != nil || !confirmed {
		return err
	}
	err := r.delete(ctx, a)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete what nobody holds: %w", err)
	}
	r.metrics.ended.WithLabelValues(v.Reason).Inc()
	klog.FromContext(ctx).V(2).Info("Deleted an allocation that nothing keeps", describe(a, v)...)
	return nil
}

// give ends a leaked claim as its DEL would have: what a machine moves to takes the place of
// its holder, what outlives its container is released, and all else is deleted.
func (r *leakReconciler) give(ctx context.Context, a *v1alpha1.IPAllocation) error {
	if !a.Spec.IsKept() {
		return r.delete(ctx, a)
	}
	var patch []byte
	var err error
	if promoted := a.Promoted(); promoted != nil {
		patch, err = ledger.TakeoverPatch(a, promoted)
	} else {
		patch, err = json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": a.ResourceVersion, "labels": map[string]string{v1alpha1.LabelReleased: "true"}},
			"spec":     map[string]any{"releasedAt": metav1.Now().UTC().Format(time.RFC3339)},
		})
	}
	if err != nil {
		return err
	}
	_, err = r.allocations.Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: name})
	return err
}

func (r *leakReconciler) delete(ctx context.Context, a *v1alpha1.IPAllocation) error {
	return r.allocations.Delete(ctx, a.Name, ledger.IfUnchanged(a))
}
