// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// Only a pod on the allocation's node keeps an address. The informer has nothing
// but the metadata of pods, which says nothing about where they are: whole pods
// would take ten times the memory. So each node with allocations of pods that
// have not been placed yet is asked for its pods, metadata only, once per resync
// at most and placesPerSecond of them: the API server answers from memory and
// looks only at the pods of that node (resourceVersion=0 and spec.nodeName). A
// pod's node never changes, so an allocation costs at most its share of one such
// list in its life. A pod that is not in the list is read by itself, since the
// list may be late: only a read that is up to date makes a leak candidate, and
// another one frees it.
const placesPerSecond = 20

// place is where a pod is, and whether it has ended there.
type place struct {
	node  string // "": not bound yet
	ended bool   // only asked if the node is gone or out of service
}

// places are those of pods with an address, by the pods' UIDs in the API.
type places struct {
	mu    sync.Mutex
	all   map[types.UID]place
	asked map[string]time.Time // nodes: when their pods were last listed
}

func (p *places) get(uid types.UID) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, known := p.all[uid]
	return found, known
}

func (p *places) set(uid types.UID, where place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[types.UID]place{}
	}
	p.all[uid] = where
}

func (p *places) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, uid)
}

// wait is how long a node must not be asked again, at most once per interval.
func (p *places) wait(node string, now time.Time, interval time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[node].Add(interval).Sub(now)
}

func (p *places) answered(node string, now time.Time, interval time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, at := range p.asked { // nodes come and go
		if now.Sub(at) > interval {
			delete(p.asked, n)
		}
	}
	if p.asked == nil {
		p.asked = map[string]time.Time{}
	}
	p.asked[node] = now
}

// locate asks which pods with an address on a node are there, if any of them has
// not been placed yet.
func (c *Controller) locate(ctx context.Context, node string) error {
	found, _ := c.allocations.ByIndex(byNode, node) // fails for unknown indexes only
	if !slices.ContainsFunc(found, c.unplacedPod) {
		return nil
	}
	if wait := c.places.wait(node, time.Now(), c.opts.Resync); wait > 0 {
		c.unplaced.AddAfter(node, wait)
		return nil
	}
	if err := c.placesLimit.Wait(ctx); err != nil {
		return err
	}
	there, err := c.podsOn(ctx, node)
	if err != nil {
		return fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for _, obj := range found {
		if err := c.placePod(ctx, obj.(*v1alpha1.IPAllocation), there); err != nil {
			return err
		}
	}
	c.places.answered(node, time.Now(), c.opts.Resync)
	return nil
}

func (c *Controller) unplacedPod(obj any) bool {
	a := obj.(*v1alpha1.IPAllocation)
	e := c.cached(a)
	return e.Unplaced(a)
}

// podsOn returns the UIDs of the pods on a node, without those that have ended if
// nothing runs there any more.
func (c *Controller) podsOn(ctx context.Context, node string) (map[types.UID]bool, error) {
	selector := fields.OneTermEqualSelector("spec.nodeName", node)
	if c.deadNode(node) {
		selector = fields.AndSelectors(selector,
			fields.OneTermNotEqualSelector("status.phase", "Succeeded"), fields.OneTermNotEqualSelector("status.phase", "Failed"))
	}
	list, err := c.clients.Metadata.Resource(podsResource).List(ctx, metav1.ListOptions{FieldSelector: selector.String(), ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	out := make(map[types.UID]bool, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].UID] = true
	}
	return out, nil
}

// placePod finds out where the pod of an allocation is, by the list of its node or
// by itself.
func (c *Controller) placePod(ctx context.Context, a *v1alpha1.IPAllocation, there map[types.UID]bool) error {
	e := c.cached(a)
	if !e.Unplaced(a) { // another allocation of the same pod may have placed it
		return nil
	}
	if there[e.Pod.UID] {
		c.setPlace(a, e.Pod.UID, place{node: a.Spec.NodeName})
		return nil
	}
	if err := c.placesLimit.Wait(ctx); err != nil {
		return err
	}
	now, err := c.livePod(ctx, a.Spec.PodRef)
	if err != nil {
		return fmt.Errorf("look where pod %s is: %w", holder(a), err)
	}
	if now == nil || now.UID != e.Pod.UID { // the watch will tell
		return nil
	}
	c.setPlace(a, now.UID, place{node: now.Node, ended: now.Ended})
	return nil
}

// setPlace notes where the pod of an allocation is, for as long as the pod is in
// the cache: when it leaves that, onPod forgets its place. Allocations on other
// nodes may name the pod, too.
func (c *Controller) setPlace(a *v1alpha1.IPAllocation, uid types.UID, where place) {
	c.places.set(uid, where)
	if pod := c.cachedPod(a); pod == nil || pod.UID != uid {
		c.places.forget(uid)
	}
	c.examineIndexed(byPod, holder(a))
}

// deadNode reports whether nothing can run on a node, as the cache has it.
func (c *Controller) deadNode(name string) bool {
	obj, found, _ := c.nodes.GetByKey(name)
	return !found || nodeState(obj.(*corev1.Node)) == reclaim.OutOfService
}
