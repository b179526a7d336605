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
}

// holds reports whether an allocation is for this pod, or for another one from which a machine
// moves to this one. Another pod of the same name is another pod.
func (w wearer) holds(a *v1alpha1.IPAllocation) bool {
	is := func(a *v1alpha1.IPAllocation) bool { return podKey(a.Spec.PodRef) == w.pod && w.is.Holds(a) }
	return a != nil && (is(a) || a.Spec.Next != nil && is(a.Promoted()))
}

// says is what is to be said where the record does not have it so.
func (w *wearer) says() string { return "pod " + w.pod + " has the address by its network-status" }

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
// of the name, and the pool that had the address may be gone, changed or named by a label that
// the node had before. So it is the best of
//
//	6  an allocation that the pod holds, of a pool that the network names or may have named
//	5  an allocation in a pool that the network names now
//	4  a pool that it names, with a block for the node
//	3  a pool that it names, and that a controller knows
//	2  a pool that it names
//	1  another pod's allocation, of a pool that the network names or may have named
//	0  none
//
// If only one namespace was looked at and the network names none, its pools may be elsewhere:
// nothing below 4 counts.
func (k *checking) place(n *cni.Network, w wearer) place {
	refs := k.named(n, w.is.Node)
	nowhere := place{name: fmt.Sprint(w.network, refs, w.addr)}
	best, rank := nowhere, 0
	take := func(s *site, name string, r int) {
		if r > rank {
			best, rank = place{s, name}, r
		}
	}
	for _, s := range k.sites {
		if n.PoolsNamespace != "" && n.PoolsNamespace != s.namespace {
			continue
		}
		for _, o := range s.pools {
			subnet, err := netip.ParsePrefix(o.Subnet)
			if err != nil || !subnet.Contains(w.addr) || !slices.Contains(refs, o.Ref) {
				continue
			}
			name := v1alpha1.AllocationName(o.Domain, w.addr)
			switch a := k.allocation(place{s, name}, w.addr); {
			case a == nil:
				take(s, name, 2+known(o, w.is.Node))
			case w.holds(a):
				take(s, name, 6)
			default:
				take(s, name, 5)
			}
		}
		for _, a := range k.held[s][w.addr] {
			switch {
			case !mayName(n, a.Spec.PoolRef):
			case w.holds(a):
				take(s, a.Name, 6)
			default:
				take(s, a.Name, 1)
			}
		}
	}
	if rank < 4 && k.report.Namespace != "" && n.PoolsNamespace == "" {
		return nowhere
	}
	return best
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
