// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// networks returns the networks whose addresses are this project's, by NAMESPACE/NAME; nil
// if they cannot be read.
func (k *checking) networks(ctx context.Context, c *Cluster) map[string]*cni.Network {
	nads, _, err := c.foreign(ctx, resourceNAD, "")
	if err != nil {
		k.skip("addresses in the pods' network-status", err)
		return nil
	}
	out := map[string]*cni.Network{}
	for i := range nads {
		meta := nads[i].Metadata
		if n, err := networkOf(&nads[i], ledger.Selection{Name: meta.Name}); err == nil && n != nil {
			out[meta.Namespace+"/"+meta.Name] = n
		}
	}
	return out
}

// wearer is a pod that has an address by its network-status.
type wearer struct{ pod, iface, network string }

// pods compares what pods have by their network-status with the record.
func (k *checking) pods(networks map[string]*cni.Network) {
	worn := map[*site]map[string][]wearer{}
	for _, key := range slices.Sorted(maps.Keys(k.record.pods)) {
		p := k.record.pods[key]
		if p.Ended || p.status == "" {
			continue
		}
		for _, st := range parseStatus(p.status) {
			n := networks[st.Name]
			if n == nil {
				continue
			}
			for _, addr := range st.addresses() {
				s, domain := k.place(n, p, addr)
				if s == nil {
					continue
				}
				name := v1alpha1.AllocationName(domain, addr)
				if worn[s] == nil {
					worn[s] = map[string][]wearer{}
				}
				worn[s][name] = append(worn[s][name], wearer{key, st.Interface, st.Name})
			}
		}
	}
	for s, names := range worn {
		k.worn(s, names)
	}
}

// place returns the record and the domain that an address of a pod should be held in; nil
// if none of the network's pools has it.
func (k *checking) place(n *cni.Network, p *pod, addr netip.Addr) (*site, string) {
	labels := map[string]string{}
	if node := k.nodes[p.Node]; node != nil {
		labels = node.Labels
	}
	for _, s := range k.sites {
		if n.PoolsNamespace != "" && n.PoolsNamespace != s.namespace {
			continue
		}
		for _, ref := range n.Pools {
			if pool.HasLabels(ref.Name) {
				name, err := pool.ExpandName(ref.Name, p.Node, labels)
				if err != nil {
					continue
				}
				ref.Name = name
			}
			for _, o := range s.pools {
				if subnet, err := netip.ParsePrefix(o.Subnet); o.Ref == ref && err == nil && subnet.Contains(addr) {
					return s, o.Domain
				}
			}
		}
	}
	return nil, ""
}

func (k *checking) worn(s *site, names map[string][]wearer) {
	held := map[string]*v1alpha1.IPAllocation{}
	for _, a := range s.allocations {
		held[a.Name] = a
	}
	for name, by := range names {
		_, addr, _ := v1alpha1.ParseAllocationName(name)
		a := held[name]
		if a != nil && a.Spec.Next != nil && !slices.ContainsFunc(by, func(w wearer) bool { return !hasPod(a, w.pod) }) {
			continue // a machine moves from one of them to the other
		}
		if len(by) > 1 {
			var texts, pods []string
			for _, w := range by {
				texts = append(texts, fmt.Sprintf("pod %s (interface %s of network %s)", w.pod, w.iface, w.network))
				pods = append(pods, w.pod)
			}
			right := "no allocation says whose it is"
			if a != nil {
				right = "by allocation " + a.Name + " it is pod " + podKey(a.Spec.PodRef) + "'s"
				if next := a.Spec.Next; next != nil {
					right += ", and moves to pod " + podKey(next.PodRef)
				}
			}
			k.find(classTwoPods, s.namespace, addr.String(), fmt.Sprintf("%d pods answer on it: %s; %s", len(by), strings.Join(pods, ", "), right),
				"annotation "+annotationStatus+" of "+strings.Join(texts, " and of "), "delete the pod whose it is not, so that it starts with another address: kubectl delete pod "+deleteOther(by, a))
			continue
		}
		w := by[0]
		ns, pod, _ := strings.Cut(w.pod, "/")
		proof := fmt.Sprintf("annotation %s of pod %s: interface %s of network %s has %s; ", annotationStatus, w.pod, w.iface, w.network, addr)
		mend := fmt.Sprintf("the node writes it again if the whole record was lost; else start the pod again: kubectl delete pod -n %s %s", ns, pod)
		switch {
		case a == nil:
			k.find(classNotRecorded, s.namespace, addr.String(), "pod "+w.pod+" has it, and no allocation: it may be given to another pod", proof+"there is no ipallocation "+name, mend)
		case a.Spec.ContainerID != "" && !hasPod(a, w.pod):
			k.find(classNotRecorded, s.namespace, addr.String(), "pod "+w.pod+" has it, and the allocation is pod "+podKey(a.Spec.PodRef)+"'s", proof+proofOf(a), mend)
		}
	}
}

// deleteOther names a pod that should not have an address.
func deleteOther(by []wearer, a *v1alpha1.IPAllocation) string {
	for _, w := range by {
		if a == nil || !hasPod(a, w.pod) {
			ns, name, _ := strings.Cut(w.pod, "/")
			return "-n " + ns + " " + name
		}
	}
	return "NAME"
}

// Other managers' objects.
const (
	resourceWhereaboutsPools        = "whereabouts.cni.cncf.io/v1alpha1/ippools"
	resourceWhereaboutsReservations = "whereabouts.cni.cncf.io/v1alpha1/overlappingrangeipreservations"
)

// others looks for addresses that whereabouts gives as well.
func (k *checking) others(ctx context.Context, c *Cluster) {
	theirs := map[netip.Addr]string{} // what proves it
	pools, _, err := c.foreign(ctx, resourceWhereaboutsPools, "")
	if err != nil {
		k.skip("whereabouts' pools", err)
	}
	for _, p := range pools {
		readWhereabouts(p, theirs)
	}
	reservations, _, err := c.foreign(ctx, resourceWhereaboutsReservations, "")
	if err != nil {
		k.skip("whereabouts' reservations", err)
	}
	for _, r := range reservations {
		var spec struct {
			PodRef string `json:"podref"`
		}
		_ = json.Unmarshal(r.Spec, &spec)
		if addr, ok := reservedAddress(r.Metadata.Name); ok && theirs[addr] == "" {
			theirs[addr] = fmt.Sprintf("overlappingrangeipreservation %s/%s of pod %s", r.Metadata.Namespace, r.Metadata.Name, spec.PodRef)
		}
	}
	if len(theirs) == 0 {
		return
	}
	for _, s := range k.sites {
		for _, a := range s.allocations {
			addr, err := pool.ParseAddr(a.Spec.Address)
			if proof := theirs[addr]; err == nil && proof != "" {
				k.find(classOtherManager, s.namespace, a.Name, "whereabouts has given the address as well: if both are one network, two pods answer on it",
					"whereabouts' "+proof+"; "+proofOf(a), "move the networks of one of the two managers to another range, or start the pod of one again: kubectl delete pod "+podName(a.Spec.PodRef))
			}
		}
	}
}

// readWhereabouts enters the addresses of one of its pools: spec.allocations has them by
// their distance from the network address.
func readWhereabouts(p object, into map[netip.Addr]string) {
	var spec struct {
		Range       string `json:"range"`
		Allocations map[string]struct {
			PodRef string `json:"podref"`
		} `json:"allocations"`
	}
	if json.Unmarshal(p.Spec, &spec) != nil {
		return
	}
	subnet, err := netip.ParsePrefix(spec.Range)
	if err != nil {
		return
	}
	for text, holder := range spec.Allocations {
		distance, ok := new(big.Int).SetString(text, 10)
		if !ok || distance.Sign() < 0 {
			continue
		}
		first := subnet.Masked().Addr()
		sum := new(big.Int).Add(new(big.Int).SetBytes(first.AsSlice()), distance)
		if sum.BitLen() > first.BitLen() {
			continue
		}
		addr, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, first.BitLen()/8)))
		into[addr] = fmt.Sprintf("pool %s/%s, allocation %s of pod %s", p.Metadata.Namespace, p.Metadata.Name, text, holder.PodRef)
	}
}

// reservedAddress reads the address at the end of the name of a reservation, in which ":"
// is "-" and a network's name may come first.
func reservedAddress(name string) (netip.Addr, bool) {
	for rest := name; rest != ""; {
		if a, err := netip.ParseAddr(strings.ReplaceAll(rest, "-", ":")); err == nil {
			return a, true
		}
		_, rest, _ = strings.Cut(rest, "-")
	}
	return netip.Addr{}, false
}
