// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// reasonReclaimUnknown is the reason of an event about an annotation that is not known.
const reasonReclaimUnknown = "UnknownReclaimAnnotation"

// flapping is how long a node's news must have been over before they are told again.
const flapping = 10 * time.Minute

// poolEvents tells in events what is new of a pool.
type poolEvents struct {
	recorder record.EventRecorder
	flapping time.Duration // at least the constant, and longer than a resync
}

// tell records as events what was not said the last time, and returns what has been
// said by now. After a restart, the conditions as they were before tell what has been
// said already.
func (p *poolEvents) tell(obj *pool.Object, before []metav1.Condition, out outcome, last lastEvents) lastEvents {
	known := last.uid == obj.Meta.UID
	if !known {
		last = lastEvents{uid: obj.Meta.UID, nodes: map[string]time.Time{}}
	}
	next := lastEvents{uid: last.uid, ready: out.ready, unserved: out.unserved, optOut: reclaim.OptOutOf(obj.Meta.Annotations), notices: map[string]string{}, nodes: last.nodes}
	p.tellOptOut(obj, last.optOut)
	p.tellNotices(obj, before, out.notices, last.notices, next.notices)
	p.tellNodes(obj, before, out.news, last.nodes, known)
	if told := meta.FindStatusCondition(before, v1alpha1.ConditionReady); known || told == nil || !same(*told, out.ready) {
		p.tellReady(obj, out, last)
	}
	return next
}

func (p *poolEvents) tellReady(obj *pool.Object, out outcome, last lastEvents) {
	switch out.ready.Reason {
	case v1alpha1.ReasonInvalidSpec:
		if !same(last.ready, out.ready) {
			p.warn(obj, v1alpha1.ReasonInvalidSpec, out.ready.Message)
		}
	case v1alpha1.ReasonNoMatchingNodes, v1alpha1.ReasonRecordLost:
		if last.ready.Reason != out.ready.Reason {
			p.warn(obj, out.ready.Reason, out.ready.Message)
		}
	}
	for _, node := range out.unserved {
		if _, told := slices.BinarySearch(last.unserved, node); !told {
			p.warn(obj, v1alpha1.ReasonNoFreeRanges, "failed to allocate IPs on Node: "+node)
		}
	}
}

func (p *poolEvents) tellOptOut(obj *pool.Object, last string) {
	value := obj.Meta.Annotations[v1alpha1.AnnotationReclaim]
	if now := reclaim.OptOutOf(obj.Meta.Annotations); now == last || now == "" || value == v1alpha1.ReclaimDisabled {
		return
	}
	p.warn(obj, reasonReclaimUnknown, fmt.Sprintf("no address is reclaimed: annotation %s is %q, want %q or %q",
		v1alpha1.AnnotationReclaim, pool.Cut(value, maxEvent/4), v1alpha1.ReclaimEnabled, v1alpha1.ReclaimDisabled))
}

// tellNotices records the notices that are new, and keeps in next what was said.
func (p *poolEvents) tellNotices(obj *pool.Object, before []metav1.Condition, notices []notice, last, next map[string]string) {
	for _, n := range notices {
		if n.event == "" {
			continue
		}
		next[n.condition.Type] = n.event
		if last[n.condition.Type] == n.event {
			continue
		}
		told := meta.FindStatusCondition(before, n.condition.Type)
		if told != nil && (told.Message == n.event || strconv.FormatInt(told.ObservedGeneration, 10) == n.event) {
			continue
		}
		p.warn(obj, n.condition.Reason, n.condition.Message)
	}
}

// tellNodes records the news of each node that have not been told, and not again while
// they come and go. In told is when they were last the case.
func (p *poolEvents) tellNodes(obj *pool.Object, before []metav1.Condition, news []nodeNews, told map[string]time.Time, known bool) {
	now := time.Now()
	for _, n := range news {
		key := n.reason + "/" + n.node
		_, said := told[key]
		if !known { // a condition of the same name may have said so before a restart
			said = meta.FindStatusCondition(before, n.reason) != nil
		}
		if !said {
			p.warn(obj, n.reason, n.message)
		}
		told[key] = now
	}
	maps.DeleteFunc(told, func(_ string, at time.Time) bool { return now.Sub(at) > p.flapping })
}

// gone says that a pool of a namespace does not exist, although count allocations name it.
func (p *poolEvents) gone(namespace string, ref v1alpha1.PoolReference, count int) {
	p.recorder.Eventf(&corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: string(ref.Kind), Namespace: namespace, Name: ref.Name},
		corev1.EventTypeWarning, reasonPoolGone,
		"%s %s does not exist, and %d of its addresses are held. They stay held, and pods keep them; no other pod gets an address until the pool is applied again", ref.Kind, ref.Name, count)
}

func (p *poolEvents) warn(obj *pool.Object, reason, message string) {
	p.recorder.Event(reference(obj), corev1.EventTypeWarning, reason, message)
}

// same reports whether two conditions say the same.
func same(a, b metav1.Condition) bool {
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}
