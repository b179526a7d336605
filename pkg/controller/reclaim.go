// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Annotations that the kubelet puts on the mirror of a static pod. The mirror
// has a UID of its own; the pod's, which the runtime tells CNI, is in the hash.
// The API server lets nobody but a node write the first.
const (
	annotationConfigMirror = "kubernetes.io/config.mirror"
	annotationConfigHash   = "kubernetes.io/config.hash"
)

// verdict is what is to be done about an allocation.
//
//  1. No attachment, or no pod is named                        keep: a reservation
//  2. Its pod is there, by UID                                 keep
//  3. The mirror of its static pod is there                    keep
//  4. It has no UID; a pod of the name is there, not younger   keep
//
// Otherwise its pod is gone. That alone does not prove that nothing answers on
// the address any more:
//
//  5. Its node is there, unreachable, and nobody has said that it is out of
//     service                                                  hold: its containers may be running
//  6. The node is reachable, gone or out of service            suspect
//
// A suspect is freed when it was one twice, a grace period apart, is older than
// that, and a live look at its pod and its node finds the same. Where the API
// server cannot be asked, nothing is freed.
type verdict int

const (
	keep verdict = iota
	hold
	suspect
)

// decide returns the verdict on an allocation and its reason. pod and node are
// those that the allocation names, nil where they do not exist.
func decide(a *v1alpha1.IPAllocation, pod *metav1.PartialObjectMetadata, node *corev1.Node) (verdict, string) {
	ref := a.Spec.PodRef
	if a.Spec.ContainerID == "" || ref.Name == "" {
		return keep, "reservation" // 1
	}
	gone := "pod is gone"
	if pod != nil {
		_, mirror := pod.Annotations[annotationConfigMirror]
		switch {
		case ref.UID != "" && pod.UID == ref.UID: // 2
			return keep, "pod exists"
		case ref.UID != "" && mirror && pod.Annotations[annotationConfigHash] == string(ref.UID): // 3
			return keep, "mirror of the static pod exists"
		case ref.UID == "" && !a.CreationTimestamp.Before(&pod.CreationTimestamp): // 4
			return keep, "pod of the name exists"
		case ref.UID == "":
			gone = "pod of the name was created later"
		default:
			gone = "pod of the name has another UID"
		}
	}
	if node != nil && unreachable(node) { // 5
		return hold, gone + ", but its node is unreachable"
	}
	return suspect, gone // 6
}

// unreachable reports whether containers may run on node that the cluster knows
// nothing of: the node does not answer, and nobody has declared it dead.
func unreachable(node *corev1.Node) bool {
	lost := false
	for _, taint := range node.Spec.Taints {
		switch taint.Key {
		case corev1.TaintNodeOutOfService:
			return false
		case corev1.TaintNodeUnreachable:
			lost = true
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionUnknown {
			lost = true
		}
	}
	return lost
}

// sightings is since when allocations have been suspects, by UID.
type sightings struct {
	mu    sync.Mutex
	since map[types.UID]time.Time
}

// first notes a suspect and returns when it was first seen as one.
func (s *sightings) first(uid types.UID, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since == nil {
		s.since = map[types.UID]time.Time{}
	}
	if _, ok := s.since[uid]; !ok {
		s.since[uid] = now
	}
	return s.since[uid]
}

func (s *sightings) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.since, uid)
}

// examine frees the allocation at key if it is proven leaked.
func (c *Controller) examine(ctx context.Context, key string) error {
	obj, found, _ := c.allocations.GetByKey(key) // never fails
	if !found {
		return nil
	}
	a := obj.(*v1alpha1.IPAllocation)
	if v, reason := decide(a, c.cachedPod(a), c.cachedNode(a)); v != suspect {
		c.seen.forget(a.UID)
		klog.FromContext(ctx).V(4).Info("Allocation stays", "allocation", key, "reason", reason)
		return nil
	}
	now := time.Now()
	since := c.seen.first(a.UID, now)
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

// reclaim frees a suspect whose grace is over, if a live look confirms it.
func (c *Controller) reclaim(ctx context.Context, a *v1alpha1.IPAllocation) error {
	pod, err := existing(c.clients.Metadata.Resource(podsResource).Namespace(a.Spec.PodRef.Namespace).Get(ctx, a.Spec.PodRef.Name, metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("confirm that the pod is gone: %w", err)
	}
	node, err := existing(c.clients.Kube.CoreV1().Nodes().Get(ctx, a.Spec.NodeName, metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("confirm the state of the node: %w", err)
	}
	v, reason := decide(a, pod, node)
	if v != suspect {
		c.seen.forget(a.UID)
		klog.FromContext(ctx).V(2).Info("Suspect is alive", "allocation", a.Name, "reason", reason)
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
	holder := a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name
	klog.FromContext(ctx).Info("Reclaimed", "allocation", a.Name, "pool", a.Spec.PoolRef, "address", a.Spec.Address,
		"pod", holder, "podUID", a.Spec.PodRef.UID, "node", a.Spec.NodeName, "container", a.Spec.ContainerID, "reason", reason)
	if obj, found, _ := c.kinds[a.Spec.PoolRef.Kind].informer.GetIndexer().GetByKey(a.Namespace + "/" + a.Spec.PoolRef.Name); found {
		c.recorder.Eventf(c.kinds[a.Spec.PoolRef.Kind].view(obj).object(), corev1.EventTypeNormal, reasonReclaimed,
			"reclaimed %s of pod %s on node %s: %s", a.Spec.Address, holder, a.Spec.NodeName, reason)
	}
	return nil
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

func (c *Controller) cachedPod(a *v1alpha1.IPAllocation) *metav1.PartialObjectMetadata {
	obj, found, _ := c.pods.GetByKey(a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name)
	if !found {
		return nil
	}
	return obj.(*metav1.PartialObjectMetadata)
}

func (c *Controller) cachedNode(a *v1alpha1.IPAllocation) *corev1.Node {
	obj, found, _ := c.nodes.GetByKey(a.Spec.NodeName)
	if !found {
		return nil
	}
	return obj.(*corev1.Node)
}
