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
			PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "pod", UID: podUID},
			ContainerID: "container", InterfaceName: "net1",
		},
	}
	for _, f := range change {
		f(a)
	}
	ask(a, a.CreationTimestamp.Time)
	return a
}

// ask makes an allocation one whose ADD began at that time.
func ask(a *v1alpha1.IPAllocation, at time.Time) *v1alpha1.IPAllocation {
	a.Spec.AddStartedAt = &metav1.MicroTime{Time: at}
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

// podUID is one that the API server could have given, staticUID one of the
// kubelet's.
const (
	podUID    = "7d0c9a3e-1111-4222-8333-444455556666"
	staticUID = "0123456789abcdef0123456789abcdef"
)

// The numbers are those of the type verdict.
func TestDecide(t *testing.T) {
	withUID := func(uid types.UID) func(*v1alpha1.IPAllocation) {
		return func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.UID = uid }
	}
	withoutUID, static := withUID(""), withUID(staticUID)
	mirror := map[string]string{annotationConfigMirror: staticUID, annotationConfigHash: staticUID}
	otherMirror := map[string]string{annotationConfigMirror: "x", annotationConfigHash: "x"}
	same := pod(podUID, claimed, nil)
	up, down := node(corev1.ConditionTrue), node(corev1.ConditionUnknown)
	before, after := claimed.Add(-time.Hour), claimed.Add(time.Hour)
	// another is a claim for the same place by another container.
	another := func(version string, created time.Time) *v1alpha1.IPAllocation {
		return allocation(func(a *v1alpha1.IPAllocation) {
			a.ResourceVersion, a.CreationTimestamp, a.Spec.ContainerID = version, metav1.NewTime(created), "another"
		})
	}
	const off = "nv-ipam.nvidia.com/reclaim=disabled"

	for _, tc := range []struct {
		name  string
		alloc *v1alpha1.IPAllocation
		e     evidence
		want  verdict
		word  string
	}{
		{"1 no attachment", allocation(func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID, a.Spec.InterfaceName = "", "" }), evidence{node: up}, keep, wordInUse},
		{"1 no pod named", allocation(func(a *v1alpha1.IPAllocation) { a.Spec.PodRef = v1alpha1.PodReference{} }), evidence{}, keep, wordInUse},
		{"2 pod exists", allocation(), evidence{pod: same, node: up}, keep, wordInUse},
		{"2 pod exists, its node does not answer", allocation(), evidence{pod: same, node: down}, keep, wordInUse},
		{"2 pod exists, its node is gone", allocation(), evidence{pod: same}, keep, wordInUse},
		{"3 mirror of the static pod", allocation(static), evidence{pod: pod("other", claimed, mirror), node: up}, keep, wordInUse},
		{"3 mirror of another static pod, older", allocation(static), evidence{pod: pod("other", before, otherMirror), node: up}, hold, wordPodUnknown},
		{"3 mirror of another static pod, of the same second", allocation(static), evidence{pod: pod("other", claimed, otherMirror), node: up}, hold, wordPodUnknown},
		{"3 a hash without a mirror is nobody's word", allocation(static), evidence{pod: pod("other", after, map[string]string{annotationConfigHash: staticUID}), node: up}, hold, wordPodUnknown},
		{"4 no UID, pod is older", allocation(withoutUID), evidence{pod: pod("other", before, nil), node: up}, keep, wordInUse},
		{"4 no UID, pod of the same second", allocation(withoutUID), evidence{pod: pod("other", claimed, nil), node: up}, keep, wordInUse},
		{"5 another container came later", allocation(), evidence{pod: same, node: up, rival: another("8", after)}, suspect, wordSandboxReplaced},
		{"5 another container came later, its node does not answer", allocation(), evidence{pod: same, node: down, rival: another("8", after)}, suspect, wordSandboxReplaced},
		{"5 another container of the static pod came later", allocation(static), evidence{pod: pod("other", claimed, mirror), node: up, rival: another("8", after)}, suspect, wordSandboxReplaced},
		{"5 another container came earlier", allocation(), evidence{pod: same, node: up, rival: another("6", before)}, keep, wordInUse},
		{"5 another container at the same time", allocation(), evidence{pod: same, node: up, rival: another("8", claimed)}, hold, wordSandboxUnclear},
		{"5 another container in the same second", allocation(), evidence{pod: same, node: up, rival: ask(another("8", claimed), claimed.Add(1))}, suspect, wordSandboxReplaced},
		{"5 the create of an earlier container came late", allocation(), evidence{pod: same, node: up, rival: ask(another("8", after), before)}, hold, wordSandboxUnclear},
		{"5 when the other asked is not known", allocation(), evidence{pod: same, node: up, rival: func() *v1alpha1.IPAllocation { a := another("8", after); a.Spec.AddStartedAt = nil; return a }()}, hold, wordSandboxUnclear},
		{"5 later, but by the resource version earlier", allocation(), evidence{pod: same, node: up, rival: another("6", after)}, hold, wordSandboxUnclear},
		{"5 earlier, but by the resource version later", allocation(), evidence{pod: same, node: up, rival: another("8", before)}, hold, wordSandboxUnclear},
		{"5 later, by a longer resource version", allocation(), evidence{pod: same, node: up, rival: another("10", after)}, suspect, wordSandboxReplaced},
		{"5 a resource version that is no number", allocation(), evidence{pod: same, node: up, rival: another("x", after)}, hold, wordSandboxUnclear},
		{"6 pod gone, Ready is unknown", allocation(), evidence{node: down}, hold, wordNodeUnreachable},
		{"6 pod gone, taint unreachable", allocation(), evidence{node: node(corev1.ConditionTrue, corev1.TaintNodeUnreachable)}, hold, wordNodeUnreachable},
		{"6 another UID, Ready is unknown", allocation(), evidence{pod: pod("other", claimed, nil), node: down}, hold, wordNodeUnreachable},
		{"6 no UID, pod is younger, Ready is unknown", allocation(withoutUID), evidence{pod: pod("other", after, nil), node: down}, hold, wordNodeUnreachable},
		{"7 no UID, pod gone", allocation(withoutUID), evidence{node: up}, hold, wordPodUnknown},
		{"7 no UID, pod is younger", allocation(withoutUID), evidence{pod: pod("other", after, nil), node: up}, hold, wordPodUnknown},
		{"7 no UID, mirror without a hash", allocation(withoutUID), evidence{pod: pod("other", after, map[string]string{annotationConfigMirror: ""}), node: up}, hold, wordPodUnknown},
		{"7 static pod without a mirror", allocation(static), evidence{node: up}, hold, wordPodUnknown},
		{"7 a UID of nobody's", allocation(withUID("uid")), evidence{node: up}, hold, wordPodUnknown},
		{"7 a UID in other brackets", allocation(withUID("{" + podUID + "}")), evidence{node: up}, hold, wordPodUnknown},
		{"7 36 characters, no UID", allocation(withUID("7d0c9a3e-1111-4222-8333-44445555666x")), evidence{node: up}, hold, wordPodUnknown},
		{"7 mirror of a later static pod", allocation(static), evidence{pod: pod("other", after, otherMirror), node: up}, suspect, wordPodReplaced},
		{"8 pod gone", allocation(), evidence{node: up}, suspect, wordPodGone},
		{"8 pod gone, node is not ready but answers", allocation(), evidence{node: node(corev1.ConditionFalse, corev1.TaintNodeNotReady)}, suspect, wordPodGone},
		{"8 pod gone, node that has never reported", allocation(), evidence{node: &corev1.Node{}}, suspect, wordPodGone},
		{"8 pod gone, node gone", allocation(), evidence{}, suspect, wordPodGone},
		{"8 pod gone, node out of service", allocation(), evidence{node: node(corev1.ConditionUnknown, corev1.TaintNodeUnreachable, corev1.TaintNodeOutOfService)}, suspect, wordPodGone},
		{"8 another UID", allocation(), evidence{pod: pod("other", claimed, nil), node: up}, suspect, wordPodReplaced},
		{"8 pod gone, another container came later", allocation(), evidence{node: up, rival: another("8", after)}, suspect, wordPodGone},
		{"8 no UID, node gone", allocation(withoutUID), evidence{}, suspect, wordPodGone},
		{"8 static pod, node gone", allocation(static), evidence{}, suspect, wordPodGone},
		{"8 static pod, node out of service", allocation(static), evidence{node: node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService)}, suspect, wordPodGone},
		{"9 disabled, pod gone", allocation(), evidence{node: up, optOut: off}, hold, wordReclaimDisabled},
		{"9 disabled, node gone", allocation(), evidence{optOut: off}, hold, wordReclaimDisabled},
		{"9 disabled, another container came later", allocation(), evidence{pod: same, node: up, rival: another("8", after), optOut: off}, hold, wordReclaimDisabled},
		{"9 disabled, pod exists", allocation(), evidence{pod: same, node: up, optOut: off}, keep, wordInUse},
		{"9 disabled, node does not answer", allocation(), evidence{node: down, optOut: off}, hold, wordNodeUnreachable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, why := decide(tc.alloc, tc.e); got != tc.want || why.word != tc.word || why.text == "" {
				t.Errorf("got %v, %+v, want %v, %s", got, why, tc.want, tc.word)
			}
			// What the caches keep decides as the whole objects do.
			if tc.e.pod != nil {
				obj, _ := thin(tc.e.pod)
				tc.e.pod = obj.(*metav1.PartialObjectMetadata)
			}
			if tc.e.node != nil {
				obj, _ := thin(tc.e.node)
				tc.e.node = obj.(*corev1.Node)
			}
			if got, _ := decide(tc.alloc, tc.e); got != tc.want {
				t.Errorf("from the caches: got %v, want %v", got, tc.want)
			}
		})
	}
}

// Anything but the two values that are known is the safe one of them.
func TestOptOut(t *testing.T) {
	for value, want := range map[string]string{
		"enabled": "", "disabled": "nv-ipam.nvidia.com/reclaim=disabled", "": "nv-ipam.nvidia.com/reclaim=", "Enabled": "nv-ipam.nvidia.com/reclaim=Enabled",
	} {
		if got := optOut(map[string]string{v1alpha1.AnnotationReclaim: value}); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
	if got := optOut(map[string]string{"other": "disabled"}); got != "" {
		t.Errorf("without the annotation: %q", got)
	}
}

// Who is a rival, and which of several.
func TestRival(t *testing.T) {
	w := newWorld(t, Options{})
	add := func(name, version string, change func(*v1alpha1.IPAllocation)) *v1alpha1.IPAllocation {
		a := allocation(change, func(a *v1alpha1.IPAllocation) { a.Name, a.ResourceVersion = name, version })
		if err := w.allocations.Add(a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	other := func(change func(*v1alpha1.IPAllocation)) func(*v1alpha1.IPAllocation) {
		return func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID = "other"; change(a) }
	}
	first := add("first", "7", func(*v1alpha1.IPAllocation) {})
	for name, change := range map[string]func(*v1alpha1.IPAllocation){
		"same container":  func(*v1alpha1.IPAllocation) {},
		"reservation":     func(a *v1alpha1.IPAllocation) { a.Spec.ContainerID = "" },
		"other interface": other(func(a *v1alpha1.IPAllocation) { a.Spec.InterfaceName = "net2" }),
		"other pod":       other(func(a *v1alpha1.IPAllocation) { a.Spec.PodRef.UID = "x" }),
		"other node":      other(func(a *v1alpha1.IPAllocation) { a.Spec.NodeName = "x" }),
		"other pool":      other(func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Name = "x" }),
		"other kind":      other(func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool }),
	} {
		add(name, "8", change)
	}
	if got := w.rival(first); got != nil {
		t.Errorf("%s is one", got.Name)
	}
	for i, name := range []string{"middle", "last"} {
		add(name, []string{"9", "10"}[i], other(func(a *v1alpha1.IPAllocation) {
			a.CreationTimestamp = metav1.NewTime(claimed.Add(time.Duration(i+1) * time.Minute))
		}))
	}
	if got := w.rival(first); got == nil || got.Name != "last" {
		t.Errorf("got %+v, want the last", got)
	}
	for _, obj := range w.allocations.List() {
		obj.(*v1alpha1.IPAllocation).Spec.PodRef.UID = ""
	}
	if got := w.rival(first); got != nil {
		t.Errorf("without a UID %s is one", got.Name)
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
	w.pools, w.suspects = newQueue[v1alpha1.PoolReference](queuePools, w.metrics), newQueue[string](queueSuspects, w.metrics)
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

// suspected makes the allocation one that was a suspect since.
func (w *world) suspected(since time.Time) {
	w.seen.note(leaked, sighting{uid: "allocation", verdict: suspect, word: wordPodGone, since: since})
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
		if err := w.pods.Add(pod(podUID, claimed, nil)); err != nil {
			t.Fatal(err)
		}
		step(time.Second, 0)
		if err := w.pods.Delete(pod(podUID, claimed, nil)); err != nil {
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
		go work(ctx, w.suspects, w.examine, w.metrics.errors.WithLabelValues(queueSuspects))
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
	alive := pod(podUID, claimed, nil)
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
			w.suspected(time.Now().Add(-time.Hour))
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
	w.suspected(time.Now().Add(-time.Hour))
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
