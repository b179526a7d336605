// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"iter"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// caches are what the informers have seen of the cluster. They may be behind the API
// server, and nobody changes an object of theirs.
type caches struct {
	namespace   string // of the pools
	nodes       index[*corev1.Node]
	pods        index[*metav1.PartialObjectMetadata]
	allocations index[*v1alpha1.IPAllocation]
	pools       map[v1alpha1.PoolKind]index[metav1.Object]

	// reservations may not be known yet: the installed CRDs may have none.
	reservations       index[*v1alpha1.IPReservation]
	reservationsSynced func() bool
	// reserved is what they name, by name; it lacks what was not asked for.
	reserved table[string, reservedSet]
	// orphans are the UIDs of allocations whose reservation was seen to go.
	orphans table[types.UID, struct{}]
}

// index is a cache of objects of one type, by their keys (namespace/name, or the name
// of a node). It is a local store whose methods return an error only for an index that
// does not exist.
type index[T any] struct{ cache.Indexer }

func (i index[T]) get(key string) (obj T, found bool) {
	if found, ok, _ := i.GetByKey(key); ok {
		return found.(T), true
	}
	return obj, false
}

func (i index[T]) all() []T { return typed[T](i.List()) }

func (i index[T]) by(name, value string) []T {
	found, _ := i.ByIndex(name, value)
	return typed[T](found)
}

func (i index[T]) keysBy(name, value string) []string {
	keys, _ := i.IndexKeys(name, value)
	return keys
}

func typed[T any](in []any) []T {
	out := make([]T, len(in))
	for i, obj := range in {
		out[i] = obj.(T)
	}
	return out
}

// pool returns a pool; nil if there is none.
func (c *caches) pool(ref v1alpha1.PoolReference) *pool.Object {
	kind, known := c.pools[ref.Kind]
	if !known {
		return nil
	}
	obj, _ := kind.get(c.namespace + "/" + ref.Name)
	return pool.ObjectOf(obj)
}

// awaitTime is how long await waits at most.
const awaitTime = time.Second

// await waits until the watch has told of a pool that was just written. Then the API server's own
// cache has it, too: what is written before that is worked out twice there, first on the version
// before, and a large pool costs it some tenths of a second.
func (c *caches) await(ctx context.Context, written *pool.Object) {
	ctx, cancel := context.WithTimeout(ctx, awaitTime)
	defer cancel()
	_ = wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(context.Context) (bool, error) {
		now := c.pool(written.Ref)
		return now == nil || v1alpha1.VersionNumber(now.Meta.ResourceVersion) >= v1alpha1.VersionNumber(written.Meta.ResourceVersion), nil
	})
}

// allPools yields the pools of all kinds, in no order.
func (c *caches) allPools() iter.Seq[*pool.Object] {
	return func(yield func(*pool.Object) bool) {
		for _, kind := range c.pools {
			for _, obj := range kind.all() {
				if !yield(pool.ObjectOf(obj)) {
					return
				}
			}
		}
	}
}

// optOutOf is the optOut of the first pool of a domain that has one.
func (c *caches) optOutOf(domain string) string {
	for _, kind := range c.pools {
		for _, obj := range kind.by(byDomain, domain) {
			if out := reclaim.OptOutOf(obj.GetAnnotations()); out != "" {
				return out
			}
		}
	}
	return ""
}

// domains returns the domains of all pools.
func (c *caches) domains() map[string]bool {
	out := map[string]bool{}
	for _, kind := range c.pools {
		for _, domain := range kind.ListIndexFuncValues(byDomain) {
			out[domain] = true
		}
	}
	return out
}

// inDomain returns the pools of a domain.
func (c *caches) inDomain(domain string) (out []v1alpha1.PoolReference) {
	for kind, all := range c.pools {
		for _, obj := range all.by(byDomain, domain) {
			out = append(out, v1alpha1.PoolReference{Kind: kind, Name: obj.GetName()})
		}
	}
	return out
}

// outlivedPools reports whether no pool has the domain of an allocation any more.
func (c *caches) outlivedPools(a *v1alpha1.IPAllocation) bool {
	return len(c.inDomain(a.DomainOf())) == 0
}

// concerned returns the pools whose status an allocation may change: those of its domain,
// or the one that it was taken from, which is gone.
func (c *caches) concerned(a *v1alpha1.IPAllocation) []v1alpha1.PoolReference {
	if pools := c.inDomain(a.DomainOf()); len(pools) > 0 {
		return pools
	}
	return []v1alpha1.PoolReference{a.Spec.PoolRef}
}

// heldIn yields the addresses of a pool that are held.
func (c *caches) heldIn(obj *pool.Object) iter.Seq[pool.Held] {
	return obj.HeldBeside(c.allocations.by(byDomain, obj.Domain), c.inDomain(obj.Domain))
}

// Indexes of allocations.
const (
	byPod    = "pod"    // podKey
	byNode   = "node"   // spec.nodeName
	byPool   = "pool"   // poolKey
	byDomain = "domain" // that of the name
	byOwner  = "owner"  // UID of spec.owner
)

// poolIndexers are the indexes of pools: byDomain.
var poolIndexers = cache.Indexers{
	byDomain: func(obj any) ([]string, error) { return []string{pool.ObjectOf(obj).Domain}, nil },
}

var allocationIndexers = cache.Indexers{
	byPod:    indexAttachments(podKey),
	byNode:   indexAttachments(func(a *v1alpha1.IPAllocation) string { return a.Spec.NodeName }),
	byPool:   indexAllocation(func(a *v1alpha1.IPAllocation) string { return poolKey(a.Spec.PoolRef) }),
	byDomain: indexAllocation((*v1alpha1.IPAllocation).DomainOf),
	byOwner: func(obj any) ([]string, error) {
		if owner := obj.(*v1alpha1.IPAllocation).Spec.Owner; owner != nil {
			return []string{string(owner.UID)}, nil
		}
		return nil, nil
	},
}

func indexAllocation(key func(*v1alpha1.IPAllocation) string) cache.IndexFunc {
	return func(obj any) ([]string, error) { return []string{key(obj.(*v1alpha1.IPAllocation))}, nil }
}

// indexAttachments indexes by the holder and by what takes its place.
func indexAttachments(key func(*v1alpha1.IPAllocation) string) cache.IndexFunc {
	return func(obj any) ([]string, error) {
		a := obj.(*v1alpha1.IPAllocation)
		keys := []string{key(a)}
		if promoted := a.Promoted(); promoted != nil {
			keys = append(keys, key(promoted))
		}
		return keys, nil
	}
}

func poolKey(ref v1alpha1.PoolReference) string { return string(ref.Kind) + "/" + ref.Name }

// podKey is the key of the pod that an allocation names, NAMESPACE/NAME.
func podKey(a *v1alpha1.IPAllocation) string {
	return a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name
}

// thin drops what the controller does not read before an object is cached: most of a
// large cluster's pods and nodes. It may be called twice on one object.
func thin(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, CreationTimestamp: o.CreationTimestamp, Labels: o.Labels},
			Spec:       corev1.NodeSpec{Taints: o.Spec.Taints, PodCIDRs: o.Spec.PodCIDRs},
			Status:     corev1.NodeStatus{Conditions: readiness(o), Addresses: ownAddresses(o)},
		}, nil
	case *metav1.PartialObjectMetadata: // a pod
		return &metav1.PartialObjectMetadata{
			TypeMeta: o.TypeMeta,
			ObjectMeta: metav1.ObjectMeta{
				Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
				CreationTimestamp: o.CreationTimestamp, DeletionTimestamp: o.DeletionTimestamp, Annotations: reclaim.Annotations(o.Annotations),
			},
		}, nil
	case *v1alpha1.IPAllocation:
		o.ManagedFields, o.Annotations, o.Labels = nil, nil, nil
	default:
		if p := pool.ObjectOf(obj); p != nil {
			applied := droppedFields(p)
			p.Meta.ManagedFields, p.Meta.Annotations = statusManagers(p.Meta.ManagedFields), reclaim.Annotations(p.Meta.Annotations)
			if len(applied) > 0 { // of what was applied, only what is missing
				text, err := json.Marshal(map[string]any{"spec": applied})
				if err != nil {
					return nil, err
				}
				metav1.SetMetaDataAnnotation(p.Meta, corev1.LastAppliedConfigAnnotation, string(text))
			}
		}
	}
	return obj, nil
}

func readiness(node *corev1.Node) []corev1.NodeCondition {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: condition.Type, Status: condition.Status}}
		}
	}
	return nil
}

// maxOwnAddresses is how many addresses of a node are looked at: the node itself writes them.
const maxOwnAddresses = 16

// ownAddresses are the addresses of a node's own interfaces, as its status has them.
func ownAddresses(node *corev1.Node) (out []corev1.NodeAddress) {
	for _, a := range node.Status.Addresses {
		if _, err := pool.ParseAddr(a.Address); err == nil && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) && len(out) < maxOwnAddresses {
			out = append(out, a)
		}
	}
	return out
}

// statusManagers are who applied status.allocations, and who patched the rest and when.
func statusManagers(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	var out []metav1.ManagedFieldsEntry
	for _, e := range entries {
		thin := metav1.ManagedFieldsEntry{Manager: e.Manager, Operation: e.Operation, Subresource: e.Subresource}
		if isRestOfStatus(e) {
			thin.Time = e.Time
		} else if !strings.HasPrefix(e.Manager, v1alpha1.BlocksManagerPrefix) {
			continue
		}
		out = append(out, thin)
	}
	return out
}
