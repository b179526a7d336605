// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// tenancy is a user who may do everything with the pods of one namespace, and two
// nodes with pods of that namespace and of others.
type tenancy struct {
	*cluster
	mallory kubernetes.Interface
	nodes   map[string]clientv1alpha1.NvIpamV1alpha1Interface
	leaks   int
}

// TestHostilePodAuthor runs while a controller frees at once what is proven to be
// leaked: what a ready node has an hour for stays, whatever is done to pods.
func TestHostilePodAuthor(t *testing.T) {
	c := newCluster(t, "one", "two")
	config := c.author(t, c.tenant, "", "pods", "pods/status", "pods/eviction")
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	s := &tenancy{cluster: c, mallory: kube, nodes: map[string]clientv1alpha1.NvIpamV1alpha1Interface{"one": c.node(t, "one"), "two": c.node(t, "two"), "gone": c.node(t, "gone")}}
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 100})
	c.run(t, controller.Options{ReclaimGrace: time.Millisecond, ReclaimGraceReadyNode: time.Hour, Resync: 2 * time.Second})
	c.wantReady(t, "p", "one 10.0.0.1 10.0.0.100", "two 10.0.0.101 10.0.0.200")

	other := env.Namespace(t)
	bystander := c.Claim(t, s.nodes["one"], allocation("p", "10.0.0.2", "one", rig.Pod(t, c.Kube, other, "bystander", "one"))).Name
	kept := c.Claim(t, s.nodes["one"], allocation("p", "10.0.0.3", "one", v1alpha1.PodReference{Namespace: other, Name: "static-one", UID: static})).Name

	t.Run("writes no allocations", func(t *testing.T) { s.writesNoAllocations(t, rig.Client(t, config)) })
	t.Run("deletes a pod by force that runs on", s.forceDeletes)
	t.Run("says that a pod has ended", s.saysItEnded)
	t.Run("makes up mirrors", s.makesUpMirrors)
	t.Run("a pod named like another on another node", s.sameNameElsewhere)
	t.Run("owner references", s.ownerReferences)
	t.Run("a pod that replaces a pod", s.replaces)
	t.Run("finalizers", s.finalizers)
	c.wantHeld(t, bystander, kept)
}

// settled waits until what was written before has been examined: a leak that was
// made after it is reclaimed.
func (s *tenancy) settled(t *testing.T) {
	t.Helper()
	for range 2 { // a candidate is freed at the second look
		s.leaks++
		leak := allocation("p", fmt.Sprint("10.0.0.", 200+s.leaks), "gone", v1alpha1.PodReference{Namespace: s.tenant, Name: fmt.Sprint("leak-", s.leaks), UID: gone})
		s.Claim(t, s.nodes["gone"], leak)
		s.wantGone(t, leak.Name)
	}
}

// holds stores the allocation of a pod on a node.
func (s *tenancy) holds(t *testing.T, node string, address int, pod v1alpha1.PodReference) string {
	t.Helper()
	return s.Claim(t, s.nodes[node], allocation("p", fmt.Sprint("10.0.0.", address), node, pod)).Name
}

func (s *tenancy) remove(t *testing.T, name string) {
	t.Helper()
	if err := s.mallory.CoreV1().Pods(s.tenant).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
}

func (s *tenancy) writesNoAllocations(t *testing.T, mallory clientv1alpha1.NvIpamV1alpha1Interface) {
	ctx, allocs := t.Context(), mallory.IPAllocations(s.NS)
	_, list := allocs.List(ctx, metav1.ListOptions{})
	_, create := allocs.Create(ctx, allocation("p", "10.0.0.9", "one", v1alpha1.PodReference{Namespace: s.tenant, Name: "x"}), metav1.CreateOptions{})
	_, pool := mallory.IPPools(s.NS).Get(ctx, "p", metav1.GetOptions{})
	for what, err := range map[string]error{"list": list, "create": create, "read a pool": pool, "delete": allocs.Delete(ctx, "p.10.0.0.2", metav1.DeleteOptions{})} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want Forbidden", what, err)
		}
	}
}

// Its container may run on for all of its terminationGracePeriodSeconds.
func (s *tenancy) forceDeletes(t *testing.T) {
	long := int64(24 * 3600)
	pod := rig.Pod(t, s.mallory, s.tenant, "runs-on", "one", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &long })
	name := s.holds(t, "one", 11, pod)
	s.remove(t, pod.Name)
	s.settled(t)
	s.wantHeld(t, name)
}

func (s *tenancy) saysItEnded(t *testing.T) {
	pod := rig.Pod(t, s.mallory, s.tenant, "ended", "one")
	name := s.holds(t, "one", 12, pod)
	for _, phase := range []string{"Failed", "Succeeded"} {
		if _, err := s.mallory.CoreV1().Pods(s.tenant).Patch(t.Context(), pod.Name, types.MergePatchType, []byte(`{"status":{"phase":"`+phase+`"}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	s.settled(t)
	s.wantHeld(t, name)
}

// mirror makes a pod look like the mirror of a static pod.
func mirror(uid string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Annotations = map[string]string{"kubernetes.io/config.mirror": uid, "kubernetes.io/config.hash": uid, "kubernetes.io/config.source": "file"}
	}
}

// Static pods of the namespace run on node one; mirrors of them, and of later ones of
// their names, are made up on both nodes, and deleted again. None frees an address.
// Of an address that is leaked, none but a pod on the very node delays the end.
func (s *tenancy) makesUpMirrors(t *testing.T) {
	const later = "fedcba9876543210fedcba9876543210"
	var names []string
	for i, tc := range []struct{ name, node, uid string }{
		{"etcd-one", "one", later}, {"dns-one", "two", later}, {"proxy-one", "two", static}, {"log-one", "one", static}, {"web-one", "one", gone}, {"odd-one", "one", ""},
	} {
		names = append(names, s.holds(t, "one", 21+i, v1alpha1.PodReference{Namespace: s.tenant, Name: tc.name, UID: static}))
		rig.Pod(t, s.mallory, s.tenant, tc.name, tc.node, mirror(tc.uid))
		s.settled(t)
		s.remove(t, tc.name)
	}
	s.settled(t)
	s.wantHeld(t, names...)

	leak := allocation("p", "10.0.0.29", "gone", v1alpha1.PodReference{Namespace: s.tenant, Name: "leaked", UID: static})
	rig.Pod(t, s.mallory, s.tenant, "leaked", "one", mirror(static))
	s.Claim(t, s.nodes["gone"], leak)
	s.wantGone(t, leak.Name)
}

// The allocation of a runtime that tells no UID is for a pod of the name: one on
// another node neither frees it at once nor keeps it.
func (s *tenancy) sameNameElsewhere(t *testing.T) {
	held := s.holds(t, "one", 31, v1alpha1.PodReference{Namespace: s.tenant, Name: "twin"})
	rig.Pod(t, s.mallory, s.tenant, "twin", "two")
	second := s.holds(t, "two", 131, v1alpha1.PodReference{Namespace: s.tenant, Name: "twin"})
	s.settled(t)
	s.wantHeld(t, held, second)

	rig.Pod(t, s.mallory, s.tenant, "keeper", "two")
	leak := allocation("p", "10.0.0.32", "gone", v1alpha1.PodReference{Namespace: s.tenant, Name: "keeper"})
	s.Claim(t, s.nodes["gone"], leak)
	s.wantGone(t, leak.Name)
}

// A pod that says to be owned by an allocation, or by a node: the garbage collector
// may delete the pod, nobody the address.
func (s *tenancy) ownerReferences(t *testing.T) {
	victim, err := s.IPAM.IPAllocations(s.NS).Get(t.Context(), "p.10.0.0.2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owners := []metav1.OwnerReference{
		{APIVersion: "nv-ipam.nvidia.com/v1alpha1", Kind: "IPAllocation", Name: victim.Name, UID: victim.UID},
		{APIVersion: "v1", Kind: "Node", Name: "one", UID: gone, Controller: new(true)},
	}
	pod := rig.Pod(t, s.mallory, s.tenant, "owned", "one", func(p *corev1.Pod) { p.OwnerReferences = owners })
	name := s.holds(t, "one", 41, pod)
	s.settled(t)
	s.wantHeld(t, name, victim.Name)
}

// The same name once more, on the same node, with another UID: the address of the
// earlier pod, which may still run down, stays for the node's hour; that of a node
// that is gone is freed.
func (s *tenancy) replaces(t *testing.T) {
	held := s.holds(t, "one", 51, rig.Pod(t, s.mallory, s.tenant, "again", "one"))
	s.remove(t, "again")
	rig.Pod(t, s.mallory, s.tenant, "again", "one")
	s.settled(t)
	s.wantHeld(t, held)

	leak := allocation("p", "10.0.0.52", "gone", v1alpha1.PodReference{Namespace: s.tenant, Name: "again", UID: gone})
	s.Claim(t, s.nodes["gone"], leak)
	s.wantGone(t, leak.Name)
}

// A finalizer keeps the pod's object, and so its own address, for as long as the
// object is there: the node's DEL frees it nevertheless.
func (s *tenancy) finalizers(t *testing.T) {
	pod := rig.Pod(t, s.mallory, s.tenant, "stays", "one", func(p *corev1.Pod) { p.Finalizers = []string{"example.com/stay"} })
	name := s.holds(t, "one", 61, pod)
	s.remove(t, pod.Name)
	s.settled(t)
	s.wantHeld(t, name)
	if err := s.nodes["one"].IPAllocations(s.NS).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	s.wantGone(t, name)
	leak := allocation("p", "10.0.0.62", "gone", pod) // it is not on that node
	s.Claim(t, s.nodes["gone"], leak)
	s.wantGone(t, leak.Name)
}
