// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// wearer is a pod that has an address by its network-status.
type wearer struct {
	pod   string // NAMESPACE/NAME
	is    *pod
	iface string
	// network is the NetworkAttachmentDefinition, NAMESPACE/NAME.
	network string
	addr    netip.Addr
	// lost is true if the network does not name the pool of the address any more.
	lost bool
}

// where says on which interface of which network the address is.
func (w wearer) where() string {
	out := "interface " + w.iface + " of network " + w.network
	if w.lost {
		out += ", which does not name the pool any more"
	}
	return out
}

// holds reports whether an allocation is for this pod, or for another one from which a machine
// moves to this one. Another pod of the same name is another pod.
func (w wearer) holds(a *v1alpha1.IPAllocation) bool {
	is := func(a *v1alpha1.IPAllocation) bool { return podKey(a.Spec.PodRef) == w.pod && w.is.Holds(a) }
	return a != nil && (is(a) || a.Spec.Next != nil && is(a.Promoted()))
}

// says is what is to be said where the record does not have it so.
func (w *wearer) says() string { return "pod " + w.pod + " has the address by its network-status" }

// end is how the pod is ended, so that it starts again.
func (w *wearer) end() string {
	if w.is != nil && w.is.Mirrors != "" {
		return "it is a static pod, and its kubelet starts it whatever happens to the pod here: move its manifest away on node " + w.is.Node + " and back"
	}
	return deletePod(w.pod)
}

// place is where an address that a pod has is recorded, or should be.
type place struct {
	// site is nil if neither a pool nor an allocation says where.
	site *site
	// name is that of the allocation; without a site, it says which network and address it is.
	name string
}

// held are the allocations of a site by the address in their name, which decides.
type held map[netip.Addr][]*v1alpha1.IPAllocation

func (s *site) byAddress() held {
	out := make(held, len(s.allocations))
	for _, a := range s.allocations {
		if _, addr, err := v1alpha1.ParseAllocationName(a.Name); err == nil {
			out[addr] = append(out[addr], a)
		}
	}
	return out
}

// place returns where an address of a pod is recorded. More than one namespace may have a pool
// of the name, and the pool that had the address may be gone or changed, or named by a label that
// the node had before, or by a network that was edited or deleted since. So it is the best of
//
//	10  an allocation that the pod holds, of a pool that the network names or may have named
//	 9  an allocation that the pod's interface holds
//	 8  an allocation in a pool that the network names now
//	 7  a pool that it names, with a block for the node
//	 6  a pool that it names, and that a controller knows
//	 5  a pool that it names
//	 4  another pod's allocation, of a pool that the network may have named
//	 3  a pool that it may have named
//	 2  any other allocation of the address, if there is one
//	 1  any other pool that has the address, if there is one. If the network is gone, it may have
//	    been another manager's: this does not count
//	 0  none
//
// If only one namespace was looked at and the network names none, its pools may be elsewhere:
// nothing below 8 counts. lost says that the network does not name the pool any more.
func (k *checking) place(n *cni.Network, w wearer) (at place, lost bool) {
	refs := k.named(n, w.is.Node)
	var best bestPlace
	for _, s := range k.sites {
		possible := n.PoolsNamespace == "" || n.PoolsNamespace == s.namespace
		for _, o := range s.pools {
			if possible && o.Has(w.addr) {
				at := place{s, v1alpha1.AllocationName(o.Domain, w.addr)}
				best.take(at, o.Ref, rankOfPool(n, o, slices.Contains(refs, o.Ref), k.allocation(at, w.addr), w))
			}
		}
		for _, a := range k.held[s][w.addr] {
			best.take(place{s, a.Name}, a.Spec.PoolRef, rankOfAllocation(possible, possible && mayName(n, a.Spec.PoolRef), a, w))
		}
	}
	if best.rank == 0 || best.vague || best.rank < 8 && k.report.Namespace != "" && n.PoolsNamespace == "" {
		return place{name: fmt.Sprint(w.network, refs, w.addr)}, false
	}
	return best.place, best.rank < 5 && !slices.Contains(refs, best.of)
}

// rankOfPool is the rank of what a pool has for an address; a is what it has there now.
func rankOfPool(n *cni.Network, o *pool.Object, named bool, a *v1alpha1.IPAllocation, w wearer) int {
	switch {
	case named && w.holds(a):
		return 10
	case named && a != nil:
		return 8
	case named:
		return 5 + known(o, w.is.Node)
	case a != nil: // has a rank of its own
		return 0
	case mayName(n, o.Ref):
		return 3
	case len(n.Pools) > 0:
		return 1
	}
	return 0
}

// rankOfAllocation is the rank of an allocation of the address. possible says that the network's
// pools may be in its namespace, named that its pool may be one of these.
func rankOfAllocation(possible, named bool, a *v1alpha1.IPAllocation, w wearer) int {
	switch {
	case named && w.holds(a):
		return 10
	case w.holds(a) && w.iface == a.Spec.InterfaceName:
		return 9
	case named:
		return 4
	case possible:
		return 2
	}
	return 0
}

// bestPlace is the place of the highest rank.
type bestPlace struct {
	place
	rank int
	of   v1alpha1.PoolReference
	// vague is true if there are several of a rank that counts only if there is one.
	vague bool
}

func (b *bestPlace) take(at place, of v1alpha1.PoolReference, rank int) {
	switch {
	case rank > b.rank:
		*b = bestPlace{place: at, rank: rank, of: of}
	case rank == b.rank && rank <= 2 && at != b.place:
		b.vague = true
	}
}

// allocation returns the allocation at a place, nil if there is none.
func (k *checking) allocation(at place, addr netip.Addr) *v1alpha1.IPAllocation {
	for _, a := range k.held[at.site][addr] {
		if a.Name == at.name {
			return a
		}
	}
	return nil
}

// named returns the pools that a network names on a node.
func (r *record) named(n *cni.Network, node string) (refs []v1alpha1.PoolReference) {
	for _, ref := range n.Pools {
		if ref, err := r.expand(ref, node); err == nil {
			refs = append(refs, ref)
		}
	}
	return refs
}

// expand replaces the labels in the name of a pool by their values on a node.
func (r *record) expand(ref v1alpha1.PoolReference, node string) (v1alpha1.PoolReference, error) {
	if !pool.HasLabels(ref.Name) {
		return ref, nil
	}
	var labels map[string]string
	if n := r.nodes[node]; n != nil {
		labels = n.Labels
	}
	name, err := pool.ExpandName(ref.Name, node, labels)
	return v1alpha1.PoolReference{Kind: ref.Kind, Name: name}, err
}

// mayName reports whether a network names a pool, on whichever node.
func mayName(n *cni.Network, to v1alpha1.PoolReference) bool {
	return slices.ContainsFunc(n.Pools, func(ref v1alpha1.PoolReference) bool { return isOrWas(ref, to) })
}

// isOrWas reports whether a reference of a network is that to a pool on some node, with the
// labels that it has or had.
func isOrWas(ref, to v1alpha1.PoolReference) bool {
	return to == ref || to.Kind == ref.Kind && pool.HasLabels(ref.Name) && pool.MatchesName(ref.Name, to.Name)
}

// known says how well a pool is known to a node: 2 if the node has a block of it, 1 if a
// controller has written to it, 0 if nobody has.
func known(o *pool.Object, node string) int {
	switch {
	case slices.ContainsFunc(o.Blocks(), func(b pool.Assignment) bool { return b.Node == node }):
		return 2
	case o.Allocations != nil || len(o.Status.Conditions) > 0:
		return 1
	}
	return 0
}

// poolsOn returns the namespace in which a node looks for the pools of a network, as far as
// can be known from here: a node's nv-ipam.conf says it. holds is what the pod holds. It is ""
// if nothing tells. It is the first namespace with the best of
//
//	5  an allocation that the pod holds, of a pool that the network names or may have named
//	4  a pool that it names, with a block for the node
//	3  a pool that it names, and that a controller knows
//	2  any pool that a controller knows: where the pool should be
//	1  a pool that it names
func (r *record) poolsOn(n *cni.Network, node string, holds []*v1alpha1.IPAllocation) string {
	if n.PoolsNamespace != "" {
		return n.PoolsNamespace
	}
	refs := r.named(n, node)
	best, rank := "", 0
	for _, s := range r.sites {
		own := 0
		if slices.ContainsFunc(holds, func(a *v1alpha1.IPAllocation) bool { return a.Namespace == s.namespace && mayName(n, a.Spec.PoolRef) }) {
			own = 5
		}
		for _, o := range s.pools {
			switch k := known(o, node); {
			case slices.Contains(refs, o.Ref) && k > 0:
				own = max(own, 2+k)
			case slices.Contains(refs, o.Ref):
				own = max(own, 1)
			case k > 0:
				own = max(own, 2)
			}
		}
		if own > rank {
			best, rank = s.namespace, own
		}
	}
	return best
}
