// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func cooldown(d time.Duration) v1alpha1.PoolAccess {
	return v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: d}}
}

// shapes are pools "p" with two addresses for node a, whatever their shape.
func (c *cluster) shapes(access v1alpha1.PoolAccess) map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		"blocks": func(t *testing.T) {
			rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 2, PoolAccess: access}, "a", "b")
		},
		"no blocks": func(t *testing.T) {
			rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: access})
		},
		"overflow": func(t *testing.T) {
			rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PerNodeBlockSize: 1, Overflow: v1alpha1.OverflowSubnet, PoolAccess: access}, "a")
		},
		"domain": func(t *testing.T) {
			access := access
			access.Domain = "net"
			rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: access})
		},
		"prefixes": func(t *testing.T) {
			rig.CIDRPool(t, c.IPAM, c.NS, "p", v1alpha1.CIDRPoolSpec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 30, PoolAccess: access}, "a", "b")
		},
	}
}

func (c *cluster) eachShape(t *testing.T, d time.Duration, f func(t *testing.T, c *cluster, h *host, add func(string) call)) {
	t.Helper()
	for shape := range c.shapes(cooldown(d)) {
		t.Run(shape, func(t *testing.T) {
			c := newCluster(t)
			c.shapes(cooldown(d))[shape](t)
			f(t, c, c.host(t, "a"), func(container string) call {
				poolType := "ippool"
				if shape == "prefixes" {
					poolType = "cidrpool"
				}
				return call{verb: "ADD", container: container, ipam: map[string]any{"poolType": poolType}}
			})
		})
	}
}

func (c *cluster) only(t *testing.T) v1alpha1.IPAllocation {
	t.Helper()
	all := c.Allocations(t)
	if len(all) != 1 {
		t.Fatalf("%d allocations: %v", len(all), all)
	}
	return all[0]
}

// A DEL is one write, after which the address rests: nobody gets it, not even by request,
// but the pod that had it.
func TestCooldown(t *testing.T) {
	newCluster(t).eachShape(t, time.Hour, func(t *testing.T, c *cluster, h *host, add func(string) call) {
		h.mustAdd(t, add("warm-up")) // a new node asks once what it holds
		h.mustRun(t, call{verb: "DEL", container: "warm-up"})
		first := h.mustAdd(t, add("c1"))[0]
		before := time.Now().Add(-time.Second)
		requests := c.requests(t, func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) }).By("nv-ipam/")
		if len(requests) != 1 || len(requests.Writes()) != 1 {
			t.Errorf("DEL made the requests %v, want one write", requests)
		}
		addr, _, _ := strings.Cut(first, "/")
		a := c.named(t, addr)
		if !a.Spec.Released() || a.Spec.ReleasedAt.Time.Before(before.Truncate(time.Second)) || a.Spec.ContainerID != "c1" || a.Labels[v1alpha1.LabelReleased] != "true" {
			t.Fatalf("not released: %+v %v", a.Spec, a.Labels)
		}
		h.mustRun(t, call{verb: "DEL", container: "c1"})
		h.wantError(t, call{verb: "CHECK", container: "c1", ipam: add("").ipam}, 100)
		h.wantError(t, add("c2"), 11, "no free addresses", "or rest after their release")
		requested := add("c2")
		requested.args = "IP=" + addr
		h.wantError(t, requested, 11, "released by pod default/c1 on node a", "rests until")
		if got := c.named(t, addr); got.ResourceVersion != a.ResourceVersion {
			t.Errorf("changed: %+v", got.Spec)
		}
		// The pod's next sandbox.
		again := add("c1b")
		again.args = "K8S_POD_NAME=c1;K8S_POD_UID=" + string(a.Spec.PodRef.UID)
		requests = c.requests(t, func() {
			if got := h.mustAdd(t, again)[0]; got != first {
				t.Errorf("the same pod got %s, not %s", got, first)
			}
		}).By("nv-ipam/")
		if len(requests) > 3 || len(requests.Writes()) != 1 {
			t.Errorf("ADD of the same pod made the requests %v, want at most three, one of them a write", requests)
		}
		now := c.named(t, addr)
		if !now.Spec.Held() || now.Spec.ContainerID != "c1b" || now.UID != a.UID || now.Labels[v1alpha1.LabelReleased] != "" {
			t.Errorf("not taken over: %+v %v", now.Spec, now.Labels)
		}
		h.mustRun(t, call{verb: "DEL", container: "c1"}) // late
		h.mustRun(t, call{verb: "CHECK", container: "c1b", ipam: add("").ipam})
		remove(t, h.data()) // the hint is lost
		h.mustRun(t, call{verb: "DEL", container: "c1"})
		h.mustRun(t, call{verb: "CHECK", container: "c1b", ipam: add("").ipam})
		h.mustRun(t, call{verb: "DEL", container: "c1b"})
		if got := c.named(t, addr); !got.Spec.Released() {
			t.Errorf("not released: %+v", got.Spec)
		}
	})
}

// named returns the allocation of an address.
func (c *cluster) named(t *testing.T, addr string) *v1alpha1.IPAllocation {
	t.Helper()
	for _, a := range c.Allocations(t) {
		if a.Spec.Address == addr {
			return &a
		}
	}
	t.Fatalf("no allocation of %s", addr)
	return nil
}

// What has rested is taken over without the controller, when there is nothing else; and by
// a pod that asks for it, on whatever node.
func TestCooldownIsOver(t *testing.T) {
	newCluster(t).eachShape(t, time.Second, func(t *testing.T, c *cluster, h *host, add func(string) call) {
		given := map[string]bool{h.mustAdd(t, add("c1"))[0]: true, h.mustAdd(t, add("c2"))[0]: true}
		for _, container := range []string{"c1", "c2"} {
			h.mustRun(t, call{verb: "DEL", container: container})
		}
		var uids []string
		for _, a := range c.Allocations(t) {
			uids = append(uids, string(a.UID))
		}
		for _, container := range []string{"c3", "c4"} {
			rig.Eventually(t, container+" has an address", func() bool {
				out, err := h.run(t, add(container))
				if err != nil {
					remove(t, filepath.Join(h.dir, "data")) // or it believes for ten seconds that the block is full
					return false
				}
				got := parseResult(t, out)[0]
				if !given[got] {
					t.Fatalf("got %s, have %v", got, given)
				}
				delete(given, got)
				return true
			})
		}
		for _, a := range c.Allocations(t) {
			if !a.Spec.Held() || !slices.Contains(uids, string(a.UID)) {
				t.Errorf("not taken over: %+v", a.Spec)
			}
		}
		h.wantError(t, add("c5"), 11, "no free addresses")
	})
}

func TestCooldownOfRequested(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, PoolAccess: cooldown(time.Second)}, "a", "b")
	a, b := c.host(t, "a"), c.host(t, "b")
	ask := call{verb: "ADD", container: "c1", args: "IP=10.0.0.99"}
	a.mustAdd(t, ask)
	a.mustRun(t, call{verb: "DEL", container: "c1"})
	ask.container = "c2"
	rig.Eventually(t, "node b has the address", func() bool { _, err := b.run(t, ask); return err == nil })
	now := c.only(t)
	if now.Spec.NodeName != "b" || !now.Spec.Requested || now.Spec.ReleasedAt != nil {
		t.Errorf("%+v", now.Spec)
	}
	// What node a still knows frees nothing of b's.
	a.mustRun(t, call{verb: "DEL", container: "c1"})
	remove(t, a.data())
	a.mustRun(t, call{verb: "DEL", container: "c1"})
	b.mustRun(t, call{verb: "CHECK", container: "c2"})
}

// The default of the node counts where the pool says nothing.
func TestCooldownOfTheNode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		access v1alpha1.PoolAccess
		want   string
	}{
		{"pool says nothing", v1alpha1.PoolAccess{}, "1m30s"},
		{"pool says none", cooldown(0), ""},
		{"pool says another", cooldown(time.Hour), "1h0m0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t)
			rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, PoolAccess: tc.access}, "a")
			h := c.host(t, "a")
			settings := h.settings()
			settings["releaseCooldown"] = "90s"
			h.configure(t, settings)
			h.mustAdd(t, call{container: "c1"})
			got, a := "", c.only(t)
			if a.Spec.ReleaseCooldown != nil {
				got = a.Spec.ReleaseCooldown.Duration.String()
			}
			if got != tc.want {
				t.Errorf("cooldown %q, want %q", got, tc.want)
			}
			h.mustRun(t, call{verb: "DEL", container: "c1"})
			if n := len(c.Allocations(t)); (n == 1) != (tc.want != "") {
				t.Errorf("%d allocations after the DEL", n)
			}
		})
	}
}

// A release whose answer is lost, and one that is left to later calls, release once, and
// nobody else's.
func TestReleaseIsRepeated(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, PoolAccess: cooldown(time.Second)}, "a")
	h := c.host(t, "a")
	proxy := rig.NewProxy(t, env.Config)
	settings := h.settings()
	settings["kubeconfig"] = proxy.Kubeconfig(t, filepath.Join(h.dir, "proxy"))
	h.configure(t, settings)
	h.mustAdd(t, call{container: "c1"})
	first := c.only(t)

	proxy.Fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusServiceUnavailable) })
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if a := c.only(t); !a.Spec.Held() {
		t.Fatal("released, although the API server is away")
	}
	// Meanwhile somebody else ends it, and another container takes the address over.
	now := metav1.NewTime(time.Now().Add(-time.Hour))
	first.Spec.ReleasedAt = &now
	first.Labels[v1alpha1.LabelReleased] = "true"
	gone, err := c.IPAM.IPAllocations(c.NS).Update(t.Context(), &first, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gone.Spec.ReleasedAt, gone.Spec.ContainerID = nil, "c2"
	delete(gone.Labels, v1alpha1.LabelReleased)
	gone.Labels[v1alpha1.LabelContainer] = v1alpha1.ContainerLabel("c2")
	if _, err := c.IPAM.IPAllocations(c.NS).Update(t.Context(), gone, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	proxy.Fail(nil)
	h.mustRun(t, call{verb: "STATUS"})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if a := c.only(t); !a.Spec.Held() || a.Spec.ContainerID != "c2" || a.UID != first.UID {
		t.Errorf("the late release has changed %+v", a.Spec)
	}
	remove(t, h.data())
	h.mustRun(t, call{verb: "DEL", container: "c2"})
	if a := c.only(t); !a.Spec.Released() {
		t.Errorf("not released: %+v", a.Spec)
	}
}

// A pod whose reservation an administrator has made gets it, on whatever node, and no other.
func TestReservationForAPod(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a", "b")
	h := c.host(t, "b")
	for addr, pod := range map[string]v1alpha1.PodReference{
		"10.0.0.7": {Namespace: "default", Name: "c1"},
		"10.0.0.8": {Namespace: "default", Name: "c1", UID: "another"},
		"10.0.0.9": {},
	} {
		_, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), &v1alpha1.IPAllocation{
			ObjectMeta: metav1.ObjectMeta{Name: "p." + addr},
			Spec:       v1alpha1.IPAllocationSpec{PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, Address: addr, PodRef: pod},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	h.wantError(t, call{verb: "ADD", container: "c2", args: "IP=10.0.0.7"}, 11, "10.0.0.7 is reserved for pod default/c1")
	h.wantError(t, call{verb: "ADD", container: "c1", args: "IP=10.0.0.8"}, 11, "10.0.0.8 is reserved for pod default/c1")
	h.wantError(t, call{verb: "ADD", container: "c1", args: "IP=10.0.0.9"}, 11, "10.0.0.9 is reserved for nobody")
	h.mustAdd(t, call{container: "c1", args: "IP=10.0.0.7"})
	h.mustRun(t, call{verb: "CHECK", container: "c1"})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if got := c.held(t); got != "[10.0.0.8 10.0.0.9]" {
		t.Errorf("held %s", got)
	}
}
