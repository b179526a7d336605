// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
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
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	ipamfake "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/fake"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
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
	laterUID  = "7d0c9a3e-1111-4222-8333-444455556667"
	staticUID = "0123456789abcdef0123456789abcdef"
)

// Anything but the two values that are known is the safe one of them.
func TestOptOut(t *testing.T) {
	for value, want := range map[string]string{
		"enabled": "", "disabled": "nv-ipam.nvidia.com/reclaim=disabled", "": "nv-ipam.nvidia.com/reclaim=", "Enabled": "nv-ipam.nvidia.com/reclaim=Enabled",
	} {
		if got := reclaim.OptOutOf(map[string]string{v1alpha1.AnnotationReclaim: value}); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
	if got := reclaim.OptOutOf(map[string]string{"other": "disabled"}); got != "" {
		t.Errorf("without the annotation: %q", got)
	}
}

// What is said of a node, and that the cache's thin objects say the same.
func TestNodeEvidence(t *testing.T) {
	const out, lost = corev1.TaintNodeOutOfService, corev1.TaintNodeUnreachable
	for name, tc := range map[string]struct {
		node *corev1.Node
		want reclaim.NodeState
	}{
		"ready":                           {node(corev1.ConditionTrue), reclaim.Answers},
		"not ready":                       {node(corev1.ConditionFalse, corev1.TaintNodeNotReady), reclaim.NotReady},
		"does not report":                 {node(corev1.ConditionUnknown), reclaim.Unreachable},
		"a status of nobody's":            {node("Maybe"), reclaim.Unreachable},
		"has never reported":              {&corev1.Node{}, reclaim.Answers},
		"taint unreachable":               {node(corev1.ConditionTrue, lost), reclaim.Unreachable},
		"taint out-of-service":            {node(corev1.ConditionUnknown, lost, out), reclaim.OutOfService},
		"taint out-of-service, and ready": {node(corev1.ConditionTrue, out), reclaim.OutOfService},
	} {
		tc.node.CreationTimestamp = metav1.NewTime(claimed)
		got := nodeEvidence(tc.node)
		if got.State != tc.want || !got.Created.Equal(&tc.node.CreationTimestamp) {
			t.Errorf("%s: %+v, want state %v", name, got, tc.want)
		}
		obj, _ := thin(tc.node)
		if cached := nodeEvidence(obj.(*corev1.Node)); *cached != *got {
			t.Errorf("%s: the cache says %+v, the node %+v", name, cached, got)
		}
	}
}

func TestPodEvidence(t *testing.T) {
	now := metav1.NewTime(claimed)
	deleting := pod(podUID, claimed, nil)
	deleting.DeletionTimestamp = &now
	long := strings.Repeat("u", 64)
	for name, tc := range map[string]struct {
		pod  *metav1.PartialObjectMetadata
		want reclaim.Pod
	}{
		"pod":                            {pod(podUID, claimed, nil), reclaim.Pod{UID: podUID, Created: now}},
		"deleted":                        {deleting, reclaim.Pod{UID: podUID, Created: now, Deleting: true}},
		"mirror":                         {pod("m", claimed, map[string]string{reclaim.AnnotationConfigMirror: staticUID, reclaim.AnnotationConfigHash: staticUID}), reclaim.Pod{UID: "m", Created: now, Mirrors: staticUID}},
		"hash without a mirror":          {pod("m", claimed, map[string]string{reclaim.AnnotationConfigHash: staticUID}), reclaim.Pod{UID: "m", Created: now}},
		"mirror without a hash":          {pod("m", claimed, map[string]string{reclaim.AnnotationConfigMirror: ""}), reclaim.Pod{UID: "m", Created: now}},
		"mirror of the longest UID":      {pod("m", claimed, map[string]string{reclaim.AnnotationConfigMirror: "", reclaim.AnnotationConfigHash: long}), reclaim.Pod{UID: "m", Created: now, Mirrors: types.UID(long)}},
		"mirror of what cannot be a UID": {pod("m", claimed, map[string]string{reclaim.AnnotationConfigMirror: "", reclaim.AnnotationConfigHash: long + "uu"}), reclaim.Pod{UID: "m", Created: now, Mirrors: types.UID(long + "u")}},
	} {
		obj, _ := thin(tc.pod)
		if got, cached := reclaim.PodOf(tc.pod), reclaim.PodOf(obj.(metav1.Object)); *got != tc.want || *cached != tc.want {
			t.Errorf("%s: %+v, from the cache %+v, want %+v", name, got, cached, tc.want)
		}
	}
}

// world is a controller whose caches say that the pod of one allocation is gone,
// beside an API server that says what the test wants.
type world struct {
	*Controller
	ipam   *ipamfake.Clientset
	kube   *kubefake.Clientset
	meta   *metadatafake.FakeMetadataClient
	rest   *wire
	events *record.FakeRecorder
}

// wire carries what the fake clientset has no REST client for: requests about
// pools.
type wire struct{ http.RoundTripper }

// clientset is the fake one with a REST client.
type clientset struct {
	*ipamfake.Clientset
	rest rest.Interface
}

func (c clientset) NvIpamV1alpha1() clientv1alpha1.NvIpamV1alpha1Interface {
	return apiGroup{c.Clientset.NvIpamV1alpha1(), c.rest}
}

type apiGroup struct {
	clientv1alpha1.NvIpamV1alpha1Interface

	rest rest.Interface
}

func (g apiGroup) RESTClient() rest.Interface { return g.rest }

func newWorld(t *testing.T, opts Options) *world {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	w := &world{
		ipam: ipamfake.NewSimpleClientset(), kube: kubefake.NewClientset(), meta: metadatafake.NewSimpleMetadataClient(scheme),
		rest: &wire{}, events: record.NewFakeRecorder(100),
	}
	opts.Namespace = "ns"
	pools, err := clientv1alpha1.NewForConfigAndClient(&rest.Config{Host: "http://api", QPS: -1}, &http.Client{Transport: w.rest})
	if err != nil {
		t.Fatal(err)
	}
	w.Controller = New(Clients{IPAM: clientset{w.ipam, pools.RESTClient()}, Kube: w.kube, Metadata: w.meta}, opts)
	if _, err := w.assemble(w.events); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.queues.shutDown)
	return w
}

func (w *world) leak(t *testing.T) {
	t.Helper()
	a := allocation()
	if err := w.caches.allocations.Add(a); err != nil {
		t.Fatal(err)
	}
	if err := w.ipam.Tracker().Add(a); err != nil {
		t.Fatal(err)
	}
}

// observed makes the allocation one that has been a leak candidate since, on a node
// that is gone.
func (w *world) observed(since time.Time) {
	w.observations.note(leaked, observation{uid: "allocation", holder: "container", action: reclaim.Candidate, reason: "pod_gone", prompt: true, since: since})
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
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		w.leak(t)
		step := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after) // of the bubble's clock
			if err := w.leaks.examine(t.Context(), leaked); err != nil {
				t.Fatal(err)
			}
			if got := w.deletes(); len(got) != want {
				t.Fatalf("%d deletes, want %d", len(got), want)
			}
		}
		step(0, 0)
		step(59*time.Second, 0)
		// It was seen alive meanwhile: the grace begins again.
		if err := w.caches.pods.Add(pod(podUID, claimed, nil)); err != nil {
			t.Fatal(err)
		}
		step(time.Second, 0)
		if err := w.caches.pods.Delete(pod(podUID, claimed, nil)); err != nil {
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

// A node that is ready gets longer, and one that goes away, or comes back, begins a
// grace of its own.
func TestReclaimReadyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{ReclaimGrace: time.Minute})
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		w.leak(t)
		step := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after) // of the bubble's clock
			if err := w.leaks.examine(t.Context(), leaked); err != nil {
				t.Fatal(err)
			}
			if got := w.deletes(); len(got) != want {
				t.Fatalf("%d deletes, want %d", len(got), want)
			}
		}
		known := func(n *corev1.Node) {
			t.Helper()
			if err := w.caches.nodes.Add(n); err != nil {
				t.Fatal(err)
			}
		}
		known(node(corev1.ConditionTrue))
		step(0, 0)
		step(9*time.Minute, 0)
		if err := w.caches.nodes.Delete(node(corev1.ConditionTrue)); err != nil { // the Node object is gone
			t.Fatal(err)
		}
		step(0, 0)
		step(59*time.Second, 0)
		known(node(corev1.ConditionTrue)) // and is back
		step(0, 0)
		step(9*time.Minute, 0)
		known(node(corev1.ConditionFalse)) // its runtime is away
		step(time.Hour, 0)
		known(node(corev1.ConditionTrue))
		step(time.Minute, 0)
		step(9*time.Minute, 0)
		if err := w.kube.Tracker().Add(node(corev1.ConditionTrue)); err != nil {
			t.Fatal(err)
		}
		step(time.Minute, 1)
	})
}

// A node is asked for its pods once per resync at most, however many of its
// allocations wait for that, and none that has placed its pods is asked again.
func TestLocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := newWorld(t, Options{ReclaimGrace: time.Minute, Resync: 5 * time.Minute})
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		var mu sync.Mutex // of the two below: a timer's worker reads them
		var lists []string
		there := &metav1.List{}
		w.meta.PrependReactor("list", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
			restrictions := action.(clienttesting.ListAction).GetListRestrictions()
			mu.Lock()
			defer mu.Unlock()
			lists = append(lists, restrictions.Fields.String())
			return true, there.DeepCopy(), nil
		})
		asks := func(want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(lists, want) {
				t.Fatalf("asked %q, want %q", lists, want)
			}
			lists = nil
		}
		examine := func() {
			t.Helper()
			for _, obj := range w.caches.allocations.List() {
				w.triggers.onAllocation().OnAdd(obj, false)
			}
		}
		go work(ctx, w.queues.allocations, w.leaks.examine, w.metrics.of(queueAllocations))
		go work(ctx, w.queues.nodes, w.locator.locate, w.metrics.of(queueNodes))
		first, second := pod(podUID, claimed, nil), pod(laterUID, claimed, nil)
		second.Name = "second"
		add := func(p *metav1.PartialObjectMetadata) {
			t.Helper()
			a := allocation(func(a *v1alpha1.IPAllocation) {
				a.Name, a.UID, a.Spec.PodRef.Name, a.Spec.PodRef.UID = "pool1."+p.Name, types.UID(p.Name), p.Name, p.UID
			})
			if err := errors.Join(w.caches.nodes.Add(node(corev1.ConditionTrue)), w.caches.pods.Add(p), w.caches.allocations.Add(a)); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			there.Items = append(there.Items, runtime.RawExtension{Object: p})
		}
		add(first)
		examine()
		asks("spec.nodeName=node")
		for range 3 {
			examine()
			time.Sleep(time.Hour)
		}
		asks() // it is known
		add(second)
		examine()
		examine()
		asks("spec.nodeName=node")
		third := pod("7d0c9a3e-1111-4222-8333-444455556668", claimed, nil)
		third.Name = "third"
		add(third)
		examine()
		time.Sleep(4 * time.Minute)
		asks() // not again so soon
		time.Sleep(2 * time.Minute)
		asks("spec.nodeName=node")

		// Where nothing runs any more, it matters which pods have ended.
		if err := w.caches.nodes.Add(node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		examine()
		asks("spec.nodeName=node,status.phase!=Failed,status.phase!=Succeeded")
	})
}

// An examination that is due comes by itself.
func TestReclaimComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := newWorld(t, Options{ReclaimGrace: time.Minute})
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		w.leak(t)
		go work(ctx, w.queues.allocations, w.leaks.examine, w.metrics.of(queueAllocations))
		w.triggers.onAllocation().OnAdd(allocation(), false)
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
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		w.leak(t)
		for want := range 2 {
			if err := w.leaks.examine(t.Context(), leaked); err != nil {
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
		defer w.queues.pools.ShutDown()
		defer w.queues.allocations.ShutDown()
		defer w.queues.nodes.ShutDown()
		a := allocation(func(a *v1alpha1.IPAllocation) {
			a.CreationTimestamp = metav1.NewTime(time.Now().Add(time.Hour)) // the server's clock is ahead
		})
		if err := w.caches.allocations.Add(a); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.leaks.examine(t.Context(), leaked); err != nil {
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
	alive := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pod", UID: podUID}, Spec: corev1.PodSpec{NodeName: "node"}}
	another, elsewhere := alive.DeepCopy(), alive.DeepCopy()
	another.UID, elsewhere.Spec.NodeName = "other", "other"
	for _, tc := range []struct {
		name    string
		pod     *corev1.Pod
		podErr  error
		node    *corev1.Node
		nodeErr error
		deletes int
		fails   bool
	}{
		{name: "both gone", podErr: notFound, nodeErr: notFound, deletes: 1},
		{name: "pod gone, node out of service", podErr: notFound, node: node(corev1.ConditionUnknown, corev1.TaintNodeOutOfService), deletes: 1},
		{name: "pod has another UID", pod: another, nodeErr: notFound, deletes: 1},
		{name: "pod is on another node", pod: elsewhere, nodeErr: notFound, deletes: 1},
		{name: "pod is there", pod: alive, node: node(corev1.ConditionTrue)},
		{name: "node does not answer", podErr: notFound, node: node(corev1.ConditionUnknown)},
		{name: "node is back: it has its time", podErr: notFound, node: node(corev1.ConditionTrue)},
		{name: "timeout", podErr: context.DeadlineExceeded, fails: true},
		{name: "forbidden", podErr: apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "pod", errors.New("no")), fails: true},
		{name: "a proxy's not found", podErr: proxy, nodeErr: notFound, fails: true},
		{name: "node: server error", podErr: notFound, nodeErr: apierrors.NewInternalError(errors.New("etcd")), fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, Options{})
			w.leak(t)
			w.kube.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, tc.pod, tc.podErr })
			w.kube.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) { return true, tc.node, tc.nodeErr })
			w.observed(time.Now().Add(-time.Hour))
			err := w.leaks.examine(t.Context(), leaked)
			if (err != nil) != tc.fails {
				t.Errorf("error %v, want one: %v", err, tc.fails)
			}
			if n := len(w.deletes()); n != tc.deletes {
				t.Errorf("%d deletes, want %d", n, tc.deletes)
			}
		})
	}
}

// A takeover leaves the UID as it is: the grace is that of the container.
func TestGraceIsOfOneContainer(t *testing.T) {
	w := newWorld(t, Options{ReclaimGrace: time.Minute})
	w.leak(t)
	since := time.Now().Add(-time.Hour)
	w.observations.note(leaked, observation{uid: "allocation", holder: "earlier", action: reclaim.Candidate, reason: "pod_gone", prompt: true, since: since})
	if err := w.leaks.examine(t.Context(), leaked); err != nil || len(w.deletes()) > 0 {
		t.Errorf("freed by the time of an earlier container: %v, %v", w.deletes(), err)
	}
}

func TestReclaimIsSaid(t *testing.T) {
	w := newWorld(t, Options{})
	w.leak(t)
	if err := w.caches.pools[v1alpha1.PoolKindIPPool].Add(ippool(nil)); err != nil {
		t.Fatal(err)
	}
	w.observed(time.Now().Add(-time.Hour))
	if err := w.leaks.examine(t.Context(), leaked); err != nil {
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
