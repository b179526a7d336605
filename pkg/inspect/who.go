// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// Holder is one address that is held, and by whom.
type Holder struct {
	Address      string                `json:"address"`
	Namespace    string                `json:"namespace"`
	Allocation   string                `json:"allocation"`
	Pool         PoolRef               `json:"pool"`
	Domain       string                `json:"domain"`
	Node         string                `json:"node,omitempty"`
	Pod          v1alpha1.PodReference `json:"pod"`
	Interface    string                `json:"interface,omitempty"`
	Network      string                `json:"network,omitempty"`
	Container    string                `json:"container,omitempty"`
	AllocationID types.UID             `json:"uid"`
	Requested    bool                  `json:"requested,omitempty"`
	Restored     bool                  `json:"restored,omitempty"`
	HeldSince    metav1.Time           `json:"heldSince"`
	// ReleasedAt is when the container released the address; absent if one uses it.
	ReleasedAt *metav1.Time              `json:"releasedAt,omitempty"`
	Owner      *v1alpha1.AllocationOwner `json:"owner,omitempty"`
	// Next is what a virtual machine moves to; it has the address as well.
	Next    *v1alpha1.NextAttachment `json:"next,omitempty"`
	Verdict judgement                `json:"verdict"`
}

func holderOf(a *v1alpha1.IPAllocation, v judgement) Holder {
	s := a.Spec
	return Holder{
		Address: s.Address, Namespace: a.Namespace, Allocation: a.Name, Domain: a.DomainOf(), AllocationID: a.UID,
		Pool: PoolRef{a.Namespace, s.PoolRef.Kind, s.PoolRef.Name}, Node: s.NodeName, Pod: s.PodRef, Interface: s.InterfaceName,
		Network: s.NetworkName, Container: s.ContainerID, Requested: s.Requested, Restored: s.Restored, HeldSince: metav1.NewTime(ledger.Since(a)), ReleasedAt: s.ReleasedAt, Owner: s.Owner, Next: s.Next, Verdict: v,
	}
}

// Who is whom the question is about; one of its fields is set, or Pod and Node if a name
// may be either.
type Who struct {
	Address netip.Addr
	// Allocation is the name of one, in Namespace, or in any if that is "".
	Allocation, Namespace string
	// Pod is NAMESPACE/NAME.
	Pod  string
	Node string
}

// ParseWho reads an address, ALLOCATION, NAMESPACE/ALLOCATION, POD, NAMESPACE/POD, pod/POD,
// pod/NAMESPACE/POD, NODE or node/NODE. namespace is that of a pod without one.
func ParseWho(text, namespace string) (Who, error) {
	text = strings.TrimSpace(text)
	if a, err := parseAddress(text); err == nil {
		return Who{Address: a}, nil
	}
	if strings.Contains(text, ":") || likeAddress.MatchString(text) {
		return Who{}, fmt.Errorf("%q is not an address", text)
	}
	var who Who
	kind, name, found := strings.Cut(text, "/")
	isAllocation := func(name string) bool { _, _, err := v1alpha1.ParseAllocationName(name); return err == nil }
	switch {
	case !found && isAllocation(text):
		return Who{Allocation: text}, nil
	case !found:
		who = Who{Pod: namespace + "/" + text, Node: text}
	case slices.Contains([]string{"node", "nodes", "no"}, kind):
		who.Node = name
	case slices.Contains([]string{"pod", "pods", "po"}, kind):
		if who.Pod = name; !strings.Contains(name, "/") {
			who.Pod = namespace + "/" + name
		}
	case isAllocation(name):
		who.Allocation, who.Namespace = name, kind
		if isResource(kind) {
			who.Namespace = ""
		}
		return who, nil
	default:
		who.Pod = text
	}
	of, name, _ := strings.Cut(who.Pod, "/")
	if who.Pod != "" && !reclaim.Possible(v1alpha1.PodReference{Namespace: of, Name: name}) || who.Pod == "" && len(validation.IsDNS1123Subdomain(who.Node)) > 0 {
		return Who{}, fmt.Errorf("%q is no address, and no allocation, pod or node can be called that", text)
	}
	return who, nil
}

// isResource reports whether a word is what kubectl calls allocations.
func isResource(word string) bool {
	return slices.Contains([]string{"ipa", "ipallocation", "ipallocations"}, word)
}

// likeAddress matches what is meant as an IPv4 address, or as a part of one.
var likeAddress = regexp.MustCompile(`^[0-9]+[.][0-9.]*(/.*)?$`)

// parseAddress reads an address in the forms in which people copy one: with a prefix length,
// or in brackets.
func parseAddress(text string) (netip.Addr, error) {
	if inner, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(inner, "]") {
		text = strings.TrimSuffix(inner, "]")
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		text = p.Addr().String()
	}
	return pool.ParseAddr(text)
}

// maxVerdicts is for how many holders the pods and nodes are looked at.
const maxVerdicts = 200

// Who returns the addresses that somebody holds, or who holds an address.
func (c *Cluster) Who(ctx context.Context, who Who) ([]Holder, error) {
	pools, err := c.pools(ctx)
	if err != nil {
		return nil, err
	}
	var wanted []fields.Set
	find := c.attachments
	switch {
	case who.Address.IsValid():
		find, wanted = c.allocations, append(wanted, fields.Set{fieldAddress: who.Address.String()})
	case who.Allocation != "":
		where := fields.Set{fieldName: who.Allocation}
		if who.Namespace != "" {
			where[fieldNamespace] = who.Namespace
		}
		find, wanted = c.allocations, append(wanted, where)
	}
	if namespace, name, found := strings.Cut(who.Pod, "/"); found {
		wanted = append(wanted, fields.Set{fieldPodNamespace: namespace, fieldPod: name})
	}
	if who.Node != "" {
		wanted = append(wanted, fields.Set{fieldNode: who.Node})
	}
	found := map[types.UID]*v1alpha1.IPAllocation{}
	for _, where := range wanted {
		if err := find(ctx, where, func(a *v1alpha1.IPAllocation) { found[a.UID] = a }); err != nil {
			return nil, err
		}
	}
	l := c.live(pools)
	out := make([]Holder, 0, len(found))
	for _, a := range found {
		v := judgement{State: stateUnknown, Message: "too many to look at each pod", Since: a.CreationTimestamp}
		if len(out) < maxVerdicts {
			v = l.tell(ctx, a)
		}
		out = append(out, holderOf(a, v))
	}
	slices.SortFunc(out, Holder.compare)
	return out, nil
}

// compare sorts by namespace, domain and address.
func (h Holder) compare(o Holder) int {
	a, _ := pool.ParseAddr(h.Address)
	b, _ := pool.ParseAddr(o.Address)
	return cmp.Or(strings.Compare(h.Namespace, o.Namespace), strings.Compare(h.Domain, o.Domain), a.Compare(b), strings.Compare(h.Allocation, o.Allocation))
}

// PoolsOf returns the pools whose subnet contains an address.
func (c *Cluster) PoolsOf(ctx context.Context, a netip.Addr) (out []PoolRef, err error) {
	pools, err := c.pools(ctx)
	for _, p := range pools {
		if p.Has(a) {
			out = append(out, refOf(p))
		}
	}
	return out, err
}

// Leaks returns the addresses that look leaked or may be, of the pools of a name; "" is all. It is
// an error if there is no such pool, and no allocation names one.
func (c *Cluster) Leaks(ctx context.Context, name string) ([]Holder, error) {
	r, err := c.read(ctx, parts{allocations: true, nodes: true, pods: true})
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(r.knows(name), c.isUsed(r)); err != nil {
		return nil, err
	}
	return c.stillLeak(ctx, r, r.leaks(name))
}

// isUsed returns an error if a namespace that was asked for has nothing to look at.
func (c *Cluster) isUsed(r *record) error {
	if s := r.site(c.Namespace); c.Namespace == "" || c.limited || len(s.pools)+len(s.allocations) > 0 {
		return nil
	}
	return fmt.Errorf("namespace %q has no pool and no allocation", c.Namespace)
}

// knows returns an error if there is no pool of a name, and no allocation names one; "" is any.
func (r *record) knows(name string) error {
	if name == "" {
		return nil
	}
	_, err := r.find(name)
	for _, s := range r.sites {
		if slices.ContainsFunc(s.allocations, func(a *v1alpha1.IPAllocation) bool { return a.Spec.PoolRef.Name == name }) {
			return nil
		}
	}
	return err
}

func (r *record) leaks(name string) (out []Holder) {
	for _, s := range r.sites {
		for _, a := range s.allocations {
			if name != "" && a.Spec.PoolRef.Name != name && !s.counts(name, a) {
				continue
			}
			if v := r.verdict(s, a); v.State == stateHeld || v.State == stateLeaked {
				out = append(out, holderOf(a, v))
			}
		}
	}
	slices.SortFunc(out, Holder.compare)
	return out
}

// counts reports whether an allocation counts in a pool of a name, as show counts.
func (s *site) counts(name string, a *v1alpha1.IPAllocation) bool {
	return slices.ContainsFunc(s.inDomain(a.DomainOf()), func(o *pool.Object) bool {
		for range o.Held([]*v1alpha1.IPAllocation{a}) {
			return o.Ref.Name == name
		}
		return false
	})
}
