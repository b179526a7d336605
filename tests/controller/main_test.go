// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller tests the controller against a real API server: what it
// applies, patches and deletes depends on resource versions, field managers and
// preconditions, which no fake has.
package controller

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// grace is short, so that tests are; it is still longer than any of these tests
// needs to see that something did not happen.
const grace = 2 * time.Second

// UIDs of pods.
const (
	gone    = rig.GoneUID
	static  = rig.StaticUID
	another = rig.AnotherUID
)

// cluster is a namespace for pools in a cluster without nodes.
type cluster struct {
	*rig.Cluster

	log *logBuffer // nil for the standard one
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env)}
	c.RemoveNodes(t)
	return c
}

// wrapper stands between a client and the API server.
type wrapper func(next http.RoundTripper) http.RoundTripper

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// gated is a wrapper that lets a request pass where gate returns no error.
func gated(gate func(*http.Request) error) wrapper {
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if err := gate(req); err != nil {
				return nil, err
			}
			return next.RoundTrip(req)
		})
	}
}

// connect returns a controller's clients on connections of their own, which done
// closes, and the writes that go over them. wrap may be nil.
func connect(t *testing.T, config *rest.Config, wrap wrapper) (controller.Clients, *writes, func()) {
	t.Helper()
	config = rest.CopyConfig(config)
	config.Proxy = http.ProxyFromEnvironment // keeps client-go from sharing the transport
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	w := &writes{base: transport.Transport, next: transport.Transport}
	if wrap != nil {
		w.next = wrap(w.next)
	}
	return rig.ControllerClients(t, config, &http.Client{Transport: w}), w, func() { utilnet.CloseIdleConnectionsFor(transport.Transport) }
}

// writes counts what a client changes; what was refused is not counted.
type writes struct {
	base, next http.RoundTripper

	mu  sync.Mutex
	all []string // "PATCH ippools/pool1/status"
}

func (w *writes) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(req)
	if req.Method != http.MethodGet && err == nil && resp.StatusCode < 300 {
		_, what, _ := strings.Cut(req.URL.Path, "/namespaces/")
		_, what, _ = strings.Cut(what, "/")
		w.mu.Lock()
		w.all = append(w.all, req.Method+" "+what)
		w.mu.Unlock()
	}
	return resp, err
}

// of returns the writes to a resource.
func (w *writes) of(resource string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.all {
		if strings.Contains(s, " "+resource+"/") {
			out = append(out, s)
		}
	}
	return out
}

// run runs a controller until stop, or the end of the test.
func (c *cluster) run(t *testing.T, opts controller.Options) (w *writes, stop func()) {
	t.Helper()
	return c.runBehind(t, opts, nil)
}

// runBehind runs a controller whose requests go through wrap.
func (c *cluster) runBehind(t *testing.T, opts controller.Options, wrap wrapper) (w *writes, stop func()) {
	t.Helper()
	clients, w, done := connect(t, env.Config, wrap)
	t.Cleanup(done)
	if opts.ReclaimGrace == 0 {
		opts.ReclaimGrace = grace
	}
	if opts.ReclaimGraceReadyNode == 0 {
		opts.ReclaimGraceReadyNode = opts.ReclaimGrace
	}
	return w, c.RunController(c.log.to(context.Background()), t, clients, opts)
}

func (c *cluster) patchNode(t *testing.T, name, patch string, subresources ...string) {
	t.Helper()
	if _, err := c.Kube.CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...); err != nil {
		t.Fatal(err)
	}
}

// wantPool waits until a pool has these blocks, as "node first last", and this
// reason for being ready or not.
func (c *cluster) wantPool(t *testing.T, name, reason string, want ...string) {
	t.Helper()
	rig.Until(t, func() string {
		p := c.GetPool(t, name)
		got := rig.Blocks(p)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("pool %s has the blocks %q, want %q", name, got, want)
		}
		for _, condition := range p.Status.Conditions {
			if condition.Type == v1alpha1.ConditionReady && condition.Reason == reason && condition.ObservedGeneration == p.Generation && p.Status.ObservedGeneration == p.Generation {
				return ""
			}
		}
		return fmt.Sprintf("pool %s is %+v, want reason %s", name, p.Status.PoolStatus, reason)
	})
}

// hold creates the allocation of an address by a pod on a node.
func (c *cluster) hold(t *testing.T, poolName, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	c.holdIn(t, "sandbox-"+pod.Name, poolName, address, node, pod)
}

// holdIn is hold in a certain container of the pod, which asks now.
func (c *cluster) holdIn(t *testing.T, container, poolName, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	c.holdSince(t, time.Now(), container, poolName, address, node, pod)
}

// holdSince is holdIn for a container that has asked at some other time.
func (c *cluster) holdSince(t *testing.T, asked time.Time, container, poolName, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	c.create(t, c.allocation(asked, container, poolName, address, node, pod))
}

// create stores an allocation. A pod that cannot be, which the CRD refuses today, is
// written behind the API server's back: it may be stored since a version before.
func (c *cluster) create(t *testing.T, a *v1alpha1.IPAllocation) {
	t.Helper()
	pod := a.Spec.PodRef
	if len(validation.IsDNS1123Subdomain(pod.Name)) > 0 || len(validation.IsDNS1123Label(pod.Namespace)) > 0 {
		a.Spec.PodRef = v1alpha1.PodReference{Namespace: c.NS, Name: "stands-for-it"}
		a.Spec.ContainerID = "stands-for-it-" + strings.ReplaceAll(a.Spec.Address, ".", "-")
	}
	if _, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if a.Spec.PodRef != pod {
		env.Rewrite(t, c.NS, a.Name, func(spec map[string]any) { spec["podRef"] = pod })
	}
}

// allocation is what a node's plugin would create.
func (c *cluster) allocation(asked time.Time, container, poolName, address, node string, pod v1alpha1.PodReference) *v1alpha1.IPAllocation {
	a := rig.Allocation(poolName, address, node, pod, container)
	a.Spec.InterfaceName, a.Spec.AddStartedAt = "net-"+poolName[:min(len(poolName), 11)], &metav1.MicroTime{Time: asked}
	return a
}

func (c *cluster) wantHeld(t *testing.T, want ...string) {
	t.Helper()
	rig.Until(t, func() string {
		if got := c.Held(t); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("held are %v, want %v; events %q", got, want, c.Events(t))
		}
		return ""
	})
}

// startPod creates a pod on kind-worker that no kubelet looks after.
func (c *cluster) startPod(t *testing.T, name string, annotations map[string]string) v1alpha1.PodReference {
	t.Helper()
	return c.startPodOn(t, "kind-worker", name, annotations)
}

// startPodOn is startPod on some node, "" for none.
func (c *cluster) startPodOn(t *testing.T, node, name string, annotations map[string]string) v1alpha1.PodReference {
	t.Helper()
	return rig.Pod(t, c.Kube, c.NS, name, node, func(p *corev1.Pod) {
		p.Annotations, p.Spec.TerminationGracePeriodSeconds = annotations, new(int64)
	})
}

func (c *cluster) deletePod(t *testing.T, name string) {
	t.Helper()
	if err := c.Kube.CoreV1().Pods(c.NS).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
}

// nextSecond waits until the server's clock, by which objects are created, shows
// another second.
func (c *cluster) nextSecond(t *testing.T) {
	t.Helper()
	now := func() metav1.Time {
		p, err := c.Kube.CoreV1().Pods(c.NS).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "clock"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		return p.CreationTimestamp
	}
	first := now()
	rig.Until(t, func() string {
		if n := now(); !first.Before(&n) {
			return "the server's clock stands still"
		}
		return ""
	})
}
