// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// networks are the NetworkAttachmentDefinitions, of which pools are named.
type networks struct {
	nads map[string]*object // by NAMESPACE/NAME; nil if they cannot be read
	read map[request]*cni.Network
}

// request is what a pod asks of a network, as far as it may say which pools that is.
type request struct{ network, args string }

func (k *checking) readNetworks(ctx context.Context, c *Cluster) {
	nads, _, err := c.foreign(ctx, resourceNAD, "")
	if err != nil {
		k.skip("addresses in the pods' network-status", err)
		return
	}
	k.networks = networks{map[string]*object{}, map[request]*cni.Network{}}
	for i := range nads {
		k.networks.nads[nads[i].Metadata.Namespace+"/"+nads[i].Metadata.Name] = &nads[i]
	}
}

// network returns the network that a pod's status names, as the pod asks for it; nil if
// addresses are not this project's concern there. One that is gone names no pool.
func (k *checking) network(w wearer) *cni.Network {
	nad, there := k.networks.nads[w.network]
	switch {
	case !there && strings.Contains(w.network, "/"):
		return &cni.Network{}
	case nad == nil:
		return nil
	}
	args := w.args()
	asked := request{w.network, string(args)}
	n, found := k.networks.read[asked]
	if !found && configOf(nad) == "" {
		k.skip("addresses of network "+w.network, errors.New("it has no spec.config: its configuration is a file on the node"))
		k.networks.nads[w.network] = nil // said once, whatever pods ask for
		return nil
	}
	if !found {
		var err error
		if n, err = networkOf(nad, ledger.Selection{Name: nad.Metadata.Name, Args: args}); err != nil {
			k.skip("addresses of network "+w.network+", as pod "+w.pod+" asks for it", err)
		}
		k.networks.read[asked] = n
	}
	return n
}

// args returns the cni-args that a pod has for a network in its status.
func (w wearer) args() (args json.RawMessage) {
	namespace, _, _ := strings.Cut(w.pod, "/")
	all, _ := ledger.ParseNetworks(w.is.networks, namespace) // one that cannot be read says nothing
	for _, s := range all {
		switch {
		case s.String() != w.network:
		case s.Interface == w.iface:
			return s.Args
		case args == nil: // multus has numbered the interfaces in another way
			args = s.Args
		}
	}
	return args
}

// index finds what is held, and which pods have which address by their network-status.
func (k *checking) index() {
	k.held, k.all = map[*site]held{}, map[netip.Addr][]wearer{}
	for _, s := range k.sites {
		k.held[s] = s.byAddress()
	}
	for _, key := range slices.Sorted(maps.Keys(k.record.pods)) {
		p := k.record.pods[key]
		if p.Ended || p.status == "" {
			continue
		}
		for _, st := range parseStatus(p.status) {
			for _, addr := range st.addresses() {
				k.all[addr] = append(k.all[addr], wearer{pod: key, is: p, iface: st.Interface, network: st.Name, addr: addr})
			}
		}
	}
}

// wornBy returns who has the address of an allocation, and holds no other one of that address; nil
// if nobody does. Of which network that is does not matter: it may have been edited since.
func (k *checking) wornBy(a *v1alpha1.IPAllocation) *wearer {
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil {
		return nil
	}
	for _, w := range k.all[addr] {
		other := slices.ContainsFunc(k.sites, func(s *site) bool {
			return slices.ContainsFunc(k.held[s][addr], func(o *v1alpha1.IPAllocation) bool { return o.UID != a.UID && w.holds(o) })
		})
		if !other && (w.holds(a) || !k.gaveBack(w)) {
			return &w
		}
	}
	return nil
}

// gaveBack reports whether a pod that holds nothing has released its addresses: the kubelet stops a
// pod before it removes the object.
func (k *checking) gaveBack(w wearer) bool {
	node := nodeEvidence(k.nodes[w.is.Node])
	return w.is.Deleting && node != nil && node.State == reclaim.Answers
}

// wear finds where what pods have is recorded.
func (k *checking) wear() {
	k.worn, k.seen = map[place][]wearer{}, map[wearing]bool{}
	if k.networks.nads == nil {
		return
	}
	for _, addr := range slices.SortedFunc(maps.Keys(k.all), netip.Addr.Compare) {
		for _, w := range k.all[addr] {
			if n := k.network(w); n != nil {
				k.wears(n, w)
			}
		}
	}
}

func (k *checking) wears(n *cni.Network, w wearer) {
	at, lost := k.place(n, w)
	if w.lost = lost; at.site == nil && len(n.Pools) == 0 { // nobody knows whose it is
		return
	}
	if !w.holds(k.allocation(at, w.addr)) && k.gaveBack(w) {
		return
	}
	if key := (wearing{at, w}); !k.seen[key] {
		k.seen[key] = true
		k.worn[at] = append(k.worn[at], w)
	}
}

// pods compares what pods have by their network-status with the record.
func (k *checking) pods() {
	for at, by := range k.worn {
		a := k.allocation(at, by[0].addr)
		switch others := notHolding(by, a); {
		case a != nil && a.Spec.Next != nil && len(others) == 0:
			// a machine moves from one of them to the other
		case len(by) > 1:
			k.onMany(at, by, others, a)
		case at.site != nil && (len(others) > 0 || !a.Spec.Held()):
			k.notRecorded(at, by[0], a)
		}
	}
}

// notHolding returns those that do not hold an allocation.
func notHolding(by []wearer, a *v1alpha1.IPAllocation) (out []wearer) {
	for _, w := range by {
		if !w.holds(a) {
			out = append(out, w)
		}
	}
	return out
}

// podsOf returns the pods, each once.
func podsOf(by []wearer) (pods []string) {
	for _, w := range by {
		pods = append(pods, w.pod)
	}
	slices.Sort(pods)
	return slices.Compact(pods)
}

// suspect returns what a finding about an address of pods rests on.
func (at place) suspect(by []wearer) *suspect {
	out := &suspect{address: by[0].addr.String(), pods: podsOf(by)}
	if at.site != nil {
		out.namespace, out.allocation = at.site.namespace, at.name
	}
	return out
}

func (k *checking) onMany(at place, by, others []wearer, a *v1alpha1.IPAllocation) {
	var texts []string
	for _, w := range by {
		texts = append(texts, fmt.Sprintf("pod %s (%s)", w.pod, w.where()))
	}
	proof := "annotation " + annotationStatus + " of " + pool.Enumerate(texts)
	namespace, _, _ := strings.Cut(by[0].network, "/")
	if at.site != nil {
		namespace = at.site.namespace
	}
	pods := podsOf(by)
	message, mend := fmt.Sprintf("pod %s has it on %d interfaces; an address is given to one", pods[0], len(by)), "ask for another address on one of them, in the pod's template, and start the pod again: "+by[0].end()
	if len(pods) > 1 {
		message = fmt.Sprintf("%d pods answer on it: %s; %s", len(pods), pool.Enumerate(pods), whose(a))
		other := append(others, by...)[0]
		mend = "delete the pod whose it is not, so that it starts with another address: " + other.end()
	}
	k.find(classTwoPods, namespace, by[0].addr.String(), message, proof, mend).suspect = at.suspect(by)
}

// whose says what the record says about an address.
func whose(a *v1alpha1.IPAllocation) string {
	switch {
	case a == nil:
		return "no allocation says whose it is"
	case !a.Spec.Held():
		return "by allocation " + a.Name + " it is " + ledger.Describe(a)
	}
	right := "by allocation " + a.Name + " it is pod " + podKey(a.Spec.PodRef) + "'s"
	if next := a.Spec.Next; next != nil {
		right += ", and moves to pod " + podKey(next.PodRef)
	}
	return right
}

func (k *checking) notRecorded(at place, w wearer, a *v1alpha1.IPAllocation) {
	message := "pod " + w.pod + " has it, and "
	proof := fmt.Sprintf("annotation %s of pod %s: %s has %s; ", annotationStatus, w.pod, w.where(), w.addr)
	switch {
	case a == nil:
		message, proof = message+"no allocation: it may be given to another pod", proof+"there is no ipallocation "+at.name
	case !a.Spec.Held():
		message, proof = message+"the allocation is no container's, but "+ledger.Describe(a), proof+proofOf(a)
	case podKey(a.Spec.PodRef) == w.pod:
		message, proof = message+"the allocation is an earlier pod's of the name: it may be given to another pod", proof+proofOf(a)
	default:
		message, proof = message+"the allocation is pod "+podKey(a.Spec.PodRef)+"'s", proof+proofOf(a)
	}
	k.find(classNotRecorded, at.site.namespace, w.addr.String(), message, proof,
		"the node writes it again if the whole record was lost; else start the pod again: "+w.end()).suspect = at.suspect([]wearer{w})
}

// deletePod is the command that ends a pod, NAMESPACE/NAME.
func deletePod(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return "kubectl delete pod -n " + namespace + " " + name
}

// Other managers' objects.
const (
	resourceWhereaboutsPools        = "whereabouts.cni.cncf.io/v1alpha1/ippools"
	resourceWhereaboutsReservations = "whereabouts.cni.cncf.io/v1alpha1/overlappingrangeipreservations"
)

// claim is what whereabouts says about an address, and how that is taken back.
type claim struct{ pod, proof, undo string }

// others looks for addresses that whereabouts gives as well. That it names the pod that has the
// address here is no fault: so it is after a migration.
func (k *checking) others(ctx context.Context, c *Cluster) {
	theirs := map[netip.Addr][]claim{}
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
		for _, addr := range reservedAddresses(r.Metadata.Name) {
			theirs[addr] = append(theirs[addr], claim{spec.PodRef, fmt.Sprintf("overlappingrangeipreservation %s/%s of pod %s", r.Metadata.Namespace, r.Metadata.Name, spec.PodRef),
				fmt.Sprintf("kubectl delete overlappingrangeipreservations.whereabouts.cni.cncf.io -n %s %s", r.Metadata.Namespace, r.Metadata.Name)})
		}
	}
	if len(theirs) == 0 {
		return
	}
	for _, s := range k.sites {
		for _, a := range s.allocations {
			addr, err := pool.ParseAddr(a.Spec.Address)
			if err != nil {
				continue
			}
			for _, t := range theirs[addr] {
				if t.pod != podKey(a.Spec.PodRef) {
					k.otherManager(s, a, t)
					break
				}
			}
		}
	}
}

func (k *checking) otherManager(s *site, a *v1alpha1.IPAllocation, t claim) {
	message, mend := "whereabouts has given the address as well: if both are one network, two pods answer on it", "move the networks of one of the two managers to another range"
	switch {
	case k.record.pods[t.pod] == nil && a.Spec.Held():
		message = "whereabouts keeps the address for pod " + t.pod + ", which does not exist: no pod is harmed until whereabouts gives it to another one"
		mend = "if whereabouts does not serve the network any more, " + t.undo
	case a.Spec.Held():
		mend += ", or start the pod of one again: " + deletePod(podKey(a.Spec.PodRef))
	default:
		message = "whereabouts has given the address, and here it is " + ledger.Describe(a) + ": if both are one network, it is not free for whom it is kept"
	}
	if reservation := reservationOf(a); reservation != "" && a.Spec.IsReserved() {
		mend += ", or end the reservation: kubectl delete ipr -n " + a.Namespace + " " + reservation
	}
	k.find(classOtherManager, s.namespace, a.Name, message, "whereabouts' "+t.proof+"; "+proofOf(a), mend)
}

// readWhereabouts enters the addresses of one of its pools: spec.allocations has them by
// their distance from the network address.
func readWhereabouts(p object, into map[netip.Addr][]claim) {
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
		into[addr] = append(into[addr], claim{holder.PodRef, fmt.Sprintf("pool %s/%s, allocation %s of pod %s", p.Metadata.Namespace, p.Metadata.Name, text, holder.PodRef),
			fmt.Sprintf("take %s out of spec.allocations: kubectl edit ippools.whereabouts.cni.cncf.io -n %s %s", text, p.Metadata.Namespace, p.Metadata.Name)})
	}
}

// reservedAddresses reads the address at the end of the name of a reservation, in which ":" is
// "-" and a network's name may come first. It returns all that it may be: of rail-1-fd00--5,
// both 1:fd00::5 and fd00::5.
func reservedAddresses(name string) (out []netip.Addr) {
	for rest := name; rest != ""; {
		if a, err := netip.ParseAddr(strings.ReplaceAll(rest, "-", ":")); err == nil {
			out = append(out, a)
		}
		_, rest, _ = strings.Cut(rest, "-")
	}
	return out
}
