// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// evidence is what the caches say of an allocation.
type evidence struct {
	caches *caches
	places *places
}

func (e *evidence) of(a *v1alpha1.IPAllocation) reclaim.Evidence {
	out := reclaim.Evidence{Pod: e.pod(a), Others: e.others(a)}
	if node, found := e.caches.nodes.get(a.Spec.NodeName); found {
		out.Node = nodeEvidence(node)
	}
	out.OptOut, out.OwnerGone = e.caches.optOutOf(a.DomainOf()), e.caches.withoutOwner(a)
	return out
}

func (e *evidence) pod(a *v1alpha1.IPAllocation) *reclaim.Pod {
	obj, found := e.caches.pods.get(podKey(a))
	if !found {
		return nil
	}
	pod := reclaim.PodOf(obj)
	if p, known := e.places.get(pod.UID); known {
		pod.Placed, pod.Node, pod.Ended = true, p.node, p.ended
	}
	return pod
}

// others are the allocations that name the same pod as a; of what a claim keeps without a
// container, those of the claim, whose pods have other names.
func (e *evidence) others(a *v1alpha1.IPAllocation) []*v1alpha1.IPAllocation {
	if a.Spec.Owner.IsIPAMClaim() && !a.Spec.Held() {
		return e.caches.allocations.by(byOwner, string(a.Spec.Owner.UID))
	}
	return e.caches.allocations.by(byPod, podKey(a))
}

// confirmation is what the API server says of an allocation by now: what frees an
// address rests on it.
type confirmation struct {
	kube kubernetes.Interface
	meta metadata.Interface
	ipam clientv1alpha1.NvIpamV1alpha1Interface

	claims ledger.IPAMClaims
	// inDomain returns the pools of a domain.
	inDomain func(domain string) []v1alpha1.PoolReference
	// keeps reports whether a reservation names the address of an allocation.
	keeps func(*v1alpha1.IPReservation, *v1alpha1.IPAllocation) bool
	// pool returns a pool, nil if there is none.
	pool func(v1alpha1.PoolReference) *pool.Object
}

// of returns the evidence. Others are the allocations that name the same pod, as the
// cache has them.
func (c *confirmation) of(ctx context.Context, a *v1alpha1.IPAllocation, others []*v1alpha1.IPAllocation) (e reclaim.Evidence, err error) {
	if e.Pod, err = c.pod(ctx, a.Spec.PodRef); err != nil {
		return e, fmt.Errorf("confirm that the pod is gone: %w", err)
	}
	if e.Node, err = c.node(ctx, a.Spec.NodeName); err != nil {
		return e, fmt.Errorf("confirm the state of the node: %w", err)
	}
	e.Others = others
	if err := c.later(ctx, a, &e); err != nil {
		return e, fmt.Errorf("confirm that there is a later sandbox: %w", err)
	}
	pools := c.inDomain(a.DomainOf())
	if !slices.Contains(pools, a.Spec.PoolRef) { // the cache may be behind
		pools = append(pools, a.Spec.PoolRef)
	}
	for _, ref := range pools {
		out, err := c.optOutOf(ctx, ref, a.Namespace)
		if err != nil {
			return e, fmt.Errorf("confirm that the pool allows it: %w", err)
		}
		e.OptOut = cmp.Or(e.OptOut, out)
	}
	return e, nil
}

// optOutOf returns what a pool says against reclaiming. It asks by a list, which the API server
// answers from its memory, up to date: a get reads half a megabyte of etcd in a large cluster,
// for each address that is freed.
func (c *confirmation) optOutOf(ctx context.Context, ref v1alpha1.PoolReference, namespace string) (string, error) {
	named := fields.OneTermEqualSelector("metadata.name", ref.Name).String()
	list, err := c.meta.Resource(pool.Resource(ref.Kind)).Namespace(namespace).List(ctx, metav1.ListOptions{FieldSelector: named})
	if err != nil {
		return "", err
	}
	for _, found := range list.Items {
		if found.Name == ref.Name {
			return reclaim.OptOutOf(found.Annotations), nil
		}
	}
	return "", nil
}

// pod returns what the API server has of a pod, nil if it has none. It reads
// the whole pod, which alone says where it is and whether it has ended.
func (c *confirmation) pod(ctx context.Context, ref v1alpha1.PodReference) (*reclaim.Pod, error) {
	if !reclaim.Possible(ref) { // the API server would refuse the question
		return nil, nil
	}
	pod, err := ledger.Existing(c.kube.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{}))
	if pod == nil || err != nil {
		return nil, err
	}
	p := reclaim.PodOf(pod)
	p.Placed, p.Node = true, pod.Spec.NodeName
	p.Ended = pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return p, nil
}

// ownerGone confirms that the owner of an allocation does not exist, or keeps the address
// no more.
func (c *confirmation) ownerGone(ctx context.Context, a *v1alpha1.IPAllocation) (gone bool, err error) {
	switch owner := a.Spec.Owner; {
	case owner.IsStatefulSet():
		gone, err = c.workloadGone(ctx, a)
	case owner.IsIPAMClaim():
		gone, err = c.claimGone(ctx, owner)
	case isReservation(owner):
		var res *v1alpha1.IPReservation
		res, err = ledger.Existing(c.ipam.IPReservations(owner.Namespace).Get(ctx, owner.Name, metav1.GetOptions{}))
		gone = res == nil || !c.keeps(res, a)
	}
	if err != nil {
		return false, fmt.Errorf("confirm that the owner is gone: %w", err)
	}
	return gone, nil
}

// claimGone reports whether an IPAMClaim does not exist any more. One that is being deleted
// does: it waits for whoever uses it.
func (c *confirmation) claimGone(ctx context.Context, owner *v1alpha1.AllocationOwner) (bool, error) {
	claim, err := ledger.Existing(c.claims.Get(ctx, owner.Namespace, owner.Name))
	if errors.Is(err, ledger.ErrNoIPAMClaims) { // says nothing about this one
		return false, nil
	}
	return err == nil && (claim == nil || claim.Metadata.UID != owner.UID), err
}

// workloadGone reports whether the StatefulSet that keeps an address is gone, or being
// deleted, or was scaled down to fewer pods if the pool says that it keeps none then; or the
// pool is not sticky any more.
func (c *confirmation) workloadGone(ctx context.Context, a *v1alpha1.IPAllocation) (bool, error) {
	owner := a.Spec.Owner
	set, err := ledger.Existing(c.kube.AppsV1().StatefulSets(owner.Namespace).Get(ctx, owner.Name, metav1.GetOptions{}))
	switch {
	case err != nil:
		return false, err
	case set == nil || set.UID != owner.UID || set.DeletionTimestamp != nil: // what is being deleted starts no pods
		return true, nil
	}
	pools := c.keepers(a)
	keepsWhenScaled := func(p *pool.Object) bool { return p.StickyWhenScaled != v1alpha1.StickyDelete }
	sticky := slices.DeleteFunc(slices.Clone(pools), func(p *pool.Object) bool { return !p.Sticky })
	switch {
	case len(pools) == 0: // it may come again
		return false, nil
	case len(sticky) == 0:
		return true, nil
	case slices.ContainsFunc(sticky, keepsWhenScaled):
		return false, nil
	}
	text, _ := strings.CutPrefix(a.Spec.PodRef.Name, owner.Name+"-")
	ordinal, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return false, nil // no pod of a StatefulSet has such a name: it is let alone
	}
	first := int64(0)
	if set.Spec.Ordinals != nil {
		first = int64(set.Spec.Ordinals.Start)
	}
	replicas := int64(1) // what the API server sets if it is not set
	if set.Spec.Replicas != nil {
		replicas = int64(*set.Spec.Replicas)
	}
	return ordinal < first || ordinal >= first+replicas, nil
}

// keepers returns the pool that an address was taken from, or, if another one has replaced that,
// those of the domain that have the address.
func (c *confirmation) keepers(a *v1alpha1.IPAllocation) (pools []*pool.Object) {
	if p := c.pool(a.Spec.PoolRef); p != nil {
		return []*pool.Object{p}
	}
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil {
		return nil
	}
	for _, ref := range c.inDomain(a.DomainOf()) {
		if p := c.pool(ref); p != nil && p.Has(addr) {
			pools = append(pools, p)
		}
	}
	return pools
}

// keptByNobody confirms that nothing keeps an allocation that no container holds. Others are
// the allocations that name the same pod, as the cache has them.
func (c *confirmation) keptByNobody(ctx context.Context, a *v1alpha1.IPAllocation, others []*v1alpha1.IPAllocation) (bool, error) {
	if a.Spec.Owner == nil || a.Spec.IsSticky() && a.Spec.IsReserved() && untakenIn(a) <= 0 {
		return true, nil
	}
	if gone, err := c.ownerGone(ctx, a); err != nil || gone {
		return gone, err
	}
	e := reclaim.Evidence{Others: others}
	instead := e.Instead(a)
	if instead == nil {
		return false, nil
	}
	now, err := ledger.Existing(c.ipam.IPAllocations(a.Namespace).Get(ctx, instead.Name, metav1.GetOptions{}))
	if err != nil || now == nil {
		return false, err
	}
	e.Others = []*v1alpha1.IPAllocation{now}
	return e.Instead(a) != nil, nil
}

func (c *confirmation) node(ctx context.Context, name string) (*reclaim.Node, error) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 { // likewise
		return nil, nil
	}
	node, err := ledger.Existing(c.kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}))
	if node == nil || err != nil {
		return nil, err
	}
	return nodeEvidence(node), nil
}

// later confirms those of e's other sandboxes that are a reason to free: each is read
// again, and dropped if its address is another's by now. A sandbox that the cache lacks
// could only be one more reason.
func (c *confirmation) later(ctx context.Context, a *v1alpha1.IPAllocation, e *reclaim.Evidence) error {
	confirmed := map[*v1alpha1.IPAllocation]bool{}
	for later := e.LaterSandbox(a); later != nil && !confirmed[later]; later = e.LaterSandbox(a) {
		now, err := ledger.Existing(c.ipam.IPAllocations(a.Namespace).Get(ctx, later.Name, metav1.GetOptions{}))
		if err != nil {
			return err
		}
		e.Others = slices.DeleteFunc(e.Others, func(o *v1alpha1.IPAllocation) bool { return o == later })
		if now != nil && now.UID == later.UID {
			e.Others = append(e.Others, now)
			confirmed[now] = true
		}
	}
	return nil
}

func nodeEvidence(node *corev1.Node) *reclaim.Node {
	return &reclaim.Node{Created: node.CreationTimestamp, State: nodeState(node)}
}

func nodeState(node *corev1.Node) reclaim.NodeState {
	ready := ""
	for _, condition := range readiness(node) {
		ready = string(condition.Status)
	}
	var taints []string
	for _, t := range node.Spec.Taints {
		taints = append(taints, t.Key)
	}
	return reclaim.StateOf(ready, taints)
}
