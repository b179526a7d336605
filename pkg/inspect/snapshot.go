// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Snapshot is the record as a copy had it at one time. It does not change.
type Snapshot struct {
	Version uint64
	// At is when it was made.
	At      metav1.Time
	Sources []Source

	record *record
	// wrong are the allocations that look leaked or may be; nil if that cannot be told,
	// because pods or nodes could not be read.
	wrong map[*v1alpha1.IPAllocation]judgement
}

// Found is a holder, and the command that releases what it holds if it looks leaked or may
// be.
type Found struct {
	Holder

	Command string `json:"command,omitempty"`
}

// List is a part of a list that may be long.
type List struct {
	Items []Found `json:"items"`
	// More is how many are left out.
	More int `json:"more,omitempty"`
}

// maxList is how many holders a list has at most.
const maxList = 1024

// Summary is how much there is.
type Summary struct {
	Pools       int `json:"pools"`
	Allocations int `json:"allocations"`
	// Leaks is how many of them look leaked or may be; absent if that cannot be told.
	Leaks *int `json:"leaks,omitempty"`
}

// judge decides about all allocations.
func (s *Snapshot) judge() {
	for _, source := range s.Sources {
		if !source.Read {
			return
		}
	}
	s.wrong = map[*v1alpha1.IPAllocation]judgement{}
	for _, site := range s.record.sites {
		for _, a := range site.allocations {
			if v := s.record.verdict(site, a); v.State == stateHeld || v.State == stateLeaked {
				s.wrong[a] = v
			}
		}
	}
}

// Summary counts.
func (s *Snapshot) Summary() (out Summary) {
	for _, site := range s.record.sites {
		out.Pools += len(site.pools)
		out.Allocations += len(site.allocations)
	}
	if s.wrong != nil {
		n := len(s.wrong)
		out.Leaks = &n
	}
	return out
}

// Pools returns how full the pools are.
func (s *Snapshot) Pools() []Pool {
	out := []Pool{}
	for _, site := range s.record.sites {
		for _, p := range site.pools {
			out = append(out, s.record.pool(site, p, false))
		}
	}
	return out
}

// Leaks returns the addresses that look leaked or may be.
func (s *Snapshot) Leaks() List {
	all := make([]*v1alpha1.IPAllocation, 0, len(s.wrong))
	for a := range s.wrong {
		all = append(all, a)
	}
	return s.list(all)
}

// Holders returns who holds the addresses of a pool that lie in a range.
func (s *Snapshot) Holders(ref PoolRef, r netipx.IPRange) (List, error) {
	o, err := s.pool(ref)
	if err != nil {
		return List{}, err
	}
	var all []*v1alpha1.IPAllocation
	for addr, a := range s.heldBy(o) {
		if r.Contains(addr) {
			all = append(all, a)
		}
	}
	return s.list(all), nil
}

// NoPoolError says that there is no such pool, or no longer.
type NoPoolError struct{ Pool PoolRef }

func (e *NoPoolError) Error() string {
	return fmt.Sprintf("there is no %s %s/%s", e.Pool.Kind, e.Pool.Namespace, e.Pool.Name)
}

func (s *Snapshot) pool(ref PoolRef) (*pool.Object, error) {
	for _, o := range s.record.site(ref.Namespace).pools {
		if refOf(o) == ref {
			return o, nil
		}
	}
	return nil, &NoPoolError{ref}
}

// heldBy returns the allocations that count in a pool, by address.
func (s *Snapshot) heldBy(o *pool.Object) map[netip.Addr]*v1alpha1.IPAllocation {
	inDomain := s.record.site(o.Meta.Namespace).byDomain[o.Domain]
	out := make(map[netip.Addr]*v1alpha1.IPAllocation, len(inDomain))
	for _, a := range inDomain {
		for h := range o.Held([]*v1alpha1.IPAllocation{a}) {
			out[h.Addr] = a
		}
	}
	return out
}

// list sorts, cuts and judges.
func (s *Snapshot) list(all []*v1alpha1.IPAllocation) List {
	slices.SortFunc(all, func(a, b *v1alpha1.IPAllocation) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.DomainOf(), b.DomainOf()), compareAddrs(a.Spec.Address, b.Spec.Address))
	})
	out := List{Items: []Found{}, More: max(0, len(all)-maxList)}
	for _, a := range all[:min(len(all), maxList)] {
		out.Items = append(out.Items, s.found(a))
	}
	return out
}

func compareAddrs(a, b string) int {
	x, _ := pool.ParseAddr(a)
	y, _ := pool.ParseAddr(b)
	return x.Compare(y)
}

func (s *Snapshot) found(a *v1alpha1.IPAllocation) Found {
	v, wrong := s.wrong[a]
	switch {
	case wrong:
	case s.wrong == nil:
		v = judgement{State: stateUnknown, Message: "pods and nodes have not been read", Since: a.CreationTimestamp}
	default:
		v = s.record.verdict(s.record.site(a.Namespace), a)
	}
	out := Found{Holder: holderOf(a, v)}
	switch {
	case a.Spec.Next != nil: // a machine has the address where it moves to
	case v.State == stateLeaked, v.State == stateHeld:
		out.Command = releaseCommand(a) // it looks at who has the address, and says what speaks against it
	}
	return out
}

// Result is what a search has found.
type Result struct {
	List

	// Address is the one that was looked for, and Pools are those that have it; "" if
	// the text is no address.
	Address string    `json:"address,omitempty"`
	Pools   []PoolRef `json:"pools,omitempty"`
}

// Search finds allocations by a part of their address, pod, node or container. An address
// is also looked for in the pools.
func (s *Snapshot) Search(text string) Result {
	text = strings.ToLower(strings.TrimSpace(text))
	out := Result{List: List{Items: []Found{}}}
	if text == "" {
		return out
	}
	addr, err := parseAddress(text)
	if err == nil {
		out.Address = addr.String()
		for _, site := range s.record.sites {
			for _, o := range site.pools {
				if o.Has(addr) {
					out.Pools = append(out.Pools, refOf(o))
				}
			}
		}
	}
	var all []*v1alpha1.IPAllocation
	for _, site := range s.record.sites {
		for _, a := range site.allocations {
			if err == nil && a.Spec.Address == out.Address || err != nil && mentions(a, text) {
				all = append(all, a)
			}
		}
	}
	out.List = s.list(all)
	return out
}

// mentions reports whether an allocation has a text in lower case in what people look for.
func mentions(a *v1alpha1.IPAllocation, text string) bool {
	names := []string{a.Spec.Address, podKey(a.Spec.PodRef), a.Spec.NodeName, a.Spec.ContainerID, a.Name}
	if next := a.Spec.Next; next != nil {
		names = append(names, podKey(next.PodRef), next.NodeName, next.ContainerID)
	}
	return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(strings.ToLower(name), text) })
}
