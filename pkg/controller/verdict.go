// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"slices"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

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
//  5. As 2 or 3, but another container claimed later for the
//     same interface of the same pod on the same node          suspect: the kubelet stops a sandbox before it makes another
//     which of the two came later cannot be told               hold
//
// Otherwise its pod is not there. That alone does not prove that nothing answers
// on the address any more:
//
//  6. Its node is there, unreachable, and nobody has said that it is out of
//     service                                                  hold: its containers may be running
//  7. Its UID is none that the API server gave, so that its pod may never have
//     been there: a static pod without a mirror, or a container that was
//     started without a pod; and its node is there             hold
//     unless the mirror of a later static pod of the name is   suspect
//  8. Its node is reachable, gone or out of service            suspect
//
// And whatever would be a suspect
//
//  9. in a pool whose owner has disabled reclaim               hold
//
// A suspect is freed when it was one twice, a grace period apart, is older than
// that, and a live look at everything that the verdict rests on finds the same.
// Where the API server cannot be asked, nothing is freed.
type verdict int

const (
	keep verdict = iota
	hold
	suspect
)

// cause is why: a word for metrics and a text for people.
type cause struct{ word, text string }

// The words are values of a metric's label: docs/metrics.md.
const (
	wordInUse           = "in_use"
	wordPodGone         = "pod_gone"
	wordPodReplaced     = "pod_replaced"
	wordSandboxReplaced = "sandbox_replaced"
	wordSandboxUnclear  = "sandbox_unclear"
	wordNodeUnreachable = "node_unreachable"
	wordPodUnknown      = "pod_unknown"
	wordReclaimDisabled = "reclaim_disabled"
)

// The words of each verdict.
var (
	holdWords    = []string{wordNodeUnreachable, wordPodUnknown, wordReclaimDisabled, wordSandboxUnclear}
	suspectWords = []string{wordPodGone, wordPodReplaced, wordSandboxReplaced}
)

// evidence is what a verdict on an allocation rests on.
type evidence struct {
	pod  *metav1.PartialObjectMetadata // of the name that it has; nil where there is none
	node *corev1.Node                  // likewise
	// rival is another container's allocation for the same place; nil where
	// there is none.
	rival  *v1alpha1.IPAllocation
	optOut string // of the pool
}

// decide returns the verdict on an allocation, and why.
func decide(a *v1alpha1.IPAllocation, e evidence) (verdict, cause) {
	if a.Spec.ContainerID == "" || a.Spec.PodRef.Name == "" {
		return keep, cause{wordInUse, "reservation"} // 1
	}
	v, why := keep, cause{wordInUse, ownPod(a, e.pod)}
	switch {
	case why.text == "":
		v, why = withoutPod(a, e)
	case e.rival != nil:
		v, why = withRival(a, e.rival)
	}
	if v == suspect && e.optOut != "" { // 9
		return hold, cause{wordReclaimDisabled, why.text + ", but the pool has " + e.optOut}
	}
	return v, why
}

// optOut is the annotation by which a pool's owner disables reclaim, "" where
// there is none. A value that is not known does so, too.
func optOut(annotations map[string]string) string {
	value, found := annotations[v1alpha1.AnnotationReclaim]
	if !found || value == v1alpha1.ReclaimEnabled {
		return ""
	}
	return v1alpha1.AnnotationReclaim + "=" + value
}

// ownPod says in what way pod is the one that the allocation is for, "" where it
// is not.
func ownPod(a *v1alpha1.IPAllocation, pod *metav1.PartialObjectMetadata) string {
	uid := a.Spec.PodRef.UID
	switch {
	case pod == nil:
		return ""
	case uid == "" && !a.CreationTimestamp.Before(&pod.CreationTimestamp): // 4
		return "pod of the name exists"
	case uid == "":
		return ""
	case pod.UID == uid: // 2
		return "pod exists"
	case mirrors(pod) && pod.Annotations[annotationConfigHash] == string(uid): // 3
		return "mirror of the static pod exists"
	}
	return ""
}

func mirrors(pod *metav1.PartialObjectMetadata) bool {
	_, mirror := pod.Annotations[annotationConfigMirror]
	return mirror
}

// withRival decides between two containers of a pod that is there.
func withRival(a, rival *v1alpha1.IPAllocation) (verdict, cause) {
	switch {
	case later(a, rival):
		return keep, cause{wordInUse, "pod exists, and this is its later container"}
	case later(rival, a): // 5
		return suspect, cause{wordSandboxReplaced, "pod has another container since, " + rival.Spec.ContainerID}
	}
	return hold, cause{wordSandboxUnclear, "pod has another container, " + rival.Spec.ContainerID + ", and which is the later cannot be told"}
}

// later reports whether a's container is certainly later than b's, which is of
// the same pod on the same node. The node's clock may have been set back, the
// create of an earlier container may have come last, and a resource version
// changes with an object: so both orders have to say it.
func later(a, b *v1alpha1.IPAllocation) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	before, after := b.Spec.AddStartedAt, a.Spec.AddStartedAt
	return err == nil && order > 0 && before != nil && after != nil && before.Time.Before(after.Time)
}

// withoutPod decides about an allocation whose pod is not there.
func withoutPod(a *v1alpha1.IPAllocation, e evidence) (verdict, cause) {
	uid := a.Spec.PodRef.UID
	gone := cause{wordPodGone, "pod is gone"}
	switch {
	case e.pod != nil && uid == "":
		gone = cause{wordPodReplaced, "pod of the name was created later"}
	case e.pod != nil:
		gone = cause{wordPodReplaced, "pod of the name has another UID"}
	}
	if e.node != nil && unreachable(e.node) { // 6
		return hold, cause{wordNodeUnreachable, gone.text + ", but its node is unreachable"}
	}
	if e.node != nil && !outOfService(e.node) && !fromAPI(uid) && !laterStatic(a, e.pod) { // 7
		return hold, cause{wordPodUnknown, gone.text + ", but it may never have been in the API"}
	}
	return suspect, gone // 8
}

// fromAPI reports whether the API server may have given a UID: then its pod was
// there once. The kubelet gives static pods a hash without dashes.
func fromAPI(uid types.UID) bool {
	return len(uid) == 36 && uuid.Validate(string(uid)) == nil
}

// laterStatic reports whether pod is the mirror of what came after a static pod:
// the kubelet starts that one when the first has ended.
func laterStatic(a *v1alpha1.IPAllocation, pod *metav1.PartialObjectMetadata) bool {
	return pod != nil && a.Spec.PodRef.UID != "" && mirrors(pod) && a.CreationTimestamp.Before(&pod.CreationTimestamp)
}

// unreachable reports whether containers may run on node that the cluster knows
// nothing of: the node does not answer, and nobody has declared it dead.
func unreachable(node *corev1.Node) bool {
	lost := tainted(node, corev1.TaintNodeUnreachable)
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionUnknown {
			lost = true
		}
	}
	return lost && !outOfService(node)
}

// outOfService reports whether an operator says that nothing runs on node.
func outOfService(node *corev1.Node) bool { return tainted(node, corev1.TaintNodeOutOfService) }

func tainted(node *corev1.Node, key string) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}
