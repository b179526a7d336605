// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// hostile is what nobody calls anything.
const hostile = `<img src=x onerror="document.title='owned'">`

// scene is what the tests look at, in one namespace.
type scene struct {
	*rig.Cluster

	pod v1alpha1.PodReference // lives on worker-1
}

// newScene makes four pools:
//
//	rail1    blocks of 16 for three nodes. worker-1 holds three addresses: one for a pod that lives,
//	         one for a pod that is gone, one that is reserved; worker-3, which does not answer, one
//	storage  a /16 without blocks, of which some are held
//	v6       a /64 for each of two nodes
//	wrong    its specification is invalid
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{Cluster: rig.NewCluster(t, env)}
	s.RemoveNodes(t)
	for _, name := range []string{"worker-1", "worker-2", "worker-3"} {
		s.Node(t, name, nil)
	}
	t.Cleanup(func() { s.clear(t) })
	rig.IPPool(t, s.IPAM, s.NS, "rail1", v1alpha1.IPPoolSpec{
		Subnet: "10.1.0.0/24", PerNodeBlockSize: 16, Gateway: "10.1.0.1",
		Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.1.0.14", EndIP: "10.1.0.16"}},
	}, "worker-1", "worker-2", "worker-3")
	rig.IPPool(t, s.IPAM, s.NS, "storage", v1alpha1.IPPoolSpec{Subnet: "10.4.0.0/16"})
	rig.CIDRPool(t, s.IPAM, s.NS, "v6", v1alpha1.CIDRPoolSpec{CIDR: "fd00:10::/48", PerNodeNetworkPrefix: 64}, "worker-1", "worker-2")
	s.Pool(t, "wrong", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16, Gateway: "10.8.0.1"})
	s.pod = rig.Pod(t, s.Kube, s.NS, "train-0", "worker-1", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64) })
	s.claim(t, "rail1", "10.1.0.2", "worker-1", s.pod)
	s.claim(t, "rail1", "10.1.0.3", "worker-1", s.gone("train-7"))
	s.reserve(t, "rail1", "10.1.0.4")
	s.unreachable(t, "worker-3")
	s.claim(t, "rail1", "10.1.0.33", "worker-3", s.gone("train-9"))
	s.claim(t, "storage", "10.4.7.9", "worker-2", s.gone("db-0"))
	s.claimPrefix(t, "v6", "fd00:10::5", "worker-1", s.pod)
	s.claimPrefix(t, "v6", "fd00:10::1:5", "worker-1", s.pod)
	return s
}

// clear removes what other tests would see: the page shows all namespaces.
func (s *scene) clear(t *testing.T) {
	none := int64(0)
	ctx := context.Background()
	if err := errors.Join(
		s.Kube.CoreV1().Pods(s.NS).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{}),
		s.IPAM.IPAllocations(s.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		s.IPAM.IPPools(s.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		s.IPAM.CIDRPools(s.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
	); err != nil {
		t.Error(err)
	}
}

func (s *scene) claim(t *testing.T, pool, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	s.Claim(t, s.IPAM, rig.Allocation(pool, address, node, pod, "sandbox-"+pod.Name))
}

// claimPrefix is claim in a CIDRPool.
func (s *scene) claimPrefix(t *testing.T, pool, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	a := rig.Allocation(pool, address, node, pod, "sandbox-"+pod.Name)
	a.Name = v1alpha1.AllocationName(pool, netip.MustParseAddr(address))
	a.Spec.PoolRef.Kind = v1alpha1.PoolKindCIDRPool
	s.Claim(t, s.IPAM, a)
}

// reserve holds an address for nobody.
func (s *scene) reserve(t *testing.T, pool, address string) {
	t.Helper()
	s.Claim(t, s.IPAM, &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: pool + "." + address},
		Spec:       v1alpha1.IPAllocationSpec{PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool}, Address: address},
	})
}

// gone is a pod that the API server does not have.
func (s *scene) gone(name string) v1alpha1.PodReference {
	return v1alpha1.PodReference{Namespace: s.NS, Name: name, UID: rig.GoneUID}
}

func (s *scene) unreachable(t *testing.T, node string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Kube.CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// condition sets a condition on a pool, as the controller does.
func (s *scene) condition(t *testing.T, pool, kind string, status metav1.ConditionStatus, reason, message string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []metav1.Condition{
		{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.Now()},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.IPAM.IPPools(s.NS).Patch(t.Context(), pool, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// link is the address of a pool's view in the page.
func (s *scene) link(kind, name string) string {
	return fmt.Sprintf("#/pool/%s/%s/%s", s.NS, kind, name)
}
