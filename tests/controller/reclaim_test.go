// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// A leak is freed after the grace; what is alive, reserved or on a node that
// does not answer is not.
func TestReclaim(t *testing.T) {
	c := seedCluster(t)
	for _, n := range []string{"kind-worker", "kind-worker2", "kind-control-plane"} {
		c.patchNode(t, n, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	}
	c.run(t, controller.Options{})

	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	leaked := c.startPod(t, "leaked", nil)
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", leaked)
	replaced := c.startPod(t, "replaced", nil)
	c.hold(t, "pool1", "192.168.0.103", "kind-worker", replaced)
	lost := c.startPodOn(t, "kind-worker2", "lost", nil)
	c.hold(t, "pool1", "192.168.0.201", "kind-worker2", lost)
	c.startPod(t, "without-uid", nil)
	c.hold(t, "pool1", "192.168.0.104", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "without-uid"})
	// Its pool is gone: that changes nothing.
	c.hold(t, "no-such-pool", "10.0.0.1", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "never", UID: gone})
	reservation := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: "pool1.192.168.0.150"},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}, Address: "192.168.0.150",
			PodRef: v1alpha1.PodReference{Namespace: c.NS, Name: "later"},
		},
	}
	if _, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), reservation, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	c.patchNode(t, "kind-worker2", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
	deleted := time.Now()
	for _, p := range []string{"leaked", "replaced", "lost"} {
		c.deletePod(t, p)
	}
	c.startPod(t, "replaced", nil) // of that name, with another UID
	c.wantHeld(t, "192.168.0.101", "192.168.0.104", "192.168.0.150", "192.168.0.201")
	if took := time.Since(deleted); took < grace-time.Second { // creation times are whole seconds
		t.Errorf("freed after %v, which is less than the grace", took)
	}
	c.WantEvent(t, "Normal IPPool/pool1 Reclaimed: reclaimed 192.168.0.102 of pod "+c.NS+"/leaked on node kind-worker: pod is gone")
	c.WantEvent(t, "reclaimed 192.168.0.103 of pod "+c.NS+"/replaced on node kind-worker: pod of the name has another UID")

	// The operator says that the node is dead.
	c.patchNode(t, "kind-worker2", `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"nodeshutdown","effect":"NoExecute"}]}}`)
	c.wantHeld(t, "192.168.0.101", "192.168.0.104", "192.168.0.150")
	// And what was alive all along has been so for several graces.
	if got := fmt.Sprint(c.Events(t)); strings.Contains(got, "192.168.0.101") || strings.Contains(got, "192.168.0.104") {
		t.Errorf("events %s", got)
	}
}

// The kubelet's mirror of a static pod stands for it: CNI was told another UID
// than the API has.
func TestReclaimStaticPod(t *testing.T) {
	c := seedCluster(t)
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	const uid = static
	kubelet, err := env.UserConfig("system:node:kind-worker", testenv.NodesGroup)
	if err != nil {
		t.Fatal(err)
	}
	clients, _, done := connect(t, kubelet, nil)
	defer done()
	l := c.logged()
	c.holdIn(t, "older", "pool1", "192.168.0.102", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "static-kind-worker", UID: another})
	c.nextSecond(t)
	node, err := c.Kube.CoreV1().Nodes().Get(t.Context(), "kind-worker", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = clients.Kube.CoreV1().Pods(c.NS).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:            "static-kind-worker",
			Annotations:     map[string]string{"kubernetes.io/config.mirror": uid, "kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "file"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "kind-worker", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{})
	// The mirror of a later one frees nothing: whoever creates pods can make it up.
	l.want(t, "Allocation is held", "192.168.0.102", "pod_unknown", "until=")
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "static-kind-worker", UID: uid})
	c.wantHeld(t, "192.168.0.101") // the later one has a sandbox
	c.WantEvent(t, "reclaimed 192.168.0.102 of pod "+c.NS+"/static-kind-worker on node kind-worker: another static pod of the name has a later sandbox")
}

// A pod that was deleted by force may run on for as long as its author wants, and
// its node says DEL when it has ended. Only where the node is gone, or said to be,
// nobody will.
func TestReclaimForceDeletedPod(t *testing.T) {
	c := seedCluster(t)
	c.Node(t, "dead", nil)
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	c.patchNode(t, "dead", `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoExecute"}]}}`)
	for name, at := range map[string]struct{ node, address string }{
		"runs": {"kind-worker", "192.168.0.101"}, "gone": {"never-there", "192.168.0.151"}, "off": {"dead", "192.168.0.152"},
	} {
		c.hold(t, "pool1", at.address, at.node, c.startPodOn(t, at.node, name, nil))
		c.deletePod(t, name)
	}
	c.run(t, controller.Options{ReclaimGrace: time.Millisecond, ReclaimGraceReadyNode: time.Hour})
	c.wantHeld(t, "192.168.0.101")
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t)
}

// A mirror that somebody has made up keeps no address beyond what the kubelet's own
// word keeps, and frees none.
func TestReclaimMadeUpMirror(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	mirror := func(hash string) map[string]string {
		return map[string]string{"kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash}
	}
	for i, name := range []string{"other-hash", "other-node"} {
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.10%d", i), "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: name, UID: static})
	}
	c.nextSecond(t)
	c.startPod(t, "other-hash", mirror(another))
	c.startPodOn(t, "kind-worker2", "other-node", mirror(static))
	c.run(t, controller.Options{Resync: time.Second})
	for i := range 2 {
		l.want(t, "Allocation is held", fmt.Sprintf("192.168.0.10%d", i), "pod_unknown", "until=")
	}
	c.wantHeld(t, "192.168.0.100", "192.168.0.101")
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t)
}

// What no pod can be named is no pod, and a pod keeps addresses on its own node.
func TestReclaimNoPod(t *testing.T) {
	c := seedCluster(t)
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	for i, ref := range []v1alpha1.PodReference{
		{Namespace: c.NS, Name: "%zz", UID: gone}, {Namespace: c.NS, Name: "a/b"}, {Namespace: c.NS, Name: "..", UID: static},
		{Namespace: "a b", Name: "pod", UID: gone}, {Namespace: "", Name: "pod", UID: gone}, {},
		{Namespace: c.NS, Name: "uid", UID: "x"}, {Namespace: c.NS, Name: "no-uid"},
		c.startPodOn(t, "kind-worker2", "other-node", nil), c.startPodOn(t, "", "no-node", nil),
		{Namespace: c.NS, Name: "other-node"}, // the same, from a runtime that tells no UID
	} {
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.%d", 110+i), "kind-worker", ref)
	}
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.startPod(t, "alive-too", nil)
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "alive-too"})
	c.run(t, controller.Options{})
	c.wantHeld(t, "192.168.0.101", "192.168.0.102")
	// Of 192.168.0.118 or .120: the last of more than ten similar events are combined.
	c.WantEvent(t, " of pod "+c.NS+"/other-node on node kind-worker: pod is not on this node")
}

// Where pods are is asked once for a node, not for each of its allocations.
func TestReclaimAsksOnceForANode(t *testing.T) {
	c := seedCluster(t)
	var lists atomic.Int32
	var read sync.Map // pods
	count := func(req *http.Request) error {
		switch query := req.URL.Query(); {
		case query.Get("fieldSelector") == "spec.nodeName=kind-worker" && query.Get("resourceVersion") == "0":
			lists.Add(1)
		case req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/pods/"):
			read.Store(path.Base(req.URL.Path), true)
		}
		return nil
	}
	for i := range 30 {
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.%d", 101+i), "kind-worker", c.startPod(t, fmt.Sprint("alive-", i), nil))
	}
	c.runBehind(t, controller.Options{}, gated(count))
	rig.Until(t, func() string {
		if lists.Load() == 0 {
			return "kind-worker was not asked"
		}
		return ""
	})
	c.hold(t, "pool1", "192.168.0.140", "kind-worker", c.startPod(t, "one-more", nil))
	c.leak(t, "192.168.0.150", "never-there")
	rig.Until(t, func() string { // all the others have been examined by then
		if slices.Contains(c.Held(t), "192.168.0.150") {
			return "not reclaimed"
		}
		return ""
	})
	if n := lists.Load(); n != 1 {
		t.Errorf("%d lists, want 1", n)
	}
	read.Range(func(pod, _ any) bool {
		if pod != "leaked-192.168.0.150" {
			t.Errorf("read pod %s", pod)
		}
		return true
	})
}

// A Node that was deleted and made again is another one. What is in the API and on
// it stays; a static pod of before goes.
func TestReclaimNodeMadeAgain(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "static-before", UID: static})
	c.nextSecond(t)
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Node(t, "kind-worker", map[string]string{workerLabel: ""})
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
	c.hold(t, "pool1", "192.168.0.103", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "static-after", UID: static})
	c.run(t, controller.Options{})
	l.want(t, "Allocation is held", "192.168.0.102", "node_unreachable", "until=")
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	c.wantHeld(t, "192.168.0.101", "192.168.0.103")
	l.want(t, "Allocation is held", "192.168.0.103", "pod_unknown", "until=")
}

// Pods that have ended hold nothing on a node where nothing runs any more.
func TestReclaimEndedPod(t *testing.T) {
	c := seedCluster(t)
	end := func(name string, phase corev1.PodPhase) {
		t.Helper()
		patch := []byte(`{"status":{"phase":"` + string(phase) + `"}}`)
		if _, err := c.Kube.CoreV1().Pods(c.NS).Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"failed", "succeeded", "running"} {
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.20%d", 1+i), "kind-worker2", c.startPodOn(t, "kind-worker2", name, nil))
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.10%d", 1+i), "kind-worker", c.startPod(t, name+"-on-a-node-that-answers", nil))
	}
	end("failed", corev1.PodFailed)
	end("succeeded", corev1.PodSucceeded)
	end("running", corev1.PodRunning)
	end("failed-on-a-node-that-answers", corev1.PodFailed)
	c.run(t, controller.Options{Resync: time.Second})
	c.patchNode(t, "kind-worker2", `{"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","value":"nodeshutdown","effect":"NoExecute"}]}}`)
	c.wantHeld(t, "192.168.0.101", "192.168.0.102", "192.168.0.103", "192.168.0.203")
	c.WantEvent(t, "reclaimed 192.168.0.201 of pod "+c.NS+"/failed on node kind-worker2: pod has ended, and its node is out of service")
	// It ends later, as the node's lease does: the Node is deleted, the pod's object stays.
	end("running", corev1.PodFailed)
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "192.168.0.101", "192.168.0.102", "192.168.0.103")
}

// While the API server does not say what has become of a pod, nothing is freed.
func TestReclaimNeedsAnAnswer(t *testing.T) {
	c := seedCluster(t)
	var asked atomic.Int32
	var answers atomic.Bool
	gate := func(req *http.Request) error {
		if strings.HasSuffix(req.URL.Path, "/pods/leaked") && !answers.Load() {
			asked.Add(1)
			return errors.New("connection lost by the test")
		}
		return nil
	}
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "leaked", UID: gone})
	c.runBehind(t, controller.Options{}, gated(gate))
	rig.Until(t, func() string {
		if asked.Load() < 5 {
			return "the API server was not asked"
		}
		return ""
	})
	c.wantHeld(t, "192.168.0.101")
	answers.Store(true)
	c.wantHeld(t)
}

// Two replicas: one leads, and the other takes over as soon as it stops.
func TestLeaderChange(t *testing.T) {
	c := seedCluster(t)
	type replica struct {
		*writes
		leading atomic.Bool
		stop    context.CancelFunc
		ended   chan error
	}
	start := func(identity string) *replica {
		clients, w, done := connect(t, env.Config, nil)
		ctx, cancel := context.WithCancel(context.Background())
		r := &replica{writes: w, stop: cancel, ended: make(chan error, 1)}
		go func() {
			defer done()
			r.ended <- controller.Lead(ctx, clients.Kube, c.NS, identity, func(ctx context.Context) error {
				r.leading.Store(true)
				defer r.leading.Store(false)
				err := controller.New(clients, controller.Options{Namespace: c.NS, ReclaimGrace: grace}).Run(ctx)
				for range 10 { // while it is still stopping, nobody else leads
					if got := c.leaseHolder(); got != identity {
						t.Errorf("%s has not stopped, and %q leads", identity, got)
					}
					time.Sleep(20 * time.Millisecond)
				}
				return err
			})
		}()
		t.Cleanup(cancel)
		return r
	}
	a := start("a")
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	b := start("b")
	if got := c.leaseHolder(); got != "a" || b.leading.Load() {
		t.Fatalf("leader is %q", got)
	}

	a.stop()
	if err := <-a.ended; err != nil {
		t.Error(err)
	}
	if got := c.leaseHolder(); got == "a" || a.leading.Load() {
		t.Errorf("%q has stopped and holds the lease", got)
	}
	rig.Until(t, func() string {
		if c.leaseHolder() != "b" {
			return "nobody took over"
		}
		return ""
	})
	c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
	c.wantPool(t, "pool1", "BlocksAssigned", append(seedBlocks[:3:3], "kind-worker3 192.168.1.45 192.168.1.144")...)
	c.hold(t, "pool1", "192.168.0.105", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "gone", UID: gone})
	c.wantHeld(t)
	b.stop()
	if err := <-b.ended; err != nil {
		t.Error(err)
	}
	if got := c.leaseHolder(); got != "" {
		t.Errorf("%q has stopped and holds the lease", got)
	}
}

func (c *cluster) leaseHolder() string {
	lease, err := c.Kube.CoordinationV1().Leases(c.NS).Get(context.Background(), "dd1643cf.nvidia.com", metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	return *lease.Spec.HolderIdentity
}

// Run returns only when the last request has ended, however long that takes.
func TestStopWaits(t *testing.T) {
	c := seedCluster(t)
	writing := make(chan struct{})
	var ended atomic.Bool
	gate := func(req *http.Request) error {
		if req.Method == http.MethodPatch {
			close(writing)
			<-req.Context().Done()
			time.Sleep(300 * time.Millisecond) // is how long it takes
			ended.Store(true)
			return req.Context().Err()
		}
		return nil
	}
	_, stop := c.runBehind(t, controller.Options{}, gated(gate))
	<-writing
	stop()
	if !ended.Load() {
		t.Error("a write was under way when Run returned")
	}
}

// A controller that is told to stop leaves nothing running.
func TestStops(t *testing.T) {
	c := seedCluster(t)
	c.hold(t, "pool1", "192.168.0.105", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "gone", UID: gone})
	c.GetPool(t, "pool1") // the test's own connection is there before
	before := goleak.IgnoreCurrent()
	w, stop := c.run(t, controller.Options{ReclaimGrace: time.Hour})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	stop()
	rig.Until(t, func() string {
		utilnet.CloseIdleConnectionsFor(w.base) // is idle when its last stream has been reset
		if err := goleak.Find(before); err != nil {
			return err.Error()
		}
		return ""
	})
}

// nv-ipam's own CRDs know no conditions: the blocks are written all the same,
// and the rest is not tried for ever. When they are updated, a controller that runs notices.
func TestForeignCRDs(t *testing.T) {
	ownServer(t, testenv.Options{NoCRDs: true})
	resources := []string{"ippools", "cidrpools", "ipallocations"}
	var crds []*apiextensionsv1.CustomResourceDefinition
	for _, resource := range resources {
		crds = append(crds, crdWithout(t, resource, added...))
	}
	if _, err := envtest.InstallCRDs(env.Config, envtest.CRDInstallOptions{CRDs: crds}); err != nil {
		t.Fatal(err)
	}

	c := seedCluster(t)
	w, stop := c.run(t, controller.Options{})
	wantBlocks := func(pool string, want int) {
		t.Helper()
		rig.Until(t, func() string {
			if n := len(c.GetPool(t, pool).Status.Allocations); n != want {
				return fmt.Sprintf("pool %s has %d blocks, want %d", pool, n, want)
			}
			return ""
		})
	}
	wantBlocks("pool1", 3)
	c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
	wantBlocks("pool1", 4)
	c.Pool(t, "last", seedPool())
	wantBlocks("last", 4)
	rig.Until(t, func() string { // the answer to the last write may still be under way
		if n := len(w.of("ippools")); n < 4 {
			return fmt.Sprintf("%d writes", n)
		}
		return ""
	})
	stop()
	if all := w.of("ippools"); len(all) != 4 {
		t.Errorf("writes %q, want three of blocks and one try of conditions", all)
	}

	w, _ = c.run(t, controller.Options{Resync: time.Second})
	rig.Until(t, func() string {
		if len(w.of("ippools")) == 0 {
			return "conditions were not tried"
		}
		return ""
	})
	for _, resource := range resources {
		if out, err := env.Kubectl(t.Context(), "apply", "--server-side", "--force-conflicts", "-f", crdFile(t, resource)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	rig.Until(t, func() string {
		if s := c.GetPool(t, "pool1").Status; len(s.Conditions) == 0 || s.Used == nil {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
}

// The CRD of a running controller is replaced by one that lacks a part of the status, and by ours
// again: what it lacks is not tried all the time, and is there again afterwards.
func TestCRDChanges(t *testing.T) {
	ownServer(t, testenv.Options{})
	const resync = time.Second
	for name, lacks := range map[string][]string{
		"what nv-ipam lacks": added, "conditions": {"conditions"}, "counts": {"capacity", "used"}, "all": append([]string{"allocations"}, added...),
	} {
		t.Run(name, func(t *testing.T) {
			c := seedCluster(t)
			const more = 20
			for i := range more {
				c.Pool(t, fmt.Sprintf("more%d", i), seedPool())
			}
			w, stop := c.run(t, controller.Options{Resync: resync, Usage: resync})
			defer stop()
			c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
			rig.Until(t, func() string {
				for i := range more {
					if s := c.GetPool(t, fmt.Sprintf("more%d", i)).Status; len(s.Conditions) == 0 || s.Used == nil {
						return fmt.Sprintf("more%d: %+v", i, s)
					}
				}
				return ""
			})
			before := len(w.of("ippools"))
			replaceCRD(t, crdWithout(t, "ippools", lacks...))
			rig.Until(t, func() string { // until it is in force
				s := c.GetPool(t, "pool1").Status
				for f, there := range map[string]bool{"conditions": len(s.Conditions) > 0, "used": s.Used != nil, "allocations": len(s.Allocations) > 0} {
					if there == slices.Contains(lacks, f) {
						return fmt.Sprintf("%s: %v", f, there)
					}
				}
				return ""
			})
			c.Node(t, "kind-worker3", map[string]string{workerLabel: ""})
			rig.Until(t, func() string { // until all pools were tried
				if n := len(w.of("ippools")) - before; n < 1+more {
					return fmt.Sprintf("%d writes", n)
				}
				return ""
			})
			<-time.After(resync) // the first tries, of all pools at once
			tried, began := len(w.of("ippools")), time.Now()
			<-time.After(4 * resync)
			// Each of the four workers may try before one has learned. That the blocks are not stored,
			// which nobody's CRD does, is learned from the watch: each pool tries.
			tries := 2 * 4
			if slices.Contains(lacks, "allocations") {
				tries = 2 * (1 + more)
			}
			if n, most := len(w.of("ippools"))-tried, tries*(1+int(time.Since(began)/resync)); n > most {
				t.Errorf("%d writes in %s, want at most %d", n, time.Since(began), most)
			}
			replaceCRD(t, crdWithout(t, "ippools"))
			rig.Until(t, func() string {
				if s := c.GetPool(t, "pool1").Status; len(s.Allocations) != 4 || len(s.Conditions) == 0 || s.Used == nil || s.Capacity == nil {
					return fmt.Sprintf("status %+v", s)
				}
				return ""
			})
		})
	}
}

// added is what we have added to the status of nv-ipam's pools.
var added = []string{"conditions", "observedGeneration", "capacity", "used", "cooling", "topNodes"}

// ownServer gives a test a server of its own.
func ownServer(t *testing.T, options testenv.Options) {
	t.Helper()
	own, err := testenv.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	shared := env
	t.Cleanup(func() {
		env = shared
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	env = own
}

// crdFile is the manifest of our CRD of a resource.
func crdFile(t *testing.T, resource string) string {
	return filepath.Join(rig.Root(t), "manifests", "base", "crds", "nv-ipam.nvidia.com_"+resource+".yaml")
}

// crdWithout is our CRD of a resource, but for some fields of the status.
func crdWithout(t *testing.T, resource string, fields ...string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	raw, err := os.ReadFile(crdFile(t, resource))
	if err != nil {
		t.Fatal(err)
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(raw, crd); err != nil {
		t.Fatal(err)
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	if status, found := schema.Properties["status"]; found {
		maps.DeleteFunc(status.Properties, func(f string, _ apiextensionsv1.JSONSchemaProps) bool { return slices.Contains(fields, f) })
		status.Required = slices.DeleteFunc(status.Required, func(f string) bool { return slices.Contains(fields, f) })
		schema.Properties["status"] = status
	}
	return crd
}

// replaceCRD replaces an installed CRD.
func replaceCRD(t *testing.T, crd *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	raw, err := yaml.Marshal(crd)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "crd.yaml")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := env.Kubectl(t.Context(), "replace", "-f", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
