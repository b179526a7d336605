// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"strings"

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

// maxValue is how much is kept of an annotation's value, in bytes. Its author writes up to 256 KiB,
// and a UID has at most 64: what is longer is none, and it must not become one.
const maxValue = 65

// Annotations returns those of a pod, or of a pool, that are read here, nil if there are none. Of
// a value that is too long for anything that is known it returns the beginning.
func Annotations(all map[string]string) (out map[string]string) {
	for _, name := range []string{AnnotationConfigMirror, AnnotationConfigHash, v1alpha1.AnnotationReclaim} {
		value, found := all[name]
		if !found {
			continue
		}
		if len(value) > maxValue {
			value = strings.Clone(strings.ToValidUTF8(value[:maxValue], "?")) // a part of it would keep the whole
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	return out
}

// Taints that say what is known of the containers on a node.
const (
	taintUnreachable  = "node.kubernetes.io/unreachable"
	taintOutOfService = "node.kubernetes.io/out-of-service"
)

// PodOf returns what the metadata of a pod says. It does not say where the pod is.
func PodOf(pod metav1.Object) *Pod {
	p := &Pod{UID: pod.GetUID(), Created: pod.GetCreationTimestamp(), Deleting: pod.GetDeletionTimestamp() != nil}
	annotations := Annotations(pod.GetAnnotations())
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
