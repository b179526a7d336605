// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// examine frees the allocation at key if it is proven leaked.
func (c *Controller) examine(ctx context.Context, key string) error {
	obj, found, _ := c.allocations.GetByKey(key) // never fails
	if !found {
		c.observations.forget(key)
		return nil
	}
	a := obj.(*v1alpha1.IPAllocation)
	e := c.cached(a)
	if e.Unplaced(a) {
		c.unplaced.Add(a.Spec.NodeName)
	}
	v := reclaim.Decide(a, e)
	now := time.Now()
	since := c.observe(ctx, a, v, now)
	if v.Action != reclaim.Candidate {
		return nil
	}
	if since.Before(a.CreationTimestamp.Time) {
		since = a.CreationTimestamp.Time
	}
	// At least once more, however short the grace.
	if wait := since.Add(c.grace(v)).Sub(now); wait > 0 || since.Equal(now) {
		c.examinations.AddAfter(key, max(wait, time.Millisecond))
		return nil
	}
	return c.reclaim(ctx, a, v)
}

// grace is how long a leak candidate must have been one before it is freed.
func (c *Controller) grace(v reclaim.Verdict) time.Duration {
	if v.Prompt {
		return c.opts.ReclaimGrace
	}
	return c.opts.ReclaimGraceReadyNode
}

// observe notes the verdict, logs it if it is new, and returns since when it has
// been the same.
func (c *Controller) observe(ctx context.Context, a *v1alpha1.IPAllocation, v reclaim.Verdict, now time.Time) time.Time {
	before, since := c.observations.note(cache.MetaObjectToName(a).String(),
		observation{uid: a.UID, action: v.Action, reason: v.Reason, prompt: v.Prompt, since: now})
	text, level := "Allocation stays", 4
	switch v.Action {
	case reclaim.Hold:
		text, level = "Allocation is held", 0
	case reclaim.Candidate:
		text, level = "Allocation looks leaked", 2
	}
	switch {
	case before.action == v.Action && before.reason == v.Reason:
		level = 4
	case before.action == reclaim.Hold: // the end of a hold is as important as its begin
		level = 0
	}
	if log := klog.FromContext(ctx).V(level); log.Enabled() {
		log.Info(text, describe(a, v)...)
	}
	return since
}

// describe says in a log which allocation is meant, who holds it, and what is
// found of it.
func describe(a *v1alpha1.IPAllocation, v reclaim.Verdict) []any {
	out := []any{
		"allocation", a.Name, "pool", a.Spec.PoolRef, "address", a.Spec.Address, "pod", holder(a), "podUID", a.Spec.PodRef.UID,
		"node", a.Spec.NodeName, "container", a.Spec.ContainerID, "reason", v.Reason, "message", v.Message,
	}
	if v.Action == reclaim.Hold {
		out = append(out, "until", reclaim.Until(v.Reason))
	}
	return out
}

func holder(a *v1alpha1.IPAllocation) string {
	return a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name
}

// reclaim frees a leak candidate whose grace is over, if a live look confirms what
// the caches say.
func (c *Controller) reclaim(ctx context.Context, a *v1alpha1.IPAllocation, cached reclaim.Verdict) error {
	e, err := c.live(ctx, a)
	if err != nil {
		return err
	}
	v := reclaim.Decide(a, e)
	if v.Action != reclaim.Candidate {
		c.metrics.spared.Inc()
		klog.FromContext(ctx).Info("Leak candidate is spared: the cache was behind", describe(a, v)...)
		c.observe(ctx, a, v, time.Now())
		return nil
	}
	if cached.Prompt && !v.Prompt { // the node is back, and has its time to say DEL itself
		c.observe(ctx, a, v, time.Now())
		c.examinations.AddAfter(cache.MetaObjectToName(a).String(), c.grace(v))
		return nil
	}
	err = c.clients.IPAM.NvIpamV1alpha1().IPAllocations(a.Namespace).Delete(ctx, a.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &a.UID, ResourceVersion: &a.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reclaim: %w", err)
	}
	c.metrics.reclaimed.WithLabelValues(v.Reason).Inc()
	klog.FromContext(ctx).Info("Reclaimed", describe(a, v)...)
	if pool := c.pool(a.Spec.PoolRef); pool != nil {
		c.recorder.Eventf(reference(a.Spec.PoolRef, pool), corev1.EventTypeNormal, reasonReclaimed,
			"reclaimed %s of pod %s on node %s: %s", a.Spec.Address, holder(a), a.Spec.NodeName, v.Message)
	}
	return nil
}
