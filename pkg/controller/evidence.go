// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// Annotations that the kubelet puts on the mirror of a static pod. The mirror
// has a UID of its own; the pod's, which the runtime tells CNI, is in the hash.
const (
	annotationConfigMirror = "kubernetes.io/config.mirror"
	annotationConfigHash   = "kubernetes.io/config.hash"
)

// cached is the evidence that the caches have.
func (c *Controller) cached(a *v1alpha1.IPAllocation) reclaim.Evidence {
	e := reclaim.Evidence{Pod: c.cachedPod(a), Others: c.others(a)}
	if obj, found, _ := c.nodes.GetByKey(a.Spec.NodeName); found {
		e.Node = nodeEvidence(obj.(*corev1.Node))
	}
	if pool := c.pool(a.Spec.PoolRef); pool != nil {
		e.OptOut = optOut(pool.GetAnnotations())
	}
	return e
}

func (c *Controller) cachedPod(a *v1alpha1.IPAllocation) *reclaim.Pod {
	obj, found, _ := c.pods.GetByKey(holder(a))
	if !found {
		return nil
	}
	pod := podEvidence(obj.(metav1.Object))
	if p, known := c.places.get(pod.UID); known {
		pod.Placed, pod.Node, pod.Ended = true, p.node, p.ended
	}
	return pod
}

// others are the allocations that name the same pod as a.
func (c *Controller) others(a *v1alpha1.IPAllocation) (out []*v1alpha1.IPAllocation) {
	found, _ := c.allocations.ByIndex(byPod, holder(a)) // fails for unknown indexes only
	for _, obj := range found {
		out = append(out, obj.(*v1alpha1.IPAllocation))
	}
	return out
}

// live is the evidence that the API server has.
func (c *Controller) live(ctx context.Context, a *v1alpha1.IPAllocation) (e reclaim.Evidence, err error) {
	if e.Pod, err = c.livePod(ctx, a.Spec.PodRef); err != nil {
		return e, fmt.Errorf("confirm that the pod is gone: %w", err)
	}
	if e.Node, err = c.liveNode(ctx, a.Spec.NodeName); err != nil {
		return e, fmt.Errorf("confirm the state of the node: %w", err)
	}
	if err := c.confirmLater(ctx, a, &e); err != nil {
		return e, fmt.Errorf("confirm that there is a later sandbox: %w", err)
	}
	pool, err := existing(c.clients.Metadata.Resource(c.kinds[a.Spec.PoolRef.Kind].resource).Namespace(a.Namespace).Get(ctx, a.Spec.PoolRef.Name, metav1.GetOptions{}))
	if err != nil {
		return e, fmt.Errorf("confirm that the pool allows it: %w", err)
	}
	if pool != nil {
		e.OptOut = optOut(pool.Annotations)
	}
	return e, nil
}

// livePod returns what the API server has of a pod, nil if it has none. It reads
// the whole pod, which alone says where it is and whether it has ended.
func (c *Controller) livePod(ctx context.Context, ref v1alpha1.PodReference) (*reclaim.Pod, error) {
	if !reclaim.Possible(ref) { // the API server would refuse the question
		return nil, nil
	}
	pod, err := existing(c.clients.Kube.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{}))
	if pod == nil || err != nil {
		return nil, err
	}
	p := podEvidence(pod)
	p.Placed, p.Node = true, pod.Spec.NodeName
	p.Ended = pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return p, nil
}

func (c *Controller) liveNode(ctx context.Context, name string) (*reclaim.Node, error) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 { // likewise
		return nil, nil
	}
	node, err := existing(c.clients.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}))
	if node == nil || err != nil {
		return nil, err
	}
	return nodeEvidence(node), nil
}

// confirmLater adds to e the other sandboxes of a's pod that the cache knows. One
// that is a reason to free is read again, and dropped if its address is somebody
// else's by now. A sandbox that the cache lacks could only be one more reason.
func (c *Controller) confirmLater(ctx context.Context, a *v1alpha1.IPAllocation, e *reclaim.Evidence) error {
	e.Others = c.others(a)
	confirmed := map[*v1alpha1.IPAllocation]bool{}
	for later := e.LaterSandbox(a); later != nil && !confirmed[later]; later = e.LaterSandbox(a) {
		now, err := existing(c.clients.IPAM.NvIpamV1alpha1().IPAllocations(later.Namespace).Get(ctx, later.Name, metav1.GetOptions{}))
		if err != nil {
			return err
		}
		e.Others = slices.DeleteFunc(e.Others, func(o *v1alpha1.IPAllocation) bool { return o == later })
		if now != nil && now.UID == later.UID {
			e.Others = append(e.Others, now)
			confirmed[now] = true
		}
	}
	return nil
}

func podEvidence(pod metav1.Object) *reclaim.Pod {
	p := &reclaim.Pod{UID: pod.GetUID(), Created: pod.GetCreationTimestamp(), Deleting: pod.GetDeletionTimestamp() != nil}
	annotations := pod.GetAnnotations()
	if _, mirror := annotations[annotationConfigMirror]; mirror {
		p.Mirrors = types.UID(annotations[annotationConfigHash])
	}
	return p
}

func nodeEvidence(node *corev1.Node) *reclaim.Node {
	return &reclaim.Node{Created: node.CreationTimestamp, State: nodeState(node)}
}

// nodeState says what is known of the containers on a node. One that has never
// reported is taken for one that answers: nothing can have run there.
func nodeState(node *corev1.Node) reclaim.NodeState {
	state := reclaim.Answers
	for _, condition := range node.Status.Conditions {
		switch {
		case condition.Type != corev1.NodeReady:
		case condition.Status == corev1.ConditionFalse:
			state = reclaim.NotReady
		case condition.Status != corev1.ConditionTrue:
			state = reclaim.Unreachable
		}
	}
	switch {
	case tainted(node, corev1.TaintNodeOutOfService):
		return reclaim.OutOfService
	case tainted(node, corev1.TaintNodeUnreachable):
		return reclaim.Unreachable
	}
	return state
}

func tainted(node *corev1.Node, key string) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}

// optOut is the annotation by which a pool's owner disables reclaim, "" if there
// is none. A value that is not known disables it, too.
func optOut(annotations map[string]string) string {
	value, found := annotations[v1alpha1.AnnotationReclaim]
	if !found || value == v1alpha1.ReclaimEnabled {
		return ""
	}
	return v1alpha1.AnnotationReclaim + "=" + value
}

// existing turns "not found" into nil without an error: the only answer that
// proves that something is gone, if it is the API server's own. A proxy's 404
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
