// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// heldOn returns what an interface of the pod holds for each pool of its network; nil where
// it holds nothing. An earlier sandbox may have left something: what the pod's status has
// comes first.
func (w *why) heldOn(iface string, n *cni.Network) []*v1alpha1.IPAllocation {
	var all []*v1alpha1.IPAllocation
	for _, a := range w.holds {
		if a.Spec.InterfaceName == iface && (n.PoolsNamespace == "" || n.PoolsNamespace == a.Namespace) {
			all = append(all, a)
		}
	}
	slices.SortStableFunc(all, func(a, b *v1alpha1.IPAllocation) int { return cmp.Compare(w.rank(a), w.rank(b)) })
	out := make([]*v1alpha1.IPAllocation, len(n.Pools))
	for _, fits := range []func(v1alpha1.PoolReference, *v1alpha1.IPAllocation) bool{isFrom, w.isInDomain} {
		for i, ref := range n.Pools {
			if j := slices.IndexFunc(all, func(a *v1alpha1.IPAllocation) bool { return fits(ref, a) }); j >= 0 && out[i] == nil {
				out[i] = all[j]
				all = slices.Delete(all, j, j+1)
			}
		}
	}
	return out
}

// rank is 0 for what the pod's status has, and 1 for anything else.
func (w *why) rank(a *v1alpha1.IPAllocation) int {
	for _, addr := range worn(w.status, a.Spec.InterfaceName, "") {
		if addr.String() == a.Spec.Address {
			return 0
		}
	}
	return 1
}

// isFrom reports whether an address was taken from a pool that a network's reference is or was to.
func isFrom(ref v1alpha1.PoolReference, a *v1alpha1.IPAllocation) bool {
	return isOrWas(ref, a.Spec.PoolRef)
}

// isInDomain reports whether a pool that a network names gives an address of its domain, which
// may have been taken from another pool: a takeover leaves spec.poolRef as it is.
func (w *why) isInDomain(ref v1alpha1.PoolReference, a *v1alpha1.IPAllocation) bool {
	ref, err := w.record.expand(ref, w.pod.Spec.NodeName)
	return err == nil && slices.ContainsFunc(w.record.site(a.Namespace).pools, func(o *pool.Object) bool {
		addr, err := pool.ParseAddr(a.Spec.Address)
		return o.Ref == ref && o.Domain == a.DomainOf() && err == nil && o.Has(addr)
	})
}

// allocation says why the pod does not hold an address of a pool.
func (w *why) allocation(ctx context.Context, c *Chain, s ledger.Selection, q ask) error {
	owner, err := w.keeper(ctx, c, s, &q)
	if err != nil || c.Broken() != nil {
		return err
	}
	me := identity(w.pod, c.Interface, q.network.Name, owner)
	if !q.wanted.IsValid() {
		return w.anyAddress(ctx, c, q, me)
	}
	holder, err := ledger.Existing(w.ipam.IPAllocations(q.pool.Meta.Namespace).Get(ctx, v1alpha1.AllocationName(q.pool.Domain, q.wanted), metav1.GetOptions{}))
	if err != nil {
		return err
	}
	if holder == nil || yields(&holder.Spec, me) || w.joins(&holder.Spec, me) {
		w.notYet(c)
		return nil
	}
	v := w.tell(ctx, holder)
	asks := "the pod asks for"
	if owner.IsIPAMClaim() {
		asks = "the pod's IPAMClaim has"
	}
	c.broken(linkAllocation, fmt.Sprintf("%s, which %s, is %s (%s: %s)", q.wanted, asks, ledger.Describe(holder), v.State, v.Message), freeing(holder, v))
	return nil
}

// tell is the verdict on what keeps the pod from an address. Whoever may not see who has it is told
// so by release.
func (w *why) tell(ctx context.Context, a *v1alpha1.IPAllocation) judgement {
	l := w.live(w.record.site(a.Namespace).pools)
	v := l.tell(ctx, a)
	_ = l.wornBy(ctx, a, &v)
	return v
}

// keeper returns who keeps an address for the pod; nil if nobody does. The address that an
// IPAMClaim has is the wanted one.
func (w *why) keeper(ctx context.Context, c *Chain, s ledger.Selection, q *ask) (*v1alpha1.AllocationOwner, error) {
	if s.IPAMClaim != "" && q.network.Persistent {
		return w.ipamClaim(ctx, c, s.IPAMClaim, q)
	}
	ref := metav1.GetControllerOf(w.pod)
	if ref == nil || !q.pool.Sticky {
		return nil, nil
	}
	group, _, _ := strings.Cut(ref.APIVersion, "/")
	owner := &v1alpha1.AllocationOwner{APIGroup: group, Kind: ref.Kind, Namespace: w.pod.Namespace, Name: ref.Name, UID: ref.UID}
	if !owner.IsStatefulSet() {
		return nil, nil
	}
	return owner, nil
}

func (w *why) ipamClaim(ctx context.Context, c *Chain, name string, q *ask) (*v1alpha1.AllocationOwner, error) {
	claim, err := ledger.IPAMClaims{Client: w.ipam.RESTClient()}.Get(ctx, w.pod.Namespace, name)
	if refused(err) {
		w.notYet(c)
		return nil, nil
	}
	var addrs []netip.Addr
	if err != nil {
		err = fmt.Errorf("reading IPAMClaim %s/%s: %w", w.pod.Namespace, name, err)
	} else {
		addrs, err = claim.AddressesIn(q.network.Name)
	}
	if err != nil {
		reason, mend := explain(err.Error())
		c.broken(linkAllocation, reason, mend)
		return nil, nil
	}
	for _, a := range addrs {
		if a.Is4() == q.block.Subnet.Addr().Is4() {
			q.wanted = a
		}
	}
	return claim.Owner(), nil
}

// identity is what a container of the pod would claim, but for the address.
func identity(p *corev1.Pod, iface, network string, owner *v1alpha1.AllocationOwner) v1alpha1.IPAllocationSpec {
	return v1alpha1.IPAllocationSpec{
		NodeName: p.Spec.NodeName, PodRef: v1alpha1.PodReference{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		InterfaceName: iface, NetworkName: network, Owner: owner,
	}
}

// same reports whether a sticky allocation is of the identity of a container.
func same(s *v1alpha1.IPAllocationSpec, me v1alpha1.IPAllocationSpec) bool {
	me.PoolRef, me.Domain, me.Address = s.PoolRef, s.Domain, s.Address
	return s.SameIdentity(&me)
}

// yields reports whether an address that no container holds is given to a container: see the
// rules at yields in pkg/claim.
func yields(s *v1alpha1.IPAllocationSpec, me v1alpha1.IPAllocationSpec) bool {
	keeper := podKey(s.PodRef) == podKey(me.PodRef)
	switch {
	case s.Held():
		return false
	case s.IsSticky():
		keeper = same(s, me)
	case s.Rests():
		at := s.ReusableAt()
		return s.PodRef == me.PodRef || !at.IsZero() && !time.Now().Before(at)
	}
	return keeper && (s.Released() || s.PodRef.UID == "" || s.PodRef.UID == me.PodRef.UID)
}

// joins reports whether a virtual machine moves to the pod from the one that holds the address.
func (w *why) joins(s *v1alpha1.IPAllocationSpec, me v1alpha1.IPAllocationSpec) bool {
	return w.pod.Labels[ledger.LabelMigration] != "" && me.Owner.IsIPAMClaim() && same(s, me) && s.NodeName != me.NodeName
}

// anyAddress says why the pod has not got any address of a block.
func (w *why) anyAddress(ctx context.Context, c *Chain, q ask, me v1alpha1.IPAllocationSpec) error {
	site := &site{namespace: q.pool.Meta.Namespace, byPod: map[string][]*v1alpha1.IPAllocation{}, byDomain: map[string][]*v1alpha1.IPAllocation{}}
	reader := *w.Cluster
	reader.Namespace = site.namespace
	if err := reader.allocations(ctx, nil, site.add); err != nil {
		return err
	}
	spaces := append([]*pool.Block{q.block}, q.block.Overflow...)
	if lasting := q.block.Lasting(); me.Owner != nil && lasting != nil {
		spaces = []*pool.Block{lasting}
	}
	for _, a := range site.byDomain[q.pool.Domain] {
		if yields(&a.Spec, me) && (a.Spec.IsSticky() || inAny(spaces, a)) || w.joins(&a.Spec, me) {
			c.ok(linkBlock, "%s; %s is %s", q.block.Range, a.Spec.Address, ledger.Describe(a))
			w.notYet(c)
			return nil
		}
		if a.Spec.Held() && same(&a.Spec, me) {
			v := w.tell(ctx, a)
			c.broken(linkAllocation, fmt.Sprintf("%s: %s is %s (%s: %s)", keptInUse, a.Spec.Address, ledger.Describe(a), v.State, v.Message), freeing(a, v))
			return nil
		}
	}
	c.ok(linkBlock, "%s", q.block.Range)
	message := exhausted(q.pool, w.pod.Spec.NodeName, spaces, site.heldIn(q.pool))
	if message == "" {
		w.notYet(c)
		return nil
	}
	c.broken(linkAllocation, message, "end pods there, see what leaks (kubectl ipam leaks "+q.pool.Ref.Name+"), or give more room: "+edit(q.pool))
	return nil
}

// inAny reports whether one of some spaces has the address of an allocation.
func inAny(spaces []*pool.Block, a *v1alpha1.IPAllocation) bool {
	addr, err := pool.ParseAddr(a.Spec.Address)
	return err == nil && slices.ContainsFunc(spaces, func(b *pool.Block) bool { return b.Contains(addr) })
}

// exhausted says that no address is free where a node looks for one; "" if one is.
func exhausted(o *pool.Object, node string, spaces []*pool.Block, all []pool.Held) string {
	held := map[netip.Addr]bool{}
	for _, h := range all {
		held[h.Addr] = true
	}
	var last Free
	for _, space := range spaces {
		if last = freeIn(refOf(o), node, space, held); last.Free > 0 {
			return ""
		}
	}
	space := spaces[len(spaces)-1]
	where := fmt.Sprintf("node %s's block", node)
	if space.Shared {
		where = "the subnet"
	}
	if last.Size == 0 {
		return fmt.Sprintf("%s %s gives no address automatically in %s %s: all are excluded, or of an earlier specification", o.Ref.Kind, o.Ref.Name, where, last.Range)
	}
	are := "held"
	if slices.ContainsFunc(all, func(h pool.Held) bool { return h.Rests && space.Contains(h.Addr) }) {
		are = "held, or rest after their release (releaseCooldown)" // the plugin's words
	}
	return fmt.Sprintf("%s %s is exhausted: no free address in %s %s, %d of %d are %s", o.Ref.Kind, o.Ref.Name, where, last.Range, last.Size-last.Free, last.Size, are)
}

// notYet says that nothing here keeps the pod from its address: what the runtime said does.
func (w *why) notYet(c *Chain) {
	if !w.fails(c.Event, nil) && w.unheld(c) {
		return
	}
	if c.Event == nil {
		c.broken(linkAllocation, "no address is held, and nothing in the record speaks against one: the node has not asked yet, or asks in another cluster or namespace",
			fmt.Sprintf("kubectl describe pod -n %s %s; and /var/log/nv-ipam-cni.log on node %s", w.pod.Namespace, w.pod.Name, w.pod.Spec.NodeName))
		return
	}
	reason, mend := explain(c.Event.Message)
	c.broken(linkAllocation, reason, mend)
}

// compare compares the addresses that the interface holds with what the pod says that it has.
func (w *why) compare(c *Chain, held []*v1alpha1.IPAllocation) {
	have := worn(w.status, c.Interface, c.Network)
	if len(have) == 0 {
		message, mend := "the address is held, and annotation "+annotationStatus+" does not have it: the sandbox is not ready yet, or another network of the pod fails", fmt.Sprintf("kubectl describe pod -n %s %s", w.pod.Namespace, w.pod.Name)
		if c.Event != nil {
			reason, more := explain(c.Event.Message)
			message, mend = "the address is held, and the pod does not have it: "+reason, more
		}
		c.broken(linkStatus, message, mend)
		return
	}
	if w.unheld(c) {
		return
	}
	for _, a := range held {
		if !slices.ContainsFunc(have, func(addr netip.Addr) bool { return addr.String() == a.Spec.Address }) {
			c.broken(linkStatus, fmt.Sprintf("the pod holds %s, and annotation %s has only %s", a.Spec.Address, annotationStatus, joinAddrs(have)),
				fmt.Sprintf("start the pod again: kubectl delete pod -n %s %s", w.pod.Namespace, w.pod.Name))
			return
		}
	}
	if w.fails(c.Event, held) {
		reason, mend := explain(c.Event.Message)
		c.broken(linkStatus, fmt.Sprintf("the pod has %s by annotation %s, and its sandbox has failed since: %s", joinAddrs(have), annotationStatus, reason), mend)
		return
	}
	c.ok(linkStatus, "the pod has %s", joinAddrs(have))
}

// holding returns the allocation that an interface of the pod holds of an address; nil if it does not.
func (w *why) holding(iface string, addr netip.Addr) *v1alpha1.IPAllocation {
	for _, a := range w.holds {
		if a.Spec.Address == addr.String() && a.Spec.InterfaceName == iface {
			return a
		}
	}
	return nil
}

// has returns what the interface holds of what it has by the pod's status; nothing if it has an
// address that it does not hold.
func (w *why) has(c *Chain) (out []*v1alpha1.IPAllocation) {
	for _, addr := range worn(w.status, c.Interface, c.Network) {
		a := w.holding(c.Interface, addr)
		if a == nil {
			return nil
		}
		out = append(out, a)
	}
	return out
}

// unheld ends the chain if the interface has an address that it does not hold.
func (w *why) unheld(c *Chain) bool {
	for _, addr := range worn(w.status, c.Interface, c.Network) {
		if w.holding(c.Interface, addr) == nil {
			c.broken(linkStatus, fmt.Sprintf("annotation %s has %s, which the pod does not hold", annotationStatus, addr), "kubectl ipam who "+addr.String()+"; kubectl ipam check")
			return true
		}
	}
	return false
}

// fails reports whether what was said last about the pod's sandbox is about one that still fails: it
// was said after the addresses were taken, and no sandbox is ready.
func (w *why) fails(said *event, held []*v1alpha1.IPAllocation) bool {
	if said == nil || slices.ContainsFunc(held, func(a *v1alpha1.IPAllocation) bool { return !said.Last.After(ledger.Since(a)) }) {
		return false
	}
	return !slices.ContainsFunc(w.pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue
	})
}

// worn returns the addresses that the status of a pod has for an interface, or without one for
// a network.
func worn(all []status, iface, network string) (out []netip.Addr) {
	for _, st := range all {
		if st.Interface == iface || st.Interface == "" && st.Name == network {
			out = append(out, st.addresses()...)
		}
	}
	return out
}

func joinAddrs(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
