// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// maxEvent is how long the message of an event may be, in bytes.
const maxEvent = 1024

// boundedRecorder cuts what is too long for an event.
type boundedRecorder struct{ record.EventRecorder }

func (r boundedRecorder) Event(object runtime.Object, eventType, reason, message string) {
	r.EventRecorder.Event(object, eventType, reason, pool.Cut(message, maxEvent))
}

func (r boundedRecorder) Eventf(object runtime.Object, eventType, reason, format string, args ...any) {
	r.Event(object, eventType, reason, fmt.Sprintf(format, args...))
}

// reference names a pool in an event.
func reference(obj *pool.Object) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: string(obj.Ref.Kind),
		Namespace: obj.Meta.Namespace, Name: obj.Meta.Name, UID: obj.Meta.UID, ResourceVersion: obj.Meta.ResourceVersion,
	}
}
