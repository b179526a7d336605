// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Annotations that the kubelet puts on the mirror of a static pod. The mirror
// has a UID of its own; the pod's, which the runtime tells CNI, is in the hash.
const (
	AnnotationConfigMirror = "kubernetes.io/config.mirror"
	AnnotationConfigHash   = "kubernetes.io/config.hash"
)

// Taints that say what is known of the containers on a node.
const (
	taintUnreachable  = "node.kubernetes.io/unreachable"
	taintOutOfService = "node.kubernetes.io/out-of-service"
)

// PodOf returns what the metadata of a pod says. It does not say where the pod is.
func PodOf(pod metav1.Object) *Pod {
	p := &Pod{UID: pod.GetUID(), Created: pod.GetCreationTimestamp(), Deleting: pod.GetDeletionTimestamp() != nil}
	annotations := pod.GetAnnotations()
	if _, mirror := annotations[AnnotationConfigMirror]; mirror {
		p.Mirrors = types.UID(annotations[AnnotationConfigHash])
	}
	return p
}

// StateOf returns what is known of the containers on a node. ready is the status of its
// condition Ready, "" if it has none: a node that has never reported counts as one that
// answers, because nothing can have run there.
func StateOf(ready string, taints []string) NodeState {
	state := Answers
	switch ready {
	case "", "True":
	case "False":
		state = NotReady
	default:
		state = Unreachable
	}
	for _, taint := range taints {
		switch taint {
		case taintOutOfService:
			return OutOfService
		case taintUnreachable:
			state = Unreachable
		}
	}
	return state
}

// OptOutOf returns the annotation by which a pool's owner disables reclaim, "" if there
// is none. A value that is not known disables it as well.
func OptOutOf(annotations map[string]string) string {
	value, found := annotations[v1alpha1.AnnotationReclaim]
	if !found || value == v1alpha1.ReclaimEnabled {
		return ""
	}
	return v1alpha1.AnnotationReclaim + "=" + value
}
