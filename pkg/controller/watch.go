// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Indexes of allocations.
const (
	byHolder = "holder" // holderKey: the pool and the node that holds the address
	byPod    = "pod"    // namespace/name
	byNode   = "node"
	byPool   = "pool" // poolKey
)

var podsResource = corev1.SchemeGroupVersion.WithResource("pods")

func holderKey(ref v1alpha1.PoolReference, node string) string { return poolKey(ref) + "/" + node }

func poolKey(ref v1alpha1.PoolReference) string { return string(ref.Kind) + "/" + ref.Name }

var allocationIndexers = cache.Indexers{
	byHolder: indexAllocation(func(a *v1alpha1.IPAllocation) string { return holderKey(a.Spec.PoolRef, a.Spec.NodeName) }),
	byPod:    indexAllocation(func(a *v1alpha1.IPAllocation) string { return a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name }),
	byNode:   indexAllocation(func(a *v1alpha1.IPAllocation) string { return a.Spec.NodeName }),
	byPool:   indexAllocation(func(a *v1alpha1.IPAllocation) string { return poolKey(a.Spec.PoolRef) }),
}

func indexAllocation(key func(*v1alpha1.IPAllocation) string) cache.IndexFunc {
	return func(obj any) ([]string, error) { return []string{key(obj.(*v1alpha1.IPAllocation))}, nil }
}

// watch registers what each event sets going, and returns what is done when
// all that exists has been seen.
func (c *Controller) watch() ([]cache.DoneChecker, error) {
	allocations := c.ipam.NvIpam().V1alpha1().IPAllocations().Informer()
	if err := allocations.AddIndexers(allocationIndexers); err != nil {
		return nil, err
	}
	nodes := c.kube.Core().V1().Nodes().Informer()
	pods := c.meta.ForResource(podsResource).Informer()
	c.allocations, c.nodes, c.pods = allocations.GetIndexer(), nodes.GetIndexer(), pods.GetIndexer()

	type watching struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}
	all := []watching{
		{allocations, c.onAllocation()},
		{nodes, c.onNode()},
		{pods, c.onPod()},
	}
	for kind, k := range c.kinds {
		all = append(all, watching{k.informer, c.onPool(kind)})
	}
	var handled []cache.DoneChecker
	for _, w := range all {
		registration, err := w.informer.AddEventHandler(w.handler)
		if err != nil {
			return nil, err
		}
		handled = append(handled, registration.HasSyncedChecker())
	}
	return handled, nil
}

// onPool reconciles a pool that was changed, by its owner or by a writer of its
// status: that is mostly this controller, and the second of its two writes ought
// to be in the cache by then.
func (c *Controller) onPool(kind v1alpha1.PoolKind) cache.ResourceEventHandler {
	reconcile := func(obj any, settle time.Duration) {
		if key, err := cache.DeletionHandlingObjectToName(obj); err == nil {
			c.pools.AddAfter(v1alpha1.PoolReference{Kind: kind, Name: key.Name}, settle)
		}
	}
	// The other pools may overlap with it from now on, or no longer.
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			reconcile(obj, 0)
			c.reconcileAllPools()
		},
		UpdateFunc: func(before, after any) {
			reconcile(after, c.opts.Settle)
			old, pool := before.(metav1.Object), after.(metav1.Object)
			if old.GetGeneration() != pool.GetGeneration() {
				c.reconcileAllPools()
			}
			if old.GetAnnotations()[v1alpha1.AnnotationReclaim] != pool.GetAnnotations()[v1alpha1.AnnotationReclaim] {
				c.examineIndexed(byPool, poolKey(v1alpha1.PoolReference{Kind: kind, Name: pool.GetName()}))
			}
		},
		DeleteFunc: func(obj any) {
			reconcile(obj, 0)
			c.reconcileAllPools()
		},
	}
}

// onNode reconciles the pools when a node comes, goes or is labelled anew, and
// examines a node's allocations when what is known of its containers changes.
func (c *Controller) onNode() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.reconcileAllPools() },
		UpdateFunc: func(before, after any) {
			old, node := before.(*corev1.Node), after.(*corev1.Node)
			if !equality.Semantic.DeepEqual(old.Labels, node.Labels) {
				c.reconcileAllPools()
			}
			if unreachable(old) != unreachable(node) || outOfService(old) != outOfService(node) {
				c.examineIndexed(byNode, node.Name)
			}
		},
		DeleteFunc: func(obj any) {
			c.reconcileAllPools()
			if key, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				c.examineIndexed(byNode, key.Name)
			}
		},
	}
}

// onPod examines the allocations of a pod that came, went, or went and came
// again while the watch was interrupted.
func (c *Controller) onPod() cache.ResourceEventHandler {
	examine := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			c.examineIndexed(byPod, key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: examine,
		UpdateFunc: func(before, after any) {
			if before.(metav1.Object).GetUID() != after.(metav1.Object).GetUID() {
				examine(after)
			}
		},
		DeleteFunc: examine,
	}
}

// onAllocation examines each allocation, also at every resync, and with a new one
// those of the same pod, of which it may be the successor. It reconciles a pool
// when a node has given back its last address of it, for which alone its block
// may have been kept, or when what was given back may be what did not fit; for
// the count of used addresses alone, not often.
func (c *Controller) onAllocation() cache.ResourceEventHandler {
	examine := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			c.suspects.Add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			examine(obj)
			if a := obj.(*v1alpha1.IPAllocation); a.Spec.PodRef.UID != "" {
				c.examineIndexed(byPod, holder(a))
			}
			c.pools.AddAfter(obj.(*v1alpha1.IPAllocation).Spec.PoolRef, c.opts.Usage)
		},
		UpdateFunc: func(_, obj any) { examine(obj) },
		DeleteFunc: func(obj any) {
			examine(obj) // forgets it
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			a, ok := obj.(*v1alpha1.IPAllocation)
			if !ok {
				return
			}
			c.pools.AddAfter(a.Spec.PoolRef, c.opts.Usage)
			if _, misfits := c.misfitting.Load(a.Spec.PoolRef); misfits || !c.holds(a.Spec.PoolRef, a.Spec.NodeName) {
				c.pools.AddAfter(a.Spec.PoolRef, c.opts.Settle)
			}
		},
	}
}

func (c *Controller) examineIndexed(index, value string) {
	keys, _ := c.allocations.IndexKeys(index, value) // fails for unknown indexes only
	for _, key := range keys {
		c.suspects.Add(key)
	}
}

func (c *Controller) reconcileAllPools() {
	for kind, k := range c.kinds {
		for _, key := range k.informer.GetIndexer().ListKeys() {
			_, pool, _ := cache.SplitMetaNamespaceKey(key)
			c.pools.AddAfter(v1alpha1.PoolReference{Kind: kind, Name: pool}, c.opts.Settle)
		}
	}
}

// holds reports whether node holds addresses of the pool.
func (c *Controller) holds(ref v1alpha1.PoolReference, node string) bool {
	keys, _ := c.allocations.IndexKeys(byHolder, holderKey(ref, node)) // fails for unknown indexes only
	return len(keys) > 0
}

// thin drops what nobody here reads before an object is cached: most of a large
// cluster's pods and nodes. It may be called twice on one object.
func thin(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Node:
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels},
			Spec:       corev1.NodeSpec{Taints: o.Spec.Taints, PodCIDRs: o.Spec.PodCIDRs},
			Status:     corev1.NodeStatus{Conditions: readiness(o)},
		}, nil
	case *metav1.PartialObjectMetadata: // a pod
		return &metav1.PartialObjectMetadata{
			TypeMeta: o.TypeMeta,
			ObjectMeta: metav1.ObjectMeta{
				Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
				CreationTimestamp: o.CreationTimestamp, Annotations: only(o.Annotations, annotationConfigMirror, annotationConfigHash),
			},
		}, nil
	case *v1alpha1.IPAllocation:
		o.ManagedFields, o.Annotations, o.Labels = nil, nil, nil
	case *v1alpha1.IPPool:
		o.ManagedFields, o.Annotations = blocksManagers(o.ManagedFields), only(o.Annotations, v1alpha1.AnnotationReclaim)
	case *v1alpha1.CIDRPool:
		o.ManagedFields, o.Annotations = blocksManagers(o.ManagedFields), only(o.Annotations, v1alpha1.AnnotationReclaim)
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

// only returns the annotations with these names, nil where there are none.
func only(annotations map[string]string, names ...string) (out map[string]string) {
	for _, name := range names {
		if value, found := annotations[name]; found {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = value
		}
	}
	return out
}

// blocksManagers are the names of the managers that applied status.allocations.
func blocksManagers(entries []metav1.ManagedFieldsEntry) []metav1.ManagedFieldsEntry {
	var out []metav1.ManagedFieldsEntry
	for _, e := range entries {
		if strings.HasPrefix(e.Manager, v1alpha1.BlocksManagerPrefix) {
			out = append(out, metav1.ManagedFieldsEntry{Manager: e.Manager, Operation: e.Operation, Subresource: e.Subresource})
		}
	}
	return out
}
