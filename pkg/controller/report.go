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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// flapping is how long a node's news have to be over before they are news again.
const flapping = 10 * time.Minute

// maxEvent is how long the message of an event may be, in bytes.
const maxEvent = 1024

// report is what was last said about a pool in events.
type report struct {
	uid      types.UID
	ready    metav1.Condition
	unserved []string
	optOut   string
	notices  map[string]string    // the event of each, by type
	nodes    map[string]time.Time // when a node's news were last the case, by reason/node
}

// report records what is new since the last time as events. After a restart, the
// conditions as they were before tell what has been said already.
func (c *Controller) report(view *poolView, before []metav1.Condition, out outcome) {
	last, known := c.reported[view.ref]
	if last.uid != view.meta.UID {
		last, known = report{uid: view.meta.UID, nodes: map[string]time.Time{}}, false
	}
	next := report{uid: last.uid, ready: out.ready, unserved: out.unserved, optOut: optOut(view.meta.Annotations), notices: map[string]string{}, nodes: last.nodes}
	c.reported[view.ref] = next
	c.reportOptOut(view, last.optOut)
	c.reportNotices(view, before, out.notices, last.notices, next.notices)
	c.reportNodes(view, before, out.news, last.nodes, known)
	if said := meta.FindStatusCondition(before, v1alpha1.ConditionReady); !known && said != nil && same(*said, out.ready) {
		return
	}
	switch out.ready.Reason {
	case reasonInvalidSpec:
		if !same(last.ready, out.ready) {
			c.recorder.Event(view.object(), corev1.EventTypeWarning, reasonInvalidSpec, out.ready.Message)
		}
	case reasonNoNodes:
		if last.ready.Reason != reasonNoNodes {
			c.recorder.Event(view.object(), corev1.EventTypeWarning, reasonNoNodes, out.ready.Message)
		}
	}
	for _, node := range out.unserved {
		if _, said := slices.BinarySearch(last.unserved, node); !said {
			c.recorder.Event(view.object(), corev1.EventTypeWarning, reasonNoFreeRanges, "failed to allocate IPs on Node: "+node)
		}
	}
}

func (c *Controller) reportOptOut(view *poolView, last string) {
	value := view.meta.Annotations[v1alpha1.AnnotationReclaim]
	if now := optOut(view.meta.Annotations); now == last || now == "" || value == v1alpha1.ReclaimDisabled {
		return
	}
	c.recorder.Eventf(view.object(), corev1.EventTypeWarning, reasonReclaimUnknown,
		"no address is reclaimed: annotation %s is %q, want %q or %q", v1alpha1.AnnotationReclaim, pool.Cut(value, maxEvent/4), v1alpha1.ReclaimEnabled, v1alpha1.ReclaimDisabled)
}

// reportNotices records the notices that are new, and keeps in next what was said.
func (c *Controller) reportNotices(view *poolView, before []metav1.Condition, notices []notice, last, next map[string]string) {
	for _, n := range notices {
		if n.event == "" {
			continue
		}
		next[n.condition.Type] = n.event
		if last[n.condition.Type] == n.event {
			continue
		}
		said := meta.FindStatusCondition(before, n.condition.Type)
		if said != nil && (said.Message == n.event || strconv.FormatInt(said.ObservedGeneration, 10) == n.event) {
			continue
		}
		c.recorder.Event(view.object(), corev1.EventTypeWarning, n.condition.Reason, n.condition.Message)
	}
}

// reportNodes records the news of each node that has not been told, and not again
// while they come and go. In told is when they were last the case.
func (c *Controller) reportNodes(view *poolView, before []metav1.Condition, news []nodeNews, told map[string]time.Time, known bool) {
	now := time.Now()
	for _, n := range news {
		key := n.reason + "/" + n.node
		_, said := told[key]
		if !known { // a condition of the same name may have said so before a restart
			said = meta.FindStatusCondition(before, n.reason) != nil
		}
		if !said {
			c.recorder.Event(view.object(), corev1.EventTypeWarning, n.reason, n.message)
		}
		told[key] = now
	}
	maps.DeleteFunc(told, func(_ string, at time.Time) bool { return now.Sub(at) > max(flapping, 2*c.opts.Resync) })
}

func same(a, b metav1.Condition) bool {
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}

// boundedRecorder cuts what is too long for an event.
type boundedRecorder struct{ record.EventRecorder }

func (r boundedRecorder) Event(object runtime.Object, eventType, reason, message string) {
	r.EventRecorder.Event(object, eventType, reason, pool.Cut(message, maxEvent))
}

func (r boundedRecorder) Eventf(object runtime.Object, eventType, reason, format string, args ...any) {
	r.Event(object, eventType, reason, fmt.Sprintf(format, args...))
}
