// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// triggers say which work follows from an event of a watch.
type triggers struct {
	caches   *caches
	queues   *queues
	memories *memories
	places   *places
	// settle and usage are those of Options.
	settle, usage time.Duration
	// soon and later are true while all pools wait to be reconciled, after settle and usage.
	soon, later atomic.Bool
}

// onPool reconciles a pool that was changed by others than this controller, or of which the API
// server has not stored all that it wrote. If a pool comes, goes or is edited, other pools may
// overlap with it from now on, or no longer.
func (t *triggers) onPool(kind v1alpha1.PoolKind) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			t.queues.pools.Add(pool.ObjectOf(obj).Ref)
			t.reconcileAllPools()
		},
		UpdateFunc: func(before, after any) {
			old, now := pool.ObjectOf(before), pool.ObjectOf(after)
			if !slices.Contains(t.memories.of(now.Ref).written, now.Meta.ResourceVersion) || incomplete(now) {
				t.queues.pools.AddAfter(now.Ref, t.settle)
			}
			another := old.Meta.UID != now.Meta.UID // made again while the watch was interrupted
			if another || old.Meta.Generation != now.Meta.Generation {
				t.reconcileAllPools()
			}
			if another || old.Meta.Annotations[v1alpha1.AnnotationReclaim] != now.Meta.Annotations[v1alpha1.AnnotationReclaim] {
				t.examine(byDomain, old.Domain)
				t.examine(byDomain, now.Domain)
			}
		},
		DeleteFunc: func(obj any) {
			if key, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				t.queues.pools.Add(v1alpha1.PoolReference{Kind: kind, Name: key.Name})
			}
			t.reconcileAllPools()
		},
	}
}

// lastState is what was last seen of a deleted object.
func lastState(obj any) any {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return obj
}

// onNode reconciles the pools when a node comes, goes or has other labels or addresses or another
// pod network, which it is given after it was created, and examines a node's allocations when what is known of its containers changes.
func (t *triggers) onNode() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			t.reconcileAllPools()
			t.examine(byNode, obj.(*corev1.Node).Name) // it may have been gone
		},
		UpdateFunc: func(before, after any) {
			old, node := before.(*corev1.Node), after.(*corev1.Node)
			if !equality.Semantic.DeepEqual(old.Labels, node.Labels) || !slices.Equal(old.Spec.PodCIDRs, node.Spec.PodCIDRs) ||
				!slices.Equal(old.Status.Addresses, node.Status.Addresses) {
				t.reconcileAllPools()
			}
			if nodeState(old) != nodeState(node) || old.UID != node.UID {
				t.examine(byNode, node.Name)
			}
		},
		DeleteFunc: func(obj any) {
			t.reconcileAllPools()
			if key, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				t.examine(byNode, key.Name)
			}
		},
	}
}

// onPod examines the allocations of a pod that came, went, or was replaced by another
// of its name while the watch was interrupted.
func (t *triggers) onPod() cache.ResourceEventHandler {
	examine := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			t.examine(byPod, key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: examine,
		UpdateFunc: func(before, after any) {
			if old := before.(metav1.Object).GetUID(); old != after.(metav1.Object).GetUID() {
				t.places.forget(old)
				examine(after)
			}
		},
		DeleteFunc: func(obj any) {
			examine(obj)
			if pod, ok := lastState(obj).(metav1.Object); ok {
				t.places.forget(pod.GetUID())
			}
		},
	}
}

// onAllocation examines each allocation, also at every resync. With one that is new it
// examines those of the same pod: the new one may be of a later sandbox. It reconciles a
// pool when an address is released while something is kept for addresses alone: the block of
// a node that the pool does not select any more, or what does not fit the specification. Only
// for the count of used addresses, it does so after Options.Usage.
func (t *triggers) onAllocation() cache.ResourceEventHandler {
	examine := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			t.queues.allocations.Add(key)
		}
	}
	return cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, isInInitialList bool) {
			examine(obj)
			a := obj.(*v1alpha1.IPAllocation)
			t.claimChanged(a)
			if isInInitialList { // all of them come, and each pool is reconciled anyway
				return
			}
			if a.Spec.PodRef.Name != "" {
				t.examine(byPod, podKey(a))
			}
			for _, ref := range t.caches.concerned(a) {
				t.queues.pools.AddAfter(ref, t.usage)
			}
			if t.caches.outlivedPools(a) {
				t.reconcileAllAfter(&t.later, t.usage)
			}
		},
		UpdateFunc: func(old, obj any) {
			examine(obj)
			before, a := old.(*v1alpha1.IPAllocation), obj.(*v1alpha1.IPAllocation)
			if before.Spec.ContainerID != a.Spec.ContainerID && a.Spec.PodRef.Name != "" { // taken over
				t.examine(byPod, podKey(a))
			}
			if !a.Spec.Held() {
				t.reserve(a)
			}
			if before.Spec.Held() != a.Spec.Held() || before.Spec.PodRef != a.Spec.PodRef {
				t.claimChanged(a)
			}
			if before.Spec.Held() != a.Spec.Held() || before.Spec.Rests() != a.Spec.Rests() || before.Spec.NodeName != a.Spec.NodeName {
				t.usedLess(before)
			}
		},
		DeleteFunc: func(obj any) {
			examine(obj) // forgets it
			a, ok := lastState(obj).(*v1alpha1.IPAllocation)
			if !ok {
				return
			}
			t.caches.orphans.forget(a.UID)
			t.usedLess(a)
			t.reserve(a)
			t.claimChanged(a)
			switch { // others may have said that they overlap with it
			case !t.caches.outlivedPools(a):
			case slices.Contains(t.caches.allocations.ListIndexFuncValues(byDomain), a.DomainOf()):
				t.reconcileAllAfter(&t.later, t.usage)
			default: // it was the last one
				t.reconcileAllPools()
			}
		},
	}
}

// onReservation reconciles a reservation, and examines what it has kept so far.
func (t *triggers) onReservation() cache.ResourceEventHandler {
	examine := func(obj any) {
		if res, ok := lastState(obj).(*v1alpha1.IPReservation); ok {
			t.examine(byOwner, string(res.UID))
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { t.queues.reservations.Add(obj.(*v1alpha1.IPReservation).Name) },
		UpdateFunc: func(before, after any) {
			old, res := before.(*v1alpha1.IPReservation), after.(*v1alpha1.IPReservation)
			t.queues.reservations.Add(res.Name)
			if old.Generation != res.Generation || old.UID != res.UID {
				examine(old)
			}
		},
		DeleteFunc: func(obj any) {
			if res, ok := lastState(obj).(*v1alpha1.IPReservation); ok {
				t.caches.orphan(res)
			}
			examine(obj)
		},
	}
}

// claimChanged writes the status of the IPAMClaim that keeps an address.
func (t *triggers) claimChanged(a *v1alpha1.IPAllocation) {
	if owner := a.Spec.Owner; owner.IsIPAMClaim() {
		t.queues.claims.AddAfter(types.NamespacedName{Namespace: owner.Namespace, Name: owner.Name}, t.settle)
	}
}

// reserve reconciles the reservations that name the address of an allocation which no
// container holds any more.
func (t *triggers) reserve(a *v1alpha1.IPAllocation) {
	for _, name := range t.caches.concernedReservations(a) {
		t.queues.reservations.Add(name)
	}
}

// usedLess reconciles the pools that an allocation counted in before it was released: soon
// if that may give room to another node.
func (t *triggers) usedLess(a *v1alpha1.IPAllocation) {
	for _, ref := range t.caches.concerned(a) {
		t.queues.pools.AddAfter(ref, t.usage)
		if t.memories.of(ref).kept {
			t.queues.pools.AddAfter(ref, t.settle)
		}
	}
}

// examine examines the allocations that an index has for a value.
func (t *triggers) examine(index, value string) {
	for _, key := range t.caches.allocations.keysBy(index, value) {
		t.queues.allocations.Add(key)
	}
}

// reconcileGonePools reconciles the pools that allocations name and that do not exist.
func (t *triggers) reconcileGonePools() {
	for _, key := range t.caches.allocations.ListIndexFuncValues(byPool) {
		kind, name, _ := strings.Cut(key, "/")
		if ref := (v1alpha1.PoolReference{Kind: v1alpha1.PoolKind(kind), Name: name}); t.caches.pool(ref) == nil {
			t.queues.pools.Add(ref)
		}
	}
}

// reconcileAllPools does so soon.
func (t *triggers) reconcileAllPools() { t.reconcileAllAfter(&t.soon, t.settle) }

// reconcileAllAfter reconciles all pools after a while, for all events until then.
func (t *triggers) reconcileAllAfter(waiting *atomic.Bool, after time.Duration) {
	if waiting.Swap(true) {
		return
	}
	time.AfterFunc(after, func() {
		waiting.Store(false)
		for p := range t.caches.allPools() {
			t.queues.pools.Add(p.Ref)
		}
		t.reconcileGonePools() // the pool that stood in for one may have gone, too
		for _, res := range t.caches.reservations.all() {
			t.queues.reservations.Add(res.Name)
		}
	})
}
