// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// action is what is done about an entry.
type action string

const (
	// create: nobody has claimed the address.
	create action = "claim"
	// done: an earlier run has claimed it.
	done action = "none: claimed"
	// replace: an earlier run has claimed it for a container that whereabouts no longer
	// has there. While whereabouts gives in the range, it decides.
	replace action = "claim, in place of an earlier run's"
	// obsolete: the pod has a sandbox by now that this project's plugin has served.
	obsolete action = "none: the pod has another sandbox"
	// conflict: somebody else holds it. Both answer on it.
	conflict action = "CONFLICT"
	// refused: the API server takes no allocation that says what the entry says. The
	// container answers on the address.
	refused action = "REFUSED"
)

// claim is an entry of whereabouts', and the allocation that becomes of it.
type claim struct {
	target  *target
	address netip.Addr
	alloc   *v1alpha1.IPAllocation
	action  action
	holder  *v1alpha1.IPAllocation // who has the allocation's name
	remark  string
}

// pending reports whether the address is not accounted for.
func (c *claim) pending() bool {
	return c.action == create || c.action == replace || c.action == conflict || c.action == refused
}

// claimRange decides about all entries of one of whereabouts' pools.
func (p *plan) claimRange(r *rangePool) {
	cannot := func(format string, args ...any) {
		p.cannot = append(p.cannot, "IPPool "+r.Name+": "+fmt.Sprintf(format, args...))
	}
	base, err := netip.ParsePrefix(r.Spec.Range)
	if err != nil {
		cannot("its range %q is none", r.Spec.Range)
		return
	}
	base = base.Masked()
	in, node := p.scopeOf(r, base)
	targets := p.targets(in)
	if len(targets) == 0 {
		if len(r.Spec.Allocations) == 0 {
			return
		}
		targets = []*target{p.target(in, p.specWithoutNetwork(in))}
	}
	if fit := slices.DeleteFunc(slices.Clone(targets), func(t *target) bool { return t.refused != "" }); len(fit) > 0 {
		targets = fit
	}
	for _, offset := range sortedOffsets(r.Spec.Allocations) {
		e := r.Spec.Allocations[offset]
		n, err := strconv.ParseUint(offset, 10, 63)
		address := plus(base.Addr(), n)
		if err != nil || !base.Contains(address) {
			cannot("%q is no distance in %s (pod %s)", offset, base, e.PodRef)
			continue
		}
		if problem := p.claim(targets, address, e, node); problem != "" {
			cannot("%s of pod %s: %s", address, e.PodRef, problem)
			if _, exists := p.state.pods[e.PodRef]; exists {
				targets[0].held = append(targets[0].held, fmt.Sprintf("%s of pod %s cannot be claimed", address, e.PodRef))
			}
		}
	}
}

// scopeOf finds out which network_name and range one of whereabouts' pools is for, and
// which node if it is a slice. Its name has them: [network_name-][node-]range.
func (p *plan) scopeOf(r *rangePool, base netip.Prefix) (in scope, node string) {
	for _, s := range p.state.slices {
		for _, a := range s.Status.Allocations {
			name := a.NodeName + "-" + normalize(a.SliceRange)
			whole, err := netip.ParsePrefix(s.Spec.Range)
			if a.NodeName == "" || err != nil {
				continue
			}
			switch r.Name {
			case name:
				return scope{"", whole.Masked().String()}, a.NodeName
			case s.Name + "-" + name:
				return scope{s.Name, whole.Masked().String()}, a.NodeName
			}
		}
	}
	return scope{strings.TrimSuffix(strings.TrimSuffix(r.Name, normalize(r.Spec.Range)), "-"), base.String()}, ""
}

// specWithoutNetwork is for a range that no network names any more. An address is unique
// across ranges unless no reservation says so, which is the default.
func (p *plan) specWithoutNetwork(in scope) v1alpha1.IPPoolSpec {
	domain := commonDomain
	if in.network != "" {
		domain = in.network
	}
	return v1alpha1.IPPoolSpec{Subnet: in.subnet, PoolAccess: v1alpha1.PoolAccess{Domain: domain}}
}

// plus adds n to an address; the result is not valid if there is no such address.
func plus(a netip.Addr, n uint64) netip.Addr {
	bytes := a.As16()
	for i := 15; i >= 0 && n > 0; i-- {
		n += uint64(bytes[i])
		bytes[i] = byte(n)
		n >>= 8
	}
	out := netip.AddrFrom16(bytes)
	if a.Is4() {
		if !out.Is4In6() {
			return netip.Addr{}
		}
		out = out.Unmap()
	}
	return out
}

// claim decides about one entry; it returns what keeps it from being claimed.
func (p *plan) claim(targets []*target, address netip.Addr, e entry, node string) (problem string) {
	namespace, name, _ := strings.Cut(e.PodRef, "/")
	its, exists := p.state.pods[e.PodRef]
	if its.node != "" {
		node = its.node
	}
	ifname := e.Interface
	if ifname == "" {
		ifname = its.interfaceOf(address.String())
	}
	switch {
	case !exists:
		return "the pod does not exist: if its container has ended, whereabouts' reconciler or its DEL removes the entry"
	case node == "":
		return "the pod is not on a node yet"
	case e.ContainerID == "" || ifname == "":
		return "the entry has no container, or no interface, and the pod's annotation " + networkStatus + " does not say which one has the address"
	}
	t, requested := targetOf(targets, address)
	if t.refused != "" {
		return t.refused
	}
	ref := t.ref()
	c := &claim{target: t, address: address, action: create, alloc: &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name: v1alpha1.AllocationName(t.domain(), address), Namespace: p.state.namespace,
			Annotations: map[string]string{annotationFrom: ""},
		},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: ref, Domain: t.pool.Spec.Domain, Address: address.String(), NodeName: node,
			// Whereabouts does not know the pod's UID: it may be of a later pod of the name.
			PodRef:      v1alpha1.PodReference{Namespace: namespace, Name: name},
			ContainerID: e.ContainerID, InterfaceName: ifname, Requested: requested,
			// It is not known when the ADD began. Not before the pod was created, and
			// before the pod's next sandbox has asked: so that one is the later.
			AddStartedAt: &metav1.MicroTime{Time: its.created.UTC()},
		},
	}}
	if c.alloc.Spec.Domain == ref.Name {
		c.alloc.Spec.Domain = ""
	}
	c.alloc.Labels = v1alpha1.AllocationLabels(&c.alloc.Spec)
	p.compare(c)
	p.claims = append(p.claims, c)
	return ""
}

func (t *target) ref() v1alpha1.PoolReference { return pool.ObjectOf(t.pool).Ref }

// targetOf is the first pool that gives an address itself, or else the first one: then
// the address counts as requested. It does so as well if nodes have blocks: these are not
// whereabouts' slices.
func targetOf(targets []*target, address netip.Addr) (t *target, requested bool) {
	for _, t := range targets {
		if t.gives(address) {
			return t, t.pool.Spec.PerNodeBlockSize > 0
		}
	}
	return targets[0], true
}

// gives reports whether a pool's specification allows an address to be given
// automatically.
func (t *target) gives(address netip.Addr) bool {
	spec := &t.pool.Spec
	between := func(first, last string) bool {
		a, _ := netip.ParseAddr(first)
		b, _ := netip.ParseAddr(last)
		return a.IsValid() && b.IsValid() && !address.Less(a) && !b.Less(address)
	}
	if !t.subnet().Contains(address) || spec.Gateway == address.String() {
		return false
	}
	for _, e := range spec.Exclusions {
		if between(e.StartIP, e.EndIP) {
			return false
		}
	}
	for _, r := range spec.Ranges {
		first, last, found := strings.Cut(r, "-")
		if !found {
			last = first
		}
		if between(first, last) {
			return true
		}
	}
	return len(spec.Ranges) == 0
}

// compare looks at who has the allocation's name, and at what the pod has.
func (p *plan) compare(c *claim) {
	held := p.byName[c.alloc.Name]
	c.holder = held
	switch next := p.nextSandbox(c); {
	case held != nil && ledger.Same(&held.Spec, &c.alloc.Spec):
		c.action = done
	case held != nil && migrated(held):
		c.action, c.remark = replace, ledger.Describe(held)
	case next != nil: // whereabouts has not heard that the pod's former one has ended
		c.action, c.remark = obsolete, "container "+next.Spec.ContainerID+" of the pod has "+next.Spec.Address
	case held != nil:
		c.action, c.remark = conflict, ledger.Describe(held)
	}
}

// nextSandbox is what this project's plugin has given to another sandbox of the pod.
func (p *plan) nextSandbox(c *claim) *v1alpha1.IPAllocation {
	for _, held := range p.byPod[podOf(c.alloc)] {
		if !migrated(held) && samePlace(&held.Spec, &c.alloc.Spec) {
			return held
		}
	}
	return nil
}

// migrated reports whether an earlier run has made an allocation.
func migrated(a *v1alpha1.IPAllocation) bool {
	_, is := a.Annotations[annotationFrom]
	return is
}

// samePlace reports whether two allocations are of one interface of one pod, in
// different containers: a pod has one sandbox.
func samePlace(a, b *v1alpha1.IPAllocationSpec) bool {
	return a.NodeName == b.NodeName && a.InterfaceName == b.InterfaceName && a.ContainerID != b.ContainerID &&
		a.PodRef.Namespace == b.PodRef.Namespace && a.PodRef.Name == b.PodRef.Name
}

// claimTwice finds entries that would be one allocation: whereabouts has given the
// address twice, in ranges that overlap.
func (p *plan) claimTwice() {
	first := map[string]*claim{}
	for _, c := range p.claims {
		other := first[c.alloc.Name]
		if other == nil {
			first[c.alloc.Name] = c
			continue
		}
		if ledger.Same(&other.alloc.Spec, &c.alloc.Spec) {
			continue
		}
		// The one that has the allocation keeps it.
		loser := c
		if c.action == done {
			loser = other
		}
		loser.action, loser.holder = conflict, nil
		loser.remark = fmt.Sprintf("whereabouts has given it to pods %s/%s and %s/%s", other.alloc.Spec.PodRef.Namespace, other.alloc.Spec.PodRef.Name,
			c.alloc.Spec.PodRef.Namespace, c.alloc.Spec.PodRef.Name)
	}
}
