// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// claimed is a pool in which nothing is sticky, with IPAMClaims beside it.
func claimed(t *testing.T, spec v1alpha1.IPPoolSpec, nodes ...string) *workload {
	t.Helper()
	w := &workload{cluster: emptyCluster(t), kube: rig.Kube(t, env.Config)}
	rig.InstallIPAMClaims(t, w.rest(), rig.OwnerPodIsAnObject)
	rig.IPPool(t, w.client, w.ns, "p", spec, nodes...)
	return w
}

func (w *workload) rest() rest.Interface { return w.kube.CoreV1().RESTClient() }

// launch makes a pod that names a claim for its first network, as the pods of a virtual
// machine do.
func (w *workload) launch(t testing.TB, name, claim string) *corev1.Pod {
	t.Helper()
	return w.annotated(t, name, `[{"name": "net", "ipam-claim-reference": "`+claim+`"}, {"name": "net"}]`)
}

func (w *workload) annotated(t testing.TB, name, networks string) *corev1.Pod {
	t.Helper()
	ref := rig.Pod(t, w.kube, w.ns, name, "", func(p *corev1.Pod) { p.Annotations = map[string]string{ledger.AnnotationNetworks: networks} })
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}}
}

// A pod that names a claim has the address of the pod before it, on whichever node, in five
// requests of which one is a write. Nobody else gets it meanwhile.
func TestIPAMClaim(t *testing.T) {
	for name, spec := range keeping {
		t.Run(name, func(t *testing.T) {
			w := claimed(t, spec, "a", "b")
			a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
			vm := rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
			pod := w.launch(t, "launcher-1", "vm.net")
			addr := a.mustAddPod(t, pod)
			if again := a.mustAddPod(t, pod); again != addr {
				t.Errorf("the same container got %s, had %s", again, addr)
			}
			if second, err := a.addPod(t.Context(), pod, "net2"); err != nil || second == addr {
				t.Errorf("the interface without a claim got %s, %v", second, err)
			}
			a.mustDelPod(t, pod, "net1")
			for i := range 3 {
				if got := newNode(t, w.ns, "a").mustAddPod(t, w.start(t, fmt.Sprint("other-", i), "")); got == addr {
					t.Fatalf("another pod got %s", addr)
				}
			}
			for i, n := range []*node{a, b, a} {
				pod = w.launch(t, fmt.Sprint("launcher-", i+2), "vm.net")
				n.restart()
				n.wire.take()
				if got := n.mustAddPod(t, pod); got != addr {
					t.Fatalf("got %s, had %s", got, addr)
				}
				got := n.wire.take()
				if n == a {
					object := "ipallocations/" + w.nameOf(t, addr)
					want := []string{"GET ippools/p", "GET pods/" + pod.Name, "GET ipamclaims/vm.net", "GET " + object, "PATCH " + object}
					if !slices.Equal(got, want) {
						t.Errorf("requests %q, want %q", got, want)
					}
				}
				n.mustDelPod(t, pod, "net1")
			}
			if all := w.ofSet(t, vm.Metadata.UID); len(all) != 1 || !all[0].Spec.Released() || *all[0].Spec.Owner != *vm.Owner() {
				t.Errorf("%d allocations are kept: %v", len(all), all)
			}
		})
	}
}

// The first pod of an identity has its address in seven requests, of which two are writes, and
// one more for a claim: all later ones in four.
func TestFirstOfAnIdentity(t *testing.T) {
	for _, of := range []string{"StatefulSet", "IPAMClaim"} {
		t.Run(of, func(t *testing.T) {
			w := claimed(t, keeping["sticky"], "a")
			n := newNode(t, w.ns, "a")
			n.mustAddPod(t, w.start(t, "other", "")) // the node has seen the pool
			want := []string{"GET ippools/p", "GET pods/web-0"}
			pod := w.start(t, "web-0", "set-1")
			if of == "IPAMClaim" {
				rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
				pod, want = w.launch(t, "web-1", "vm.net"), []string{"GET ippools/p", "GET pods/web-1", "GET ipamclaims/vm.net"}
			}
			n.wire.take()
			object := "ipallocations/" + w.nameOf(t, n.mustAddPod(t, pod))
			want = append(want, "GET "+object, "GET ipallocations", "POST ipallocations", "GET ipallocations", "PATCH "+object)
			if got := n.wire.take(); !slices.Equal(got, want) {
				t.Errorf("requests %q, want %q", got, want)
			}
		})
	}
}

// The claim may come after the pod, and its CRD as well. Until then the pod waits, and is told
// for what.
func TestIPAMClaimComesLater(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	pod := w.launch(t, "launcher", "vm.net")
	wait := func(words ...string) {
		t.Helper()
		_, err := n.addPod(t.Context(), pod, "net1")
		for _, word := range append(words, "IPAMClaim", w.ns+"/vm.net") {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%v, want %q", err, word)
			}
		}
	}
	rig.RemoveIPAMClaims(t, w.rest())
	wait("CRD")
	rig.InstallIPAMClaims(t, w.rest(), rig.OwnerPodIsAnObject)
	rig.IPAMClaim(t, w.rest(), "default", "vm.net", "net") // of another namespace
	defer rig.DeleteIPAMClaim(t, w.rest(), "default", "vm.net")
	wait("not found")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	addr := n.mustAddPod(t, pod)
	// A claim that is made again under a running pod is another one.
	rig.DeleteIPAMClaim(t, w.rest(), w.ns, "vm.net")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	if got := n.mustAddPod(t, w.launch(t, "successor", "vm.net")); got == addr {
		t.Errorf("%s is given twice", got)
	}
}

// Two pods name one claim: the second one waits, and is told for whom.
func TestIPAMClaimOfTwoPods(t *testing.T) {
	w := claimed(t, blocksOf16, "a", "b")
	a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	first, second := w.launch(t, "first", "vm.net"), w.launch(t, "second", "vm.net")
	addr := a.mustAddPod(t, first)
	for _, n := range []*node{a, b} {
		if _, err := n.addPod(t.Context(), second, "net1"); !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), w.ns+"/first") {
			t.Errorf("the second pod: %v", err)
		}
	}
	a.mustDelPod(t, first, "net1")
	if got := b.mustAddPod(t, second); got != addr {
		t.Errorf("got %s, had %s", got, addr)
	}
}

// What the status has is the address, and no other: the record was lost, or another address
// manager has written it.
func TestIPAMClaimWithAddresses(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	rig.IPPool(t, w.client, w.ns, "v6", v1alpha1.IPPoolSpec{Subnet: "fd00::/64", PerNodeBlockSize: 16}, "a")
	n := newNode(t, w.ns, "a")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net", "10.0.0.77/24", "fd00::77/64")
	both := func(pod *corev1.Pod) ([]claim.Claim, error) {
		return n.Allocate(t.Context(), requestOf(pod, "net1", "p", "v6"))
	}
	pod := w.launch(t, "dual", "vm.net")
	if got, err := both(pod); err != nil || len(got) != 2 || got[0].Address.String() != "10.0.0.77" || got[1].Address.String() != "fd00::77" {
		t.Fatalf("%v, %v", got, err)
	}
	n.mustDelPod(t, pod, "net1")
	rig.IPAMClaim(t, w.rest(), w.ns, "late.net", "net", "10.0.0.78/24")
	w.hold(t, "p", "10.0.0.78", "elsewhere", "squatter")
	late := w.launch(t, "late", "late.net")
	if _, err := n.addPod(t.Context(), late, "net1"); !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), "squatter") {
		t.Errorf("another has the address: %v", err)
	}
	w.free(t, "p", "10.0.0.78")
	if got := n.mustAddPod(t, late); got != "10.0.0.78" {
		t.Errorf("got %s", got)
	}
	for _, outside := range []string{"10.9.9.9/24", "10.0.0.255/24"} {
		name := "at" + strings.ReplaceAll(outside[:len(outside)-3], ".", "-")
		rig.IPAMClaim(t, w.rest(), w.ns, name, "net", outside)
		if _, err := n.addPod(t.Context(), w.launch(t, name, name), "net1"); !isRequestError(err) || !strings.Contains(err.Error(), outside[:len(outside)-3]) {
			t.Errorf("%s: %v", outside, err)
		}
	}
}

// hasHad lets a pod of a new claim "vm.net" have an address, and end.
func (w *workload) hasHad(t *testing.T, n *node) (vm *ledger.IPAMClaim, addr string) {
	t.Helper()
	vm = rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	pod := w.launch(t, "first", "vm.net")
	addr = n.mustAddPod(t, pod)
	n.mustDelPod(t, pod, "net1")
	return vm, addr
}

// The pool's edit excludes the address. It is never replaced, and the pod is told.
func TestIPAMClaimThatDoesNotFit(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	_, addr := w.hasHad(t, n)
	p, err := w.client.IPPools(w.ns).Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	exclude := func(ranges ...v1alpha1.ExcludeRange) {
		p.Spec.Exclusions = ranges
		if p, err = w.client.IPPools(w.ns).Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		rig.Seen(t, w.client, w.ns, "p")
	}
	exclude(v1alpha1.ExcludeRange{StartIP: addr, EndIP: addr})
	second := w.launch(t, "second", "vm.net")
	if _, err := n.addPod(t.Context(), second, "net1"); !isRequestError(err) && !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), addr) {
		t.Errorf("excluded: %v", err)
	}
	exclude()
	if got := n.mustAddPod(t, second); got != addr {
		t.Errorf("got %s, had %s", got, addr)
	}
}

// What cannot be is refused, with the claim's name and the reason, and nothing is written.
func TestIPAMClaimRefused(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	rig.IPPool(t, w.client, w.ns, "places", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16, PerNodeExclusions: []v1alpha1.ExcludeIndexRange{{StartIndex: 0, EndIndex: 0}}}, "a")
	rig.CIDRPool(t, w.client, w.ns, "c", v1alpha1.CIDRPoolSpec{CIDR: "10.2.0.0/16", PerNodeNetworkPrefix: 24}, "a")
	rig.IPPool(t, w.client, w.ns, "p2", v1alpha1.IPPoolSpec{Subnet: "10.3.0.0/24", PerNodeBlockSize: 16}, "a")
	n := newNode(t, w.ns, "a")
	rig.IPAMClaim(t, w.rest(), w.ns, "vm.net", "net")
	rig.IPAMClaim(t, w.rest(), w.ns, "other.net", "other")
	rig.IPAMClaim(t, w.rest(), w.ns, "odd.net", "net", "10.0.0/24")
	cidr := []v1alpha1.PoolReference{{Kind: v1alpha1.PoolKindCIDRPool, Name: "c"}}
	for i, tc := range []struct {
		networks string
		pools    []v1alpha1.PoolReference
		want     pool.Want
		words    []string
	}{
		{`[{"name": "net", "ipam-claim-reference": "vm.net", "ips": ["10.0.0.9/24"]}]`, ippool("p"), pool.Want{}, []string{"vm.net", "requests addresses"}},
		{`[{"name": "net", "ipam-claim-reference": "vm.net"}]`, ippool("p"), pool.Want{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}, []string{"vm.net", "requests addresses"}},
		{`[{"name": "net", "ipam-claim-reference": "vm.net"}]`, ippool("places"), pool.Want{}, []string{"vm.net", "perNodeExclusions"}},
		{`[{"name": "net", "ipam-claim-reference": "vm.net"}]`, cidr, pool.Want{}, []string{"vm.net", `poolType "cidrpool"`}},
		{`[{"name": "net", "ipam-claim-reference": "other.net"}]`, ippool("p"), pool.Want{}, []string{"other.net", `network "other"`, `network "net"`}},
		{`[{"name": "net", "ipam-claim-reference": "elsewhere/vm.net"}]`, ippool("p"), pool.Want{}, []string{"elsewhere/vm.net", "pod's namespace"}},
		{`[{"name": "net", "ipam-claim-reference": "Vm"}]`, ippool("p"), pool.Want{}, []string{`"Vm"`, "not the name"}},
		{`[{"name": "net", "ipam-claim-reference": "vm.net"}]`, ippool("p", "p2"), pool.Want{}, []string{"vm.net", `"p" and "p2"`, "family"}},
		{`[{"name": "net", "ipam-claim-reference": "odd.net"}]`, ippool("p"), pool.Want{}, []string{"odd.net", `"10.0.0/24"`}},
		{`[{"name": 1}]`, ippool("p"), pool.Want{}, []string{ledger.AnnotationNetworks, "not valid"}},
	} {
		pod := w.annotated(t, fmt.Sprint("pod-", i), tc.networks)
		req := requestOf(pod, "net1")
		req.Pools, req.Want = tc.pools, tc.want
		_, err := n.Allocate(t.Context(), req)
		for _, word := range tc.words {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s of %v: %v, want %q", tc.networks, tc.pools, err, word)
			}
		}
	}
	// Multus has numbered other networks before those of the pod.
	for _, tc := range []struct{ networks, refusal string }{
		{`[{"name": "net", "ipam-claim-reference": "vm.net"}]`, "Name the interface"},
		{`[{"name": "net", "interface": "net7", "ipam-claim-reference": "vm.net"}]`, ""},
	} {
		pod := w.annotated(t, fmt.Sprint("default-", len(tc.refusal)), tc.networks)
		if _, err := n.addPod(t.Context(), pod, "net2"); tc.refusal == "" && err != nil || tc.refusal != "" && (err == nil || !strings.Contains(err.Error(), tc.refusal)) {
			t.Errorf("interface net2 of %s: %v", tc.networks, err)
		}
		n.mustDelPod(t, pod, "net2")
	}
	if all := w.all(t); len(all) > 0 {
		t.Errorf("allocated: %v", all)
	}
}

// A pool is replaced by another one of its domain: the claim's address is the same.
func TestIPAMClaimInAnotherPoolOfTheDomain(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	rig.IPPool(t, w.client, w.ns, "larger", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/23", PoolAccess: v1alpha1.PoolAccess{Domain: "p"}}, "a")
	n := newNode(t, w.ns, "a")
	vm, addr := w.hasHad(t, n)
	second := w.launch(t, "second", "vm.net")
	got, err := n.Allocate(t.Context(), requestOf(second, "net1", "larger"))
	if err != nil || got[0].Address.String() != addr {
		t.Errorf("%v, %v; had %s", got, err, addr)
	}
	if all := w.ofSet(t, vm.Metadata.UID); len(all) != 1 {
		t.Errorf("%d allocations: %v", len(all), all)
	}
}

// The status says one address, and the record has kept another: nobody decides that.
func TestIPAMClaimWithTwoAnswers(t *testing.T) {
	w := claimed(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	vm, addr := w.hasHad(t, n)
	claims := ledger.IPAMClaims{Client: w.rest()}
	if _, err := claims.PatchStatus(t.Context(), vm, ledger.IPAMClaimStatus{IPs: []string{"10.0.0.200/24"}}, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	next := w.launch(t, "next", "vm.net")
	if _, err := n.addPod(t.Context(), next, "net1"); !isRequestError(err) || !strings.Contains(err.Error(), "10.0.0.200") || !strings.Contains(err.Error(), addr) {
		t.Errorf("%v", err)
	}
	w.free(t, "p", addr)
	if got := n.mustAddPod(t, next); got != "10.0.0.200" {
		t.Errorf("got %s", got)
	}
}
