// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// workload starts and stops pods as the controller of StatefulSets does.
type workload struct {
	*cluster

	kube kubernetes.Interface
	// claims are the IPAMClaims of the pods' names; the others are of StatefulSets.
	claims map[string]types.UID
}

func stickyPool(t *testing.T, spec v1alpha1.IPPoolSpec, nodes ...string) *workload {
	t.Helper()
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{cluster: emptyCluster(t), kube: kube}
	spec.Sticky = []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}
	rig.IPPool(t, w.client, w.ns, "p", spec, nodes...)
	return w
}

var blocksOf16 = v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 16}

// start makes a pod of a StatefulSet with a UID; of none if that is empty. A pod of the name
// that is there is deleted by force.
func (w *workload) start(t testing.TB, name string, set types.UID) *corev1.Pod {
	t.Helper()
	now := int64(0)
	_ = w.kube.CoreV1().Pods(w.ns).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}}}
	if _, claimed := w.claims[name]; claimed {
		pod.Annotations = map[string]string{ledger.AnnotationNetworks: `[{"name": "net", "ipam-claim-reference": "` + name + `"}]`}
	} else if set != "" {
		yes := true
		owner, _, _ := strings.Cut(name, "-")
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: owner, UID: set, Controller: &yes}}
	}
	pod, err := w.kube.CoreV1().Pods(w.ns).Create(context.Background(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// sandbox is the attachment of a pod's interface. Each start has its own.
func sandbox(pod *corev1.Pod, ifName string) hint.Attachment {
	return hint.Attachment{ContainerID: "sandbox-of-" + string(pod.UID), Interface: ifName}
}

// requestOf is what a pod's interface asks for on network "net", which lets pods keep addresses.
func requestOf(pod *corev1.Pod, ifName string, pools ...string) claim.Request {
	return claim.Request{
		Attachment: sandbox(pod, ifName), Pools: ippool(pools...), Network: "net", Persistent: true,
		Pod: v1alpha1.PodReference{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
}

func (n *node) addPod(ctx context.Context, pod *corev1.Pod, ifName string) (string, error) {
	claims, err := n.Allocate(ctx, requestOf(pod, ifName, "p"))
	if err != nil {
		return "", err
	}
	return claims[0].Address.String(), nil
}

func (n *node) mustAddPod(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	got, err := n.addPod(t.Context(), pod, "net1")
	if err != nil {
		t.Fatalf("ADD of %s: %v", pod.Name, err)
	}
	return got
}

func (n *node) mustDelPod(t *testing.T, pod *corev1.Pod, ifName string) {
	t.Helper()
	if err := n.Release(t.Context(), sandbox(pod, ifName)); err != nil {
		t.Fatalf("DEL of %s: %v", pod.Name, err)
	}
}

// keeping are pools in which pods keep addresses.
var keeping = map[string]v1alpha1.IPPoolSpec{
	"blocks":    blocksOf16,
	"shared":    {Subnet: "10.0.0.0/24"},
	"overflow":  {Subnet: "10.0.0.0/28", PerNodeBlockSize: 4, Overflow: v1alpha1.OverflowSubnet},
	"IPv6":      {Subnet: "fd00::/64", PerNodeBlockSize: 16},
	"cooldown":  {Subnet: "10.0.0.0/24", PerNodeBlockSize: 16, PoolAccess: v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: 1e9}}},
	"of domain": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 16, PoolAccess: v1alpha1.PoolAccess{Domain: "net"}},
	"sticky":    {Subnet: "10.0.0.0/24", PerNodeBlockSize: 16, PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}}},
}

// The pod of a StatefulSet has its address again, on whichever node, in four requests of
// which one is a write; nobody else gets it meanwhile.
func TestSticky(t *testing.T) {
	for name, spec := range keeping {
		t.Run(name, func(t *testing.T) {
			w := stickyPool(t, spec, "a", "b")
			a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
			pod := w.start(t, "web-0", "set-1")
			addr := a.mustAddPod(t, pod)
			if again := a.mustAddPod(t, pod); again != addr {
				t.Errorf("the same container got %s, had %s", again, addr)
			}
			a.mustDelPod(t, pod, "net1")
			full := newNode(t, w.ns, "a")
			for i := range 3 {
				if got := full.mustAddPod(t, w.start(t, fmt.Sprint("other-", i), "")); got == addr {
					t.Fatalf("another pod got %s", addr)
				}
			}
			for _, n := range []*node{a, b, a} {
				pod = w.start(t, "web-0", "set-1")
				n.restart()
				n.wire.take()
				if got := n.mustAddPod(t, pod); got != addr {
					t.Fatalf("got %s, had %s", got, addr)
				}
				got := n.wire.take()
				if n == a {
					domain := "p."
					if spec.Domain != "" {
						domain = spec.Domain + "."
					}
					object := "ipallocations/" + w.nameOf(t, addr)
					want := []string{"GET ippools/p", "GET pods/web-0", "GET " + object, "PATCH " + object}
					if !slices.Equal(got, want) || !strings.HasPrefix(object, "ipallocations/"+domain) {
						t.Errorf("requests %q, want %q", got, want)
					}
				}
				n.mustDelPod(t, pod, "net1")
			}
			if all := w.ofSet(t, "set-1"); len(all) != 1 {
				t.Errorf("%d allocations are kept: %v", len(all), all)
			}
		})
	}
}

// nameOf is the name of the allocation of an address.
func (w *workload) nameOf(t *testing.T, addr string) string {
	t.Helper()
	for _, a := range w.all(t) {
		if a.Spec.Address == addr {
			return a.Name
		}
	}
	t.Fatalf("%s is not allocated", addr)
	return ""
}

func (w *workload) all(t *testing.T) []v1alpha1.IPAllocation {
	t.Helper()
	list, err := w.client.IPAllocations(w.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// ofSet are the allocations that a StatefulSet keeps.
func (w *workload) ofSet(t *testing.T, set types.UID) []v1alpha1.IPAllocation {
	t.Helper()
	return slices.DeleteFunc(w.all(t), func(a v1alpha1.IPAllocation) bool { return a.Spec.Owner == nil || a.Spec.Owner.UID != set })
}

// Each interface of each pod of each StatefulSet has an address of its own. A later
// StatefulSet of a name inherits nothing; a pod of none keeps nothing.
func TestStickyIdentities(t *testing.T) {
	w := stickyPool(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	seen := map[string]string{}
	for _, pod := range []*corev1.Pod{w.start(t, "web-0", "set-1"), w.start(t, "web-1", "set-1"), w.start(t, "db-0", "set-2")} {
		for _, ifName := range []string{"net1", "net2"} {
			addr, err := n.addPod(t.Context(), pod, ifName)
			if err != nil {
				t.Fatal(err)
			}
			if other, taken := seen[addr]; taken {
				t.Fatalf("%s and %s have %s", other, pod.Name+" "+ifName, addr)
			}
			seen[addr] = pod.Name + " " + ifName
			n.mustDelPod(t, pod, ifName)
		}
	}
	successor := w.start(t, "web-0", "set-3")
	if addr := n.mustAddPod(t, successor); seen[addr] != "" {
		t.Errorf("a StatefulSet of the same name got %s of %s", addr, seen[addr])
	}
	for _, loner := range []*corev1.Pod{w.start(t, "loner", ""), w.start(t, "web-7", "")} {
		addr := n.mustAddPod(t, loner)
		if seen[addr] != "" {
			t.Errorf("a pod of no StatefulSet got %s of %s", addr, seen[addr])
		}
		if a := w.get(t, w.nameOf(t, addr)); a.Spec.IsKept() {
			t.Errorf("kept: %+v", a.Spec)
		}
	}
	static := w.start(t, "web-8", "set-1")
	static.UID = "0123456789abcdef0123456789abcdef" // as a kubelet gives it
	n.mustAddPod(t, static)
}

// Somebody else has the address at which the search for an identity's own begins. It keeps
// the other one that it gets, also when that is free again.
func TestStickyAwayFromHome(t *testing.T) {
	w := stickyPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29", PerNodeBlockSize: 6}, "a")
	n := newNode(t, w.ns, "a")
	pod := w.start(t, "web-0", "set-1")
	home := n.mustAddPod(t, pod)
	n.mustDelPod(t, pod, "net1")
	w.free(t, "p", home)
	w.hold(t, "p", home, "elsewhere", "squatter")
	away := n.mustAddPod(t, w.start(t, "web-0", "set-1"))
	if away == home {
		t.Fatalf("%s is held twice", home)
	}
	w.free(t, "p", home)
	for _, a := range w.ofSet(t, "set-1") {
		if a.Spec.Address != away {
			t.Errorf("it has %s as well", a.Spec.Address)
		}
	}
	before := w.pod(t, "web-0")
	n.mustDelPod(t, before, "net1")
	n.wire.take()
	if got := n.mustAddPod(t, w.start(t, "web-0", "set-1")); got != away {
		t.Errorf("got %s, had %s", got, away)
	}
	if got := n.wire.take(); len(got) != 5 {
		t.Errorf("requests %q", got)
	}
	// Full: a sixth identity gets none, and is told.
	for i := range 5 {
		n.mustAddPod(t, w.start(t, fmt.Sprint("db-", i), "set-2"))
	}
	if _, err := n.addPod(t.Context(), w.start(t, "db-5", "set-2"), "net1"); !errors.Is(err, claim.ErrExhausted) {
		t.Errorf("full: %v", err)
	}
}

func (w *workload) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod, err := w.kube.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// An edit of the pool excludes the address: the pod gets another one. The address of a pod
// that still runs is never given to the next one, which is told who has it.
func TestStickyAddressThatDoesNotFit(t *testing.T) {
	w := stickyPool(t, blocksOf16, "a", "b")
	a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
	pod := w.start(t, "web-0", "set-1")
	addr := a.mustAddPod(t, pod)
	next := w.start(t, "web-0", "set-1") // deleted by force, the container of the first one runs
	if _, err := b.addPod(t.Context(), next, "net1"); !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), addr) {
		t.Errorf("ADD beside the first container: %v", err)
	}
	p, err := w.client.IPPools(w.ns).Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Spec.Exclusions = []v1alpha1.ExcludeRange{{StartIP: addr, EndIP: addr}}
	if _, err := w.client.IPPools(w.ns).Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Seen(t, w.client, w.ns, "p")
	if _, err := b.addPod(t.Context(), next, "net1"); !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), addr) {
		t.Errorf("ADD beside the first container, whose address is excluded: %v", err)
	}
	a.mustDelPod(t, pod, "net1")
	other := b.mustAddPod(t, next)
	if other == addr {
		t.Errorf("got the excluded %s", addr)
	}
	b.mustDelPod(t, next, "net1")
	if got := a.mustAddPod(t, w.start(t, "web-0", "set-1")); got != other {
		t.Errorf("got %s, had %s", got, other)
	}
}

// A pool is replaced by another one of its domain, narrower, wider or the same: the pods of a
// StatefulSet have the addresses that they had. No two pools of one network may keep one each.
func TestStickyPoolReplaced(t *testing.T) {
	w := stickyPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"}, "a", "b")
	a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
	addr := a.mustAddPod(t, w.start(t, "web-0", "set-1"))
	a.mustDelPod(t, w.pod(t, "web-0"), "net1")
	running := a.mustAddPod(t, w.start(t, "web-1", "set-1"))
	wider := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PoolAccess: v1alpha1.PoolAccess{Domain: "p", Sticky: []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}}}
	rig.IPPool(t, w.client, w.ns, "p2", wider, "a", "b")
	pod := w.start(t, "web-0", "set-1")
	if _, err := b.Allocate(t.Context(), requestOf(pod, "net1", "p", "p2")); err == nil || !strings.Contains(err.Error(), `pools "p" and "p2" are of one address family and one domain`) {
		t.Errorf("an address of both: %v", err)
	}
	if err := w.client.IPPools(w.ns).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	claims, err := b.Allocate(t.Context(), requestOf(pod, "net1", "p2"))
	if err != nil || claims[0].Address.String() != addr {
		t.Errorf("web-0 had %s and got %v, %v", addr, claims, err)
	}
	next := w.start(t, "web-1", "set-1") // its first container runs
	if _, err := b.Allocate(t.Context(), requestOf(next, "net1", "p2")); !errors.Is(err, claim.ErrKept) || !strings.Contains(err.Error(), running) {
		t.Errorf("web-1 beside its first container: %v", err)
	}
	if of := w.ofSet(t, "set-1"); len(of) != 2 {
		t.Errorf("kept: %+v", of)
	}
}

// A pod may ask for the address that it keeps, and goes on keeping it. One that it asks for
// besides, it does not keep.
func TestStickyAndRequested(t *testing.T) {
	w := stickyPool(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	request := func(addr string) {
		pod := w.start(t, "web-0", "set-1")
		claims, err := n.Allocate(t.Context(), claim.Request{
			Attachment: sandbox(pod, "net1"), Pools: ippool("p"), Network: "net", Want: pool.Want{Addresses: []netip.Addr{netip.MustParseAddr(addr)}},
			Pod: v1alpha1.PodReference{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		})
		if err != nil || claims[0].Address.String() != addr {
			t.Fatalf("requested %s: %v, %v", addr, claims, err)
		}
		n.mustDelPod(t, pod, "net1")
	}
	pod := w.start(t, "web-0", "set-1")
	kept := n.mustAddPod(t, pod)
	n.mustDelPod(t, pod, "net1")
	request(kept)
	request("10.0.0.200")
	all := w.all(t)
	if len(all) != 1 || all[0].Spec.Address != kept || !all[0].Spec.Released() || !all[0].Spec.IsSticky() {
		t.Errorf("allocations %+v", all)
	}
}

// The record is lost while a StatefulSet's pod runs: its node writes it again as it was, also
// if another node has reserved the address for another pod meanwhile.
func TestStickyRestored(t *testing.T) {
	w := stickyPool(t, blocksOf16, "a", "b")
	a, b := newNode(t, w.ns, "a"), newNode(t, w.ns, "b")
	pod := w.start(t, "web-0", "set-1")
	addr := a.mustAddPod(t, pod)
	before := w.get(t, "p."+addr)
	for _, stolen := range []bool{false, true} {
		w.free(t, "p", addr)
		if stolen {
			mine := before.DeepCopy()
			mine.ObjectMeta = metav1.ObjectMeta{Name: before.Name}
			mine.Spec.ContainerID, mine.Spec.PodRef.Name, mine.Spec.AddStartedAt = "", "web-9", nil
			mine.Labels = v1alpha1.AllocationLabels(&mine.Spec)
			if _, err := w.client.IPAllocations(w.ns).Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		w.sayLostBy(t, fmt.Sprint("stolen-", stolen))
		a.restart()
		if err := a.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := w.get(t, "p."+addr)
		if !now.Spec.Held() || !now.Spec.Restored || !now.Spec.SameIdentity(&before.Spec) || now.Labels[v1alpha1.LabelOwner] != before.Labels[v1alpha1.LabelOwner] {
			t.Fatalf("restored %+v, %v", now.Spec, now.Labels)
		}
		if err := a.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.mustDelPod(t, pod, "net1")
	if got := b.mustAddPod(t, w.start(t, "web-0", "set-1")); got != addr {
		t.Errorf("got %s, had %s", got, addr)
	}
}

// A plugin that may not read its pod, and a pod that is gone, get errors that say so.
func TestStickyNeedsThePod(t *testing.T) {
	w := stickyPool(t, blocksOf16, "a")
	n := newNode(t, w.ns, "a")
	pod := w.start(t, "web-0", "set-1")
	now := int64(0)
	if err := w.kube.CoreV1().Pods(w.ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"spec.sticky", "not found"} {
		if _, err := n.addPod(t.Context(), pod, "net1"); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("without the pod: %v", err)
		}
	}
	w.start(t, "web-0", "set-1")
	if _, err := n.addPod(t.Context(), pod, "net1"); err == nil || !strings.Contains(err.Error(), string(pod.UID)) {
		t.Errorf("with another pod of the name: %v", err)
	}
	if held := w.all(t); len(held) > 0 {
		t.Errorf("allocated: %v", held)
	}
}

// Pods of two identities are started on three nodes at once, deleted by force while they
// start, and their plugins are killed before and after each request. At no time two
// containers hold addresses of one identity, and in the end each has one.
func TestStickyHistories(t *testing.T) {
	histories := 40
	if testing.Short() {
		histories = 8
	}
	began := time.Now()
	for i := 0; i < histories || !soaked(began); i++ {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { stickyHistory(t, seed, i%2 == 1) })
	}
}

// Every other history has pods that name IPAMClaims, instead of pods of a StatefulSet.
func stickyHistory(t *testing.T, seed uint64, claims bool) {
	w := stickyPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 4}, "a", "b", "c")
	random := rand.New(rand.NewPCG(seed, 0))
	names := []string{"web-0", "web-1"}
	if claims {
		rig.InstallIPAMClaims(t, w.rest(), rig.OwnerPodIsAnObject)
		w.claims = map[string]types.UID{}
		for _, name := range names {
			w.claims[name] = rig.IPAMClaim(t, w.rest(), w.ns, name, "net").Metadata.UID
		}
	}
	var held sync.Map // address by identity, from the end of its ADD to the begin of its DEL
	var all sync.WaitGroup
	for range 4 {
		// The squatter makes addresses of the identities free and not free.
		squatter, loner := newNode(t, w.ns, "a"), w.start(t, "loner", "")
		want := pool.Want{Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 1+random.IntN(12)))}}
		all.Go(func() {
			req := claim.Request{Attachment: sandbox(loner, "net1"), Pools: ippool("p"), Network: "net", Want: want,
				Pod: v1alpha1.PodReference{Namespace: w.ns, Name: "loner"}}
			if _, err := squatter.Allocate(t.Context(), req); err == nil {
				_ = squatter.Release(t.Context(), req.Attachment)
			}
		})
		for _, name := range names {
			started := w.start(t, name, "set-1")
			for _, on := range []string{"a", "b", "c"} {
				n := newNode(t, w.ns, on)
				n.wire.setLose(dieSometimes(random.Uint64()))
				mine := started.DeepCopy()
				mine.UID = types.UID(strings.Replace(string(mine.UID), "-", on, 1)) // a container of its own
				all.Go(func() {
					req := claim.Request{Attachment: sandbox(mine, "net1"), Pools: ippool("p"), Network: "net", Persistent: claims,
						Pod: v1alpha1.PodReference{Namespace: w.ns, Name: name}}
					claims, err := n.Allocate(t.Context(), req)
					if err == nil {
						if other, taken := held.LoadOrStore(name, claims[0].Address); taken {
							t.Errorf("%s holds %s and %s", name, other, claims[0].Address)
						}
						w.oneEach(t, names) // meanwhile others try
						held.Delete(name)
					}
					n.wire.setLose(nil)
					if err := n.Release(context.Background(), req.Attachment); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
		w.oneEach(t, names)
	}
	// What is left behind keeps nobody from starting: the DELs of those killed come.
	for _, a := range w.all(t) {
		if a.Spec.Held() {
			n := newNode(t, w.ns, a.Spec.NodeName)
			if err := n.Release(t.Context(), hint.AttachmentOf(&a)); err != nil {
				t.Error(err)
			}
		}
	}
	n := newNode(t, w.ns, "c")
	for _, name := range names {
		n.mustAddPod(t, w.start(t, name, "set-1"))
	}
	w.oneEach(t, names)
}

// oneEach checks that no identity has two addresses that a container has had.
func (w *workload) oneEach(t *testing.T, names []string) {
	t.Helper()
	for _, name := range names {
		var has []string
		set := cmp.Or(w.claims[name], "set-1")
		for _, a := range w.ofSet(t, set) {
			if a.Spec.PodRef.Name == name && !a.Spec.IsReserved() {
				has = append(has, a.Spec.Address)
			}
		}
		if len(has) > 1 {
			t.Errorf("%s has %v", name, has)
		}
	}
}

// dieSometimes kills the process before or after one of its requests, or loses the answer.
func dieSometimes(seed uint64) func(*http.Request) loss {
	random := rand.New(rand.NewPCG(seed, 1))
	return func(*http.Request) loss {
		if random.IntN(8) > 0 {
			return nothing
		}
		return []loss{killedBefore, killedAfter, request, response}[random.IntN(4)]
	}
}

// barrier stops a node before its nth request of a kind, until it is opened.
type barrier struct {
	method          string
	nth             int
	reached, opened chan struct{}
}

// barriers stop a node, one after the other; a request for a list is one without a name.
func (n *node) barriers(all ...*barrier) {
	for _, b := range all {
		b.reached, b.opened = make(chan struct{}), make(chan struct{})
	}
	n.wire.setLose(func(req *http.Request) loss {
		if len(all) > 0 && req.Method == all[0].method && (req.Method == http.MethodPatch || strings.HasSuffix(req.URL.Path, "/ipallocations")) {
			if all[0].nth--; all[0].nth == 0 {
				b := all[0]
				all = all[1:]
				close(b.reached)
				<-b.opened
			}
		}
		return nothing
	})
}

// Two nodes have each reserved an address for one identity, since the first one was another's
// for a moment, and one of them is about to take its over. However it goes on, one container
// has an address.
func TestStickyProposals(t *testing.T) {
	ascending := 0
	for i := range 8 {
		for _, third := range []bool{false, true} {
			w := stickyPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 4}, "a", "b", "c")
			name := fmt.Sprint("web-", i)
			a, b, c := newNode(t, w.ns, "a"), newNode(t, w.ns, "b"), newNode(t, w.ns, "c")
			trial := w.start(t, name, "set-1")
			home := a.mustAddPod(t, trial)
			a.mustDelPod(t, trial, "net1")
			w.free(t, "p", home)
			w.hold(t, "p", home, "elsewhere", "squatter")
			add := func(n *node) (ended chan error) {
				pod := w.start(t, name, "set-1")
				ended = make(chan error, 1)
				go func() {
					_, err := n.Allocate(context.Background(), claim.Request{
						Attachment: sandbox(pod, "net1"), Pools: ippool("p"), Network: "net", Pod: v1alpha1.PodReference{Namespace: w.ns, Name: name},
					})
					ended <- err
				}()
				return ended
			}
			proposes, lists := &barrier{method: http.MethodPost, nth: 1}, &barrier{method: http.MethodGet, nth: 1}
			if third {
				b.barriers(proposes, lists)
			} else {
				b.barriers(proposes)
			}
			ofB := add(b)
			<-proposes.reached // it has seen that there is none
			takes := &barrier{method: http.MethodPatch, nth: 1}
			a.barriers(takes)
			ofA := add(a)
			<-takes.reached // it has reserved another one, and seen that it is alone
			for _, r := range w.ofSet(t, "set-1") {
				if r.Name > "p."+home {
					ascending++
				}
			}
			w.free(t, "p", home) // the squatter's
			ended := 0
			if third {
				close(proposes.opened)
				<-lists.reached
				if err := <-add(c); err == nil {
					ended++
				}
				close(takes.opened)
				if err := <-ofA; err == nil {
					ended++
				}
				close(lists.opened)
				if err := <-ofB; err == nil {
					ended++
				}
			} else {
				close(proposes.opened)
				if err := <-ofB; err == nil {
					ended++
				}
				close(takes.opened)
				if err := <-ofA; err == nil {
					ended++
				}
			}
			if ended != 1 {
				t.Errorf("%s: %d containers have an address", name, ended)
			}
			w.oneEach(t, []string{name})
		}
	}
	if ascending == 0 {
		t.Error("in no case the first address comes first")
	}
}

// An identity finds what is free by a list of the windows, and by one of all names if much has no
// label, as in a pool that becomes sticky: not by a request for each address that is held.
func TestStickyInACrowdedPool(t *testing.T) {
	for name, tc := range map[string]struct {
		unlabelled bool
		requests   int // at most, of one ADD
	}{
		"labelled":       {false, 20},
		"without labels": {true, 50},
	} {
		t.Run(name, func(t *testing.T) {
			w := stickyPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/25", PerNodeBlockSize: 16}, "a", "b")
			if tc.unlabelled {
				for i := 1; i <= 124; i++ {
					w.holdUnlabelled(t, "p", fmt.Sprintf("10.0.0.%d", i))
				}
			} else {
				w.fill(t, "p", "10.0.0.1", "10.0.0.124")
			}
			n := newNode(t, w.ns, "a")
			for i := range 3 {
				pod := w.start(t, fmt.Sprint("db-", i), "set")
				n.wire.take()
				switch _, err := n.addPod(t.Context(), pod, "net1"); {
				case i < 2 && err != nil:
					t.Error(err)
				case i == 2 && !errors.Is(err, claim.ErrExhausted):
					t.Errorf("error %v", err)
				}
				if requests := n.wire.take(); len(requests) > tc.requests {
					t.Errorf("%d requests of ADD %d", len(requests), i)
				}
			}
			// The next ones read the pool, the pod and its home, and list what the identity keeps.
			var all sync.WaitGroup
			for i := range 8 {
				pod := w.start(t, fmt.Sprint("waits-", i), "set")
				all.Go(func() {
					if _, err := n.addPod(t.Context(), pod, "net1"); !errors.Is(err, claim.ErrExhausted) {
						t.Errorf("error %v", err)
					}
				})
			}
			all.Wait()
			if requests := n.wire.take(); len(requests) > 8*4 {
				t.Errorf("%d requests of eight pods that wait", len(requests))
			}
			w.free(t, "p", "10.0.0.7") // by the controller
			if _, err := n.addPod(t.Context(), w.start(t, "early-0", "set"), "net1"); !errors.Is(err, claim.ErrExhausted) {
				t.Errorf("error %v", err)
			}
			lutimes(t, n.path("pools", "ippool.p@lasting.full"), time.Now().Add(-11*time.Second))
			if got := n.mustAddPod(t, w.start(t, "late-0", "set")); got != "10.0.0.7" {
				t.Errorf("got %s", got)
			}
		})
	}
}
