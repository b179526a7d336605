// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubefake "k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	ipamfake "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/fake"
)

// claimed is before the clock of a synctest bubble starts.
var claimed = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)

func allocation(change ...func(*v1alpha1.IPAllocation)) *v1alpha1.IPAllocation {
	a := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pool1.192.168.0.11", UID: "allocation", ResourceVersion: "7", CreationTimestamp: metav1.NewTime(claimed)},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}, Address: "192.168.0.11", NodeName: "node",
			PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "pod", UID: "uid"},
			ContainerID: "container", InterfaceName: "net1",
		},
	}
	for _, f := range change {
		f(a)
	}
	return a
}

func pod(uid types.UID, created time.Time, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "pod", UID: uid, CreationTimestamp: metav1.NewTime(created), Annotations: annotations,
		},
	}
}

func node(ready corev1.ConditionStatus, taints ...string) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node"},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
	}
	for _, key := range taints {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key})
	}
	return n
}

// The numbers are those of the type verdict.
func TestDecide(t *testing.T) {
	withoutUID := func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.UID = "" }
	mirror := map[string]string{annotationConfigMirror: "uid", annotationConfigHash: "uid"}
	same := pod("uid", claimed, nil)
	up, down := node(corev1.ConditionTrue), node(corev1.ConditionUnknown)

	for _, tc := range []struct {
		name  string
		alloc *v1alpha1.IPAllocation
		pod   *metav1.PartialObjectMetadata
		node  *corev1.Node
		want  verdict
	}{
		{"1 no attachment", allocation(func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID, a.Spec.InterfaceName = "", "" }), nil, up, keep},
		{"1 no pod named", allocation(func(a *v1alpha1.IPAllocation) { a.Spec.PodRef = v1alpha1.PodReference{} }), nil, nil, keep},
		{"2 pod exists", allocation(), same, up, keep},
		{"2 pod exists, its node does not answer", allocation(), same, down, keep},
		{"2 pod exists, its node is gone", allocation(), same, nil, keep},
		{"3 mirror of the static pod", allocation(), pod("other", claimed, mirror), up, keep},
		{"3 mirror of another static pod", allocation(), pod("other", claimed, map[string]string{annotationConfigMirror: "x", annotationConfigHash: "x"}), up, suspect},
		{"3 a hash without a mirror is nobody's word", allocation(), pod("other", claimed, map[string]string{annotationConfigHash: "uid"}), up, suspect},
		{"4 no UID, pod is older", allocation(withoutUID), pod("other", claimed.Add(-time.Hour), nil), up, keep},
		{"4 no UID, pod of the same second", allocation(withoutUID), pod("other", claimed, nil), up, keep},
		{"4 no UID, mirror without a hash", allocation(withoutUID), pod("other", claimed.Add(time.Hour), map[string]string{annotationConfigMirror: ""}), up, suspect},
		{"5 pod gone, Ready is unknown", allocation(), nil, down, hold},
		{"5 pod gone, taint unreachable", allocation(), nil, node(corev1.ConditionTrue, corev1.TaintNodeUnreachable), hold},
		{"5 another UID, Ready is unknown", allocation(), pod("other", claimed, nil), down, hold},
		{"5 no UID, pod is younger, Ready is unknown", allocation(withoutUID), pod("other", claimed.Add(time.Hour), nil), down, hold},
		{"6 pod gone", allocation(), nil, up, suspect},
		{"6 pod gone, node is not ready but answers", allocation(), nil, node(corev1.ConditionFalse, corev1.TaintNodeNotReady), suspect},
		{"6 pod gone, node that has never reported", allocation(), nil, &corev1.Node{}, suspect},
		{"6 pod gone, node gone", allocation(), nil, nil, suspect},
		{"6 pod gone, node out of service", allocation(), nil, node(corev1.ConditionUnknown, corev1.TaintNodeUnreachable, corev1.TaintNodeOutOfService), suspect},
		{"6 another UID", allocation(), pod("other", claimed, nil), up, suspect},
		{"6 no UID, pod gone", allocation(withoutUID), nil, up, suspect},
		{"6 no UID, pod is younger", allocation(withoutUID), pod("other", claimed.Add(time.Second), nil), up, suspect},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, reason := decide(tc.alloc, tc.pod, tc.node); got != tc.want || reason == "" {
				t.Errorf("got %v (%s), want %v", got, reason, tc.want)
			}
			// What the caches keep decides as the whole objects do.
			thinPod, thinNode := tc.pod, tc.node
			if tc.pod != nil {
				obj, _ := thin(tc.pod)
				thinPod = obj.(*metav1.PartialObjectMetadata)
			}
			if tc.node != nil {
				obj, _ := thin(tc.node)
				thinNode = obj.(*corev1.Node)
			}
			if got, _ := decide(tc.alloc, thinPod, thinNode); got != tc.want {
				t.Errorf("from the caches: got %v, want %v", got, tc.want)
			}
		})
	}
}

// world is a controller whose caches say that the pod of one allocation is gone,
// beside an API server that says what the test wants.
type world struct {
	*Controller
	ipam   *ipamfake.Clientset
	kube   *kubefake.Clientset
	meta   *metadatafake.FakeMetadataClient
	events *record.FakeRecorder
}

func newWorld(t *testing.T, opts Options) *world {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	w := &world{
		ipam: ipamfake.NewSimpleClientset(), kube: kubefake.NewClientset(), meta: metadatafake.NewSimpleMetadataClient(scheme),
		events: record.NewFakeRecorder(100),
	}
	opts.Namespace = "ns"
	w.Controller = New(Clients{IPAM: w.ipam, Kube: w.kube, Metadata: w.meta}, opts)
	if _, err := w.watch(); err != nil {
		t.Fatal(err)
	}
	w.recorder = w.events
	w.pools, w.suspects = newQueue[v1alpha1.PoolReference](), newQueue[string]()
	t.Cleanup(w.pools.ShutDown)
	t.Cleanup(w.suspects.ShutDown)
	return w
}

func (w *world) leak(t *testing.T) {
	t.Helper()
	a := allocation()
	if err := w.allocations.Add(a); err != nil {
		t.Fatal(err)
	}
	if err := w.ipam.Tracker().Add(a); err != nil {
		t.Fatal(err)
	}
}

func (w *world) deletes() (out []clienttesting.DeleteActionImpl) {
	for _, action := range w.ipam.Actions() {
		if d, ok := action.(clienttesting.DeleteActionImpl); ok {
			out = append(out, d)
		}
	}
	return out
}

const leaked = "ns/pool1.192.168.0.11"

func TestReclaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{ReclaimGrace: time.Minute})
		defer w.pools.ShutDown()
		defer w.suspects.ShutDown()
		w.leak(t)
		step := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after) // of the bubble's clock
			if err := w.examine(t.Context(), leaked); err != nil {
				t.Fatal(err)
			}
			if got := w.deletes(); len(got) != want {
				t.Fatalf("%d deletes, want %d", len(got), want)
			}
		}
		step(0, 0)
		step(59*time.Second, 0)
		// It was seen alive meanwhile: the grace begins anew.
		if err := w.pods.Add(pod("uid", claimed, nil)); err != nil {
			t.Fatal(err)
		}
		step(time.Second, 0)
		if err := w.pods.Delete(pod("uid", claimed, nil)); err != nil {
			t.Fatal(err)
		}
		step(time.Second, 0)
		step(59*time.Second, 0)
		step(time.Second, 1)

		p := w.deletes()[0].DeleteOptions.Preconditions
		if p == nil || p.UID == nil || *p.UID != "allocation" || p.ResourceVersion == nil || *p.ResourceVersion != "7" {
			t.Errorf("preconditions %+v", p)
		}
	})
}

// An examination that is due comes by itself.
func TestReclaimComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := newWorld(t, Options{ReclaimGrace: time.Minute})
		defer w.pools.ShutDown()
		defer w.suspects.ShutDown()
		w.leak(t)
		go work(ctx, w.suspects, w.examine)
		w.onAllocation().OnAdd(allocation(), false)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if n := len(w.deletes()); n != 0 {
			t.Fatalf("%d deletes within the grace", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(w.deletes()); n != 1 {
			t.Fatalf("%d deletes after the grace, want 1", n)
		}
	})
}

// Even without a grace nothing is freed at first sight.
func TestReclaimTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		defer w.pools.ShutDown()
		defer w.suspects.ShutDown()
		w.leak(t)
		for want := range 2 {
			if err := w.examine(t.Context(), leaked); err != nil {
				t.Fatal(err)
			}
			if n := len(w.deletes()); n != want {
				t.Fatalf("%d deletes after %d examinations, want %d", n, want+1, want)
			}
			time.Sleep(time.Second)
		}
	})
}

// A young allocation is not freed, however long the controller has known it
// would be: its pod may not have been seen yet.
func TestReclaimNotYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{ReclaimGrace: time.Minute})
		defer w.pools.ShutDown()
		defer w.suspects.ShutDown()
		a := allocation(func(a *v1alpha1.IPAllocation) {
			a.CreationTimestamp = metav1.NewTime(time.Now().Add(time.Hour)) // the server's clock is ahead
		})
		if err := w.allocations.Add(a); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.examine(t.Context(), leaked); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		if n := len(w.deletes()); n != 0 {
			t.Errorf("%d deletes", n)
		}
	})
}

// Whatever the caches say, a live look decides, and an error is no proof.
func TestReclaimConfirms(t *testing.T) {
	notFound := apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "pod")
	proxy := apierrors.NewGenericServerResponse(404, "get", schema.GroupResource{Resource: "pods"}, "pod", "<html>", 0, true)
	alive := pod("uid", claimed, nil)
	for _, tc := range []struct {
		name    string
		pod     *metav1.PartialObjectMetadata
		podErr  error
		node    *corev1.Node
		nodeErr error
		deletes int
		fails   bool
	}{
		{name: "both gone", podErr: notFound, nodeErr: notFound, deletes: 1},
		{name: "pod gone, node answers", podErr: notFound, node: node(corev1.ConditionTrue), deletes: 1},
		{name: "pod has another UID", pod: pod("other", claimed, nil), node: node(corev1.ConditionTrue), deletes: 1},
		{name: "pod is there", pod: alive, node: node(corev1.ConditionTrue)},
		{name: "node does not answer", podErr: notFound, node: node(corev1.ConditionUnknown)},
		{name: "timeout", podErr: context.DeadlineExceeded, fails: true},
		{name: "forbidden", podErr: apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "pod", errors.New("no")), fails: true},
		{name: "a proxy's not found", podErr: proxy, nodeErr: notFound, fails: true},
		{name: "node: server error", podErr: notFound, nodeErr: apierrors.NewInternalError(errors.New("etcd")), fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			w.leak(t)
			w.meta.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, tc.pod, tc.podErr })
			w.kube.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) { return true, tc.node, tc.nodeErr })
			w.seen.first("allocation", time.Now().Add(-time.Hour))
			err := w.examine(t.Context(), leaked)
			if (err != nil) != tc.fails {
				t.Errorf("error %v, want one: %v", err, tc.fails)
			}
			if n := len(w.deletes()); n != tc.deletes {
				t.Errorf("%d deletes, want %d", n, tc.deletes)
			}
		})
	}
}

func TestReclaimIsSaid(t *testing.T) {
	w := newWorld(t, Options{})
	w.leak(t)
	if err := w.kinds[v1alpha1.PoolKindIPPool].informer.GetIndexer().Add(ippool(nil)); err != nil {
		t.Fatal(err)
	}
	w.seen.first("allocation", time.Now().Add(-time.Hour))
	if err := w.examine(t.Context(), leaked); err != nil {
		t.Fatal(err)
	}
	got := said(w)
	if len(got) != 1 || !strings.Contains(got[0], "Reclaimed reclaimed 192.168.0.11 of pod default/pod on node node: pod is gone") {
		t.Errorf("events %q", got)
	}
}

func said(w *world) (out []string) {
	for {
		select {
		case e := <-w.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}
