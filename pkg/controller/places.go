// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// Only a pod on the allocation's node keeps an address. The informer has nothing
// but the metadata of pods, which says nothing about where they are: whole pods
// would take ten times the memory. So each node with allocations of pods that
// have not been placed yet is asked for its pods, metadata only, once per resync
// at most and placesPerSecond of them: the API server answers from memory and
// looks only at the pods of that node (resourceVersion=0 and spec.nodeName). So
// 5,000 nodes are asked in the first minute of a controller's life. A pod's node
// never changes, so an allocation costs at most its share of one such list in its
// life. A pod that is not in the list is read by itself, since the list may be
// late: only a read that is up to date makes a leak candidate, and another one
// frees it.
const placesPerSecond = 100

// place is where a pod is, and whether it has ended there.
type place struct {
	node  string // "": not bound yet
	ended bool   // only asked if the node is gone or out of service
}

// places are those of pods with an address, by the pods' UIDs in the API.
type places struct {
	table[types.UID, place]

	asked table[string, time.Time] // nodes: when their pods were last listed
}

// wait is how long a node must not be asked again, at most once per interval.
func (p *places) wait(node string, now time.Time, interval time.Duration) time.Duration {
	return p.asked.of(node).Add(interval).Sub(now)
}

func (p *places) answered(node string, now time.Time, interval time.Duration) {
	p.asked.forgetAll(func(_ string, at time.Time) bool { return now.Sub(at) > interval }) // nodes come and go
	p.asked.set(node, now)
}

// locator finds out where the pods are that allocations name.
type locator struct {
	caches       *caches
	evidence     *evidence
	confirmation *confirmation
	places       *places
	pods         metadata.ResourceInterface
	// limit is shared by all questions.
	limit flowcontrol.RateLimiter
	// interval is how often a node is asked at most.
	interval time.Duration
	// later asks about a node again after a while.
	later func(node string, after time.Duration)
	// placed is called with an allocation whose pod is placed now.
	placed func(*v1alpha1.IPAllocation)
}

// locate asks which pods with an address on a node are there, if any of them has
// not been placed yet. One worker calls it.
func (l *locator) locate(ctx context.Context, node string) error {
	found := slices.DeleteFunc(l.caches.allocations.by(byNode, node), func(a *v1alpha1.IPAllocation) bool {
		return a.Spec.NodeName != node // only moves there: see examineMove
	})
	if !slices.ContainsFunc(found, l.unplaced) {
		return nil
	}
	if wait := l.places.wait(node, time.Now(), l.interval); wait > 0 {
		l.later(node, wait)
		return nil
	}
	if err := l.limit.Wait(ctx); err != nil {
		return err
	}
	there, err := l.podsOn(ctx, node)
	if err != nil {
		return fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for _, a := range found {
		if err := l.place(ctx, a, there); err != nil {
			return err
		}
	}
	l.places.answered(node, time.Now(), l.interval)
	return nil
}

func (l *locator) unplaced(a *v1alpha1.IPAllocation) bool {
	e := l.evidence.of(a)
	return e.Unplaced(a)
}

// podsOn returns the UIDs of the pods on a node, without those that have ended if
// nothing runs there any more.
func (l *locator) podsOn(ctx context.Context, node string) (map[types.UID]bool, error) {
	selector := fields.OneTermEqualSelector("spec.nodeName", node)
	if l.dead(node) {
		selector = fields.AndSelectors(selector,
			fields.OneTermNotEqualSelector("status.phase", "Succeeded"), fields.OneTermNotEqualSelector("status.phase", "Failed"))
	}
	list, err := l.pods.List(ctx, metav1.ListOptions{FieldSelector: selector.String(), ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	out := make(map[types.UID]bool, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].UID] = true
	}
	return out, nil
}

// place finds out where the pod of an allocation is: from the pods of its node, or else
// by reading the pod.
func (l *locator) place(ctx context.Context, a *v1alpha1.IPAllocation, there map[types.UID]bool) error {
	e := l.evidence.of(a)
	if !e.Unplaced(a) { // another allocation of the same pod may have placed it
		return nil
	}
	if there[e.Pod.UID] {
		l.set(a, e.Pod.UID, place{node: a.Spec.NodeName})
		return nil
	}
	if err := l.limit.Wait(ctx); err != nil {
		return err
	}
	now, err := l.confirmation.pod(ctx, a.Spec.PodRef)
	if err != nil {
		return fmt.Errorf("look where pod %s is: %w", podKey(a), err)
	}
	if now == nil || now.UID != e.Pod.UID { // the watch will tell
		return nil
	}
	l.set(a, now.UID, place{node: now.Node, ended: now.Ended})
	return nil
}

// set notes where the pod of an allocation is, for as long as the pod is in the cache:
// when it leaves that, its place is forgotten (triggers.onPod). Allocations on other
// nodes may name the pod as well.
func (l *locator) set(a *v1alpha1.IPAllocation, uid types.UID, where place) {
	l.places.set(uid, where)
	if pod := l.evidence.pod(a); pod == nil || pod.UID != uid {
		l.places.forget(uid)
	}
	l.placed(a)
}

// dead reports whether nothing can run on a node, as the cache has it.
func (l *locator) dead(name string) bool {
	node, found := l.caches.nodes.get(name)
	return !found || nodeState(node) == reclaim.OutOfService
}
