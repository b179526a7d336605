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
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// examine frees the allocation at key if it is proven leaked.
func (c *Controller) examine(ctx context.Context, key string) error {
	obj, found, _ := c.allocations.GetByKey(key) // never fails
	if !found {
		c.seen.forget(key)
		return nil
	}
	a := obj.(*v1alpha1.IPAllocation)
	v, why := decide(a, c.cached(a))
	now := time.Now()
	since := c.note(ctx, a, v, why, now)
	if v != suspect {
		return nil
	}
	if since.Before(a.CreationTimestamp.Time) {
		since = a.CreationTimestamp.Time
	}
	// At least once more, however short the grace.
	if wait := since.Add(c.opts.ReclaimGrace).Sub(now); wait > 0 || since.Equal(now) {
		c.suspects.AddAfter(key, max(wait, time.Millisecond))
		return nil
	}
	return c.reclaim(ctx, a)
}

// note keeps the verdict in mind, says it where it is news, and returns since
// when it has been the same.
func (c *Controller) note(ctx context.Context, a *v1alpha1.IPAllocation, v verdict, why cause, now time.Time) time.Time {
	before, since := c.seen.note(cache.MetaObjectToName(a).String(), sighting{uid: a.UID, verdict: v, word: why.word, since: now})
	text, level := "Allocation stays", 4
	switch v {
	case hold:
		text, level = "Allocation is held", 0
	case suspect:
		text, level = "Allocation looks leaked", 2
	}
	switch {
	case before.verdict == v && before.word == why.word:
		level = 4
	case before.verdict == hold: // what was said at level 0 is taken back there
		level = 0
	}
	if log := klog.FromContext(ctx).V(level); log.Enabled() {
		log.Info(text, append(describe(a), "reason", why.text)...)
	}
	return since
}

// describe says in a log which allocation is meant and who holds it.
func describe(a *v1alpha1.IPAllocation) []any {
	return []any{
		"allocation", a.Name, "pool", a.Spec.PoolRef, "address", a.Spec.Address, "pod", holder(a), "podUID", a.Spec.PodRef.UID,
		"node", a.Spec.NodeName, "container", a.Spec.ContainerID,
	}
}

func holder(a *v1alpha1.IPAllocation) string {
	return a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name
}

// reclaim frees a suspect whose grace is over, if a live look confirms it.
func (c *Controller) reclaim(ctx context.Context, a *v1alpha1.IPAllocation) error {
	e, err := c.live(ctx, a)
	if err != nil {
		return err
	}
	v, why := decide(a, e)
	if v != suspect {
		c.metrics.spared.Inc()
		klog.FromContext(ctx).Info("Suspect is spared: the cache was behind", append(describe(a), "reason", why.text)...)
		c.note(ctx, a, v, why, time.Now())
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
	c.metrics.reclaimed.WithLabelValues(why.word).Inc()
	klog.FromContext(ctx).Info("Reclaimed", append(describe(a), "reason", why.text)...)
	if pool := c.pool(a.Spec.PoolRef); pool != nil {
		c.recorder.Eventf(reference(a.Spec.PoolRef, pool), corev1.EventTypeNormal, reasonReclaimed,
			"reclaimed %s of pod %s on node %s: %s", a.Spec.Address, holder(a), a.Spec.NodeName, why.text)
	}
	return nil
}

// cached is the evidence that the caches have.
func (c *Controller) cached(a *v1alpha1.IPAllocation) evidence {
	e := evidence{rival: c.rival(a)}
	if obj, found, _ := c.pods.GetByKey(holder(a)); found {
		e.pod = obj.(*metav1.PartialObjectMetadata)
	}
	if obj, found, _ := c.nodes.GetByKey(a.Spec.NodeName); found {
		e.node = obj.(*corev1.Node)
	}
	if pool := c.pool(a.Spec.PoolRef); pool != nil {
		e.optOut = optOut(pool.GetAnnotations())
	}
	return e
}

// live is the evidence that the API server has. Of rivals it looks at the one
// that the cache knows: any other would only be one more reason to free.
func (c *Controller) live(ctx context.Context, a *v1alpha1.IPAllocation) (e evidence, err error) {
	get := func(resource schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
		return existing(c.clients.Metadata.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{}))
	}
	if e.pod, err = get(podsResource, a.Spec.PodRef.Namespace, a.Spec.PodRef.Name); err != nil {
		return e, fmt.Errorf("confirm that the pod is gone: %w", err)
	}
	if e.node, err = existing(c.clients.Kube.CoreV1().Nodes().Get(ctx, a.Spec.NodeName, metav1.GetOptions{})); err != nil {
		return e, fmt.Errorf("confirm the state of the node: %w", err)
	}
	if rival := c.rival(a); rival != nil {
		if e.rival, err = existing(c.clients.IPAM.NvIpamV1alpha1().IPAllocations(rival.Namespace).Get(ctx, rival.Name, metav1.GetOptions{})); err != nil {
			return e, fmt.Errorf("confirm that there is a later container: %w", err)
		}
		if e.rival != nil && !rivals(a, e.rival) { // the address is somebody else's by now
			e.rival = nil
		}
	}
	pool, err := get(c.kinds[a.Spec.PoolRef.Kind].resource, a.Namespace, a.Spec.PoolRef.Name)
	if err != nil {
		return e, fmt.Errorf("confirm that the pool allows it: %w", err)
	}
	if pool != nil {
		e.optOut = optOut(pool.Annotations)
	}
	return e, nil
}

// rival returns the latest allocation of another container for the same
// interface of the same pod on the same node, in the same pool; nil where there
// is none.
func (c *Controller) rival(a *v1alpha1.IPAllocation) (latest *v1alpha1.IPAllocation) {
	others, _ := c.allocations.ByIndex(byPod, holder(a)) // fails for unknown indexes only
	for _, obj := range others {
		if o := obj.(*v1alpha1.IPAllocation); rivals(a, o) && (latest == nil || later(o, latest)) {
			latest = o
		}
	}
	return latest
}

func rivals(a, o *v1alpha1.IPAllocation) bool {
	return a.Spec.PodRef.UID != "" && o.Spec.ContainerID != "" && o.Spec.ContainerID != a.Spec.ContainerID && o.Spec.InterfaceName == a.Spec.InterfaceName &&
		o.Spec.PodRef == a.Spec.PodRef && o.Spec.NodeName == a.Spec.NodeName && o.Spec.PoolRef == a.Spec.PoolRef
}

// existing turns "not found" into nil without an error: the only answer that
// proves that something is gone, where it is the API server's own. A proxy's 404
// proves nothing.
func existing[T any](obj *T, err error) (*T, error) {
	if apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return obj, nil
}
