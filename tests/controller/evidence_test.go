// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// logged keeps what controllers of the cluster say that are run from now on.
func (c *cluster) logged() *logBuffer {
	c.log = &logBuffer{}
	return c.log
}

// to is a context that makes a controller log here; nil stands for the usual place.
func (l *logBuffer) to(ctx context.Context) context.Context {
	if l == nil {
		return ctx
	}
	return klog.NewContext(ctx, logr.FromSlogHandler(slog.NewTextHandler(l, nil)))
}

type logBuffer struct{ rig.Log }

// lines are those with all the parts.
func (l *logBuffer) lines(parts ...string) (out []string) {
next:
	for line := range strings.Lines(l.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

func (l *logBuffer) want(t *testing.T, parts ...string) {
	t.Helper()
	rig.Until(t, func() string {
		if len(l.lines(parts...)) == 0 {
			return fmt.Sprintf("nothing logged with %q", parts)
		}
		return ""
	})
}

func (c *cluster) leak(t *testing.T, address, node string) {
	t.Helper()
	c.hold(t, "pool1", address, node, v1alpha1.PodReference{Namespace: c.NS, Name: "leaked-" + address, UID: gone})
}

// The kubelet makes a pod another sandbox when it has stopped the first: where
// that one's DEL was lost, its address is taken back while the pod lives.
func TestReclaimReplacedSandbox(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	c.run(t, controller.Options{Resync: time.Second})
	pod, slow := c.startPod(t, "pod", nil), c.startPod(t, "slow", nil)
	c.holdIn(t, "first", "pool1", "192.168.0.101", "kind-worker", pod)
	c.nextSecond(t)
	c.holdIn(t, "second", "pool1", "192.168.0.102", "kind-worker", pod)
	// The create of an earlier container comes when the later one has its address.
	asked := time.Now()
	c.holdIn(t, "later", "pool1", "192.168.0.111", "kind-worker", slow)
	c.holdSince(t, asked, "earlier", "pool1", "192.168.0.112", "kind-worker", slow)
	c.wantHeld(t, "192.168.0.102", "192.168.0.111", "192.168.0.112")
	c.WantEvent(t, "reclaimed 192.168.0.101 of pod "+c.NS+"/pod on node kind-worker: pod has a later sandbox, second")
	l.want(t, "Allocation is held", "192.168.0.111", "which is the later cannot be told", "until=")
	l.want(t, "Allocation is held", "192.168.0.112", "which is the later cannot be told", "until=")
}

// The node's clock was set back between two sandboxes, and somebody has labelled
// the earlier one's allocation since: the later one is not taken for the earlier.
func TestReclaimTouchedAllocation(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	pod := c.startPod(t, "pod", nil)
	c.holdIn(t, "first", "pool1", "192.168.0.101", "kind-worker", pod)
	c.nextSecond(t)
	c.holdSince(t, time.Now().Add(-time.Hour), "second", "pool1", "192.168.0.102", "kind-worker", pod)
	patch := []byte(`{"metadata":{"labels":{"touched":"yes"}}}`)
	if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), "pool1.192.168.0.101", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{Resync: time.Second})
	for _, address := range []string{"192.168.0.101", "192.168.0.102"} {
		l.want(t, "Allocation is held", address, "sandbox_unclear", "until=")
	}
	c.wantHeld(t, "192.168.0.101", "192.168.0.102")
	// What ends it: the pod has yet another sandbox, or ends.
	c.nextSecond(t)
	c.holdIn(t, "third", "pool1", "192.168.0.103", "kind-worker", pod)
	c.wantHeld(t, "192.168.0.103")
}

// A later sandbox replaces all of the earlier ones, whatever the network, the pool
// and the interface: its definition may have been edited. Interfaces of one
// sandbox replace nothing.
func TestReclaimSandboxOfAnotherPool(t *testing.T) {
	c := seedCluster(t)
	pod := c.startPod(t, "pod", nil)
	for i, name := range []string{"pool2", "pool3"} {
		c.Pool(t, name, v1alpha1.IPPoolSpec{Subnet: fmt.Sprintf("10.0.%d.0/24", i), PerNodeBlockSize: 10})
	}
	c.holdIn(t, "first", "pool1", "192.168.0.101", "kind-worker", pod)
	c.holdIn(t, "first", "pool2", "10.0.0.1", "kind-worker", pod)
	c.nextSecond(t)
	c.holdIn(t, "second", "pool2", "10.0.0.2", "kind-worker", pod)
	c.nextSecond(t)
	c.holdIn(t, "second", "pool3", "10.0.1.1", "kind-worker", pod)
	c.run(t, controller.Options{})
	c.wantHeld(t, "10.0.0.2", "10.0.1.1")
}

// A runtime that tells no UID: the order of the sandboxes decides while the pod is
// there, and it is not taken for a later pod of the name.
func TestReclaimSandboxWithoutUID(t *testing.T) {
	c := seedCluster(t)
	pod := c.startPod(t, "pod", nil)
	pod.UID = ""
	c.holdIn(t, "first", "pool1", "192.168.0.101", "kind-worker", pod)
	c.nextSecond(t)
	c.holdIn(t, "second", "pool1", "192.168.0.102", "kind-worker", pod)
	c.hold(t, "pool1", "192.168.0.201", "kind-worker2", pod) // names this pod, which is on another node
	c.run(t, controller.Options{})
	c.wantHeld(t, "192.168.0.102")
}

// What may never have been a pod of the API is held, and freed with its node.
func TestReclaimUnknownPod(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "static-without-mirror", UID: static})
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "another", UID: another})
	c.hold(t, "pool1", "192.168.0.201", "kind-worker2", v1alpha1.PodReference{Namespace: c.NS, Name: "stays", UID: static})
	c.leak(t, "192.168.0.103", "kind-worker")
	c.run(t, controller.Options{Resync: time.Second})
	c.wantHeld(t, "192.168.0.101", "192.168.0.102", "192.168.0.201")
	for _, address := range []string{"192.168.0.101", "192.168.0.102"} {
		l.want(t, "Allocation is held", address, "which may run without an object in the API", "kubectl delete ipa NAME")
	}

	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantHeld(t, "192.168.0.201")
	// That took some resyncs: what is held is said once.
	if n := len(l.lines("Allocation is held", "192.168.0.201")); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// The owner of a pool disables reclaim, mistypes it, and enables it again.
func TestReclaimDisabled(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	annotate := func(value string) {
		t.Helper()
		patch := []byte(`{"metadata":{"annotations":{"nv-ipam.nvidia.com/reclaim":` + value + `}}}`)
		if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	annotate(`"disabled"`)
	c.Pool(t, "pool2", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10})
	c.leak(t, "192.168.0.101", "kind-worker")
	c.hold(t, "pool2", "10.0.0.1", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "leaked", UID: gone})
	c.run(t, controller.Options{})
	c.wantHeld(t, "192.168.0.101") // pool2's is freed
	l.want(t, "Allocation is held", "192.168.0.101", "nv-ipam.nvidia.com/reclaim=disabled")

	annotate(`"disable"`)
	c.WantEvent(t, `Warning IPPool/pool1 UnknownReclaimAnnotation: no address is reclaimed: annotation nv-ipam.nvidia.com/reclaim is "disable", want "enabled" or "disabled"`)
	c.leak(t, "192.168.0.102", "kind-worker")
	l.want(t, "Allocation is held", "192.168.0.102", "nv-ipam.nvidia.com/reclaim=disable\"")
	c.wantHeld(t, "192.168.0.101", "192.168.0.102")

	annotate(`null`)
	c.wantHeld(t)
}

// A node that did not answer is back: what leaked is freed, what lives is not.
func TestReclaimNodeBack(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.leak(t, "192.168.0.102", "kind-worker")
	c.run(t, controller.Options{})
	l.want(t, "Allocation is held", "192.168.0.102", "its node does not answer", "node.kubernetes.io/out-of-service")
	c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	c.wantHeld(t, "192.168.0.101")
	if len(l.lines("Allocation looks leaked", "192.168.0.102")) != 1 {
		t.Error("nothing says that the hold has ended")
	}
}

// Deleting a pool, or a node, frees nothing that lives.
func TestReclaimDeletedPoolAndNode(t *testing.T) {
	c := seedCluster(t)
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.hold(t, "pool1", "192.168.0.201", "kind-worker2", c.startPodOn(t, "kind-worker2", "alive2", nil))
	c.leak(t, "192.168.0.102", "kind-worker")
	c.leak(t, "192.168.0.202", "kind-worker2")
	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "pool1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Kube.CoreV1().Nodes().Delete(t.Context(), "kind-worker2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.run(t, controller.Options{})
	c.wantHeld(t, "192.168.0.101", "192.168.0.201")
	c.deletePod(t, "alive2")
	c.wantHeld(t, "192.168.0.101")
}

// freezer stops the watches of one resource from delivering anything: the cache
// of it stays as it is.
type freezer struct {
	resource string
	frozen   atomic.Bool
	thaw     chan struct{}
}

func (f *freezer) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err == nil && req.URL.Query().Get("watch") != "" && strings.HasSuffix(req.URL.Path, "/"+f.resource) {
			resp.Body = &frozenBody{resp.Body, f}
		}
		return resp, err
	})
}

type frozenBody struct {
	io.ReadCloser
	f *freezer
}

func (b *frozenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.f.frozen.Load() {
		<-b.f.thaw
	}
	return n, err
}

// Whatever cache is behind, a live look finds what it lacks, and nothing that
// lives is freed.
func TestReclaimStaleCache(t *testing.T) {
	for _, tc := range []struct {
		resource, reason string
		live             func(t *testing.T, c *cluster) // what the cache does not come to know
	}{
		{"pods", "pod exists", func(t *testing.T, c *cluster) {
			c.hold(t, "pool1", "192.168.0.105", "kind-worker", c.startPod(t, "alive", nil))
		}},
		{"nodes", "its node does not answer", func(t *testing.T, c *cluster) {
			c.patchNode(t, "kind-worker", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
			c.leak(t, "192.168.0.105", "kind-worker")
		}},
		{"ippools", "reclaim=disabled", func(t *testing.T, c *cluster) {
			patch := []byte(`{"metadata":{"annotations":{"nv-ipam.nvidia.com/reclaim":"disabled"}}}`)
			if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			c.leak(t, "192.168.0.105", "kind-worker")
		}},
	} {
		t.Run(tc.resource, func(t *testing.T) {
			c := seedCluster(t)
			l := c.logged()
			f := &freezer{resource: tc.resource, thaw: make(chan struct{})}
			thaw := sync.OnceFunc(func() { close(f.thaw) })
			t.Cleanup(thaw) // before the controller is stopped, which waits for it
			_, stop := c.runBehind(t, controller.Options{}, f.wrap)
			t.Cleanup(func() { thaw(); stop() })
			c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
			f.frozen.Store(true)
			tc.live(t, c)
			l.want(t, "Leak candidate is spared", "192.168.0.105", tc.reason)
			c.wantHeld(t, "192.168.0.105")
		})
	}
}

// The later container's claim is in the cache, and gone: the earlier one stays.
func TestReclaimStaleRival(t *testing.T) {
	c := seedCluster(t)
	l := c.logged()
	pod := c.startPod(t, "pod", nil)
	c.holdIn(t, "first", "pool1", "192.168.0.101", "kind-worker", pod)
	c.nextSecond(t)
	c.holdIn(t, "second", "pool1", "192.168.0.102", "kind-worker", pod)
	f := &freezer{resource: "ipallocations", thaw: make(chan struct{})}
	thaw := sync.OnceFunc(func() { close(f.thaw) })
	_, stop := c.runBehind(t, controller.Options{}, f.wrap)
	t.Cleanup(func() { thaw(); stop() })
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	f.frozen.Store(true)
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "pool1.192.168.0.102", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.want(t, "Leak candidate is spared", "192.168.0.101", "pod exists")
	c.wantHeld(t, "192.168.0.101")
}

// A delete that is late does not free what somebody else has claimed since, nor
// what has changed.
func TestReclaimLateDelete(t *testing.T) {
	c := seedCluster(t)
	arrived, let := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(arrived) })
	var answered atomic.Int32
	_, stop := c.runBehind(t, controller.Options{}, func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			late := req.Method == http.MethodDelete
			if late {
				once()
				select {
				case <-let:
				case <-req.Context().Done():
					return nil, req.Context().Err()
				}
			}
			resp, err := next.RoundTrip(req)
			if late && err == nil && resp.StatusCode == http.StatusConflict {
				answered.Add(1)
			}
			return resp, err
		})
	})
	c.leak(t, "192.168.0.105", "kind-worker")
	<-arrived
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "pool1.192.168.0.105", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.hold(t, "pool1", "192.168.0.105", "kind-worker", c.startPod(t, "alive", nil))
	close(let)
	rig.Until(t, func() string {
		if answered.Load() == 0 {
			return "the late delete was not refused"
		}
		return ""
	})
	stop()
	c.wantHeld(t, "192.168.0.105")
}

// Two that both believe to lead free what leaked, once, and nothing else.
func TestTwoLeaders(t *testing.T) {
	c := seedCluster(t)
	var deletes atomic.Int32
	for range 2 {
		c.runBehind(t, controller.Options{ReclaimGrace: 50 * time.Millisecond}, func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(req)
				if req.Method == http.MethodDelete && err == nil && resp.StatusCode == http.StatusOK {
					deletes.Add(1)
				}
				return resp, err
			})
		})
	}
	var alive []string
	for i := range 10 {
		address := fmt.Sprintf("192.168.0.%d", 110+i)
		c.hold(t, "pool1", address, "kind-worker", c.startPod(t, fmt.Sprintf("alive-%d", i), nil))
		alive = append(alive, address)
		c.leak(t, fmt.Sprintf("192.168.0.%d", 130+i), "kind-worker")
	}
	c.wantHeld(t, alive...)
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	if n := deletes.Load(); n != 10 {
		t.Errorf("%d deletes, want 10", n)
	}
}

// While the API server refuses everything, nothing is freed, and afterwards what
// leaked is.
func TestAPIServerAway(t *testing.T) {
	c := seedCluster(t)
	var away atomic.Bool
	var refused atomic.Int32
	c.runBehind(t, controller.Options{}, gated(func(*http.Request) error {
		if away.Load() {
			refused.Add(1)
			return errors.New("connection refused by the test")
		}
		return nil
	}))
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	away.Store(true)
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.leak(t, "192.168.0.102", "kind-worker")
	rig.Until(t, func() string {
		if n := refused.Load(); n < 3 {
			return fmt.Sprintf("%d requests were refused", n)
		}
		return ""
	})
	c.wantHeld(t, "192.168.0.101", "192.168.0.102")
	away.Store(false)
	c.wantHeld(t, "192.168.0.101")
}
