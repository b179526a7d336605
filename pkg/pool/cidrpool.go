// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/big"
	"net/netip"
	"sync"

	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// ownSubnet is the layout of a CIDRPool: a prefix and a gateway for each node.
type ownSubnet struct {
	gatewayIndex *int32
}

func (l ownSubnet) gateway(r netipx.IPRange) netip.Addr {
	if l.gatewayIndex == nil {
		return netip.Addr{}
	}
	gw, _ := offset(r.From(), big.NewInt(int64(*l.gatewayIndex)))
	if _, inside := l.view(r); !inside.Contains(gw) {
		return netip.Addr{}
	}
	return gw
}

func (l ownSubnet) anywhere() bool { return false }

// view takes the prefix from r and not from the specification: a node that holds
// addresses keeps its prefix when perNodeNetworkPrefix is edited.
func (l ownSubnet) view(r netipx.IPRange) (netip.Prefix, netipx.IPRange) {
	prefix, ok := r.Prefix()
	if !ok {
		return netip.Prefix{}, netipx.IPRange{} // no prefix, no addresses
	}
	return prefix, hosts(prefix)
}

// cidrObject reads a CIDRPool.
func cidrObject(obj any) *Object {
	p, ok := obj.(*v1alpha1.CIDRPool)
	if !ok {
		return nil
	}
	o := &Object{
		Ref:         v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: p.Name},
		Meta:        &p.ObjectMeta,
		Status:      &p.Status.PoolStatus,
		Spec:        p.Spec,
		Disabled:    p.Spec.Disabled,
		Domain:      domainOf(p.Name, p.Spec.PoolAccess),
		Subnet:      p.Spec.CIDR,
		parse:       func() (*Pool, field.ErrorList) { return fromCIDRPool(p) },
		blocks:      sync.OnceValue(func() []Assignment { return cidrBlocks(p.Status.Allocations) }),
		allocations: func(blocks []Assignment) any { return cidrAllocations(blocks) },
		allocation:  func(block Assignment) any { return cidrAllocation(block) },
		gateways:    true,
	}
	if p.Status.Allocations != nil {
		o.Allocations = p.Status.Allocations
	}
	return o
}

// fromCIDRPool checks and parses a CIDRPool. The rules are nv-ipam's; each error
// names the field and the value.
func fromCIDRPool(obj *v1alpha1.CIDRPool) (*Pool, field.ErrorList) {
	c := &checker{}
	spec := field.NewPath("spec")
	c.poolName(obj.Name)

	cidr := c.network(spec.Child("cidr"), obj.Spec.CIDR)
	c.unicast(spec.Child("cidr"), obj.Spec.CIDR, cidr)
	bits := int(obj.Spec.PerNodeNetworkPrefix)
	layout := ownSubnet{gatewayIndex: obj.Spec.GatewayIndex}
	p := &Pool{
		Ref:      v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: obj.Name},
		Domain:   domainOf(obj.Name, obj.Spec.PoolAccess),
		selector: c.nodeSelector(spec.Child("nodeSelector"), obj.Spec.NodeSelector),
		terms:    obj.Spec.NodeSelector,
		layout:   layout,
		access:   c.access(obj.Spec.PoolAccess),
	}
	if len(obj.Spec.Sticky) > 0 || obj.Spec.StickyWhenScaled != "" {
		c.invalid(spec.Child("sticky"), obj.Spec.Sticky, "is only for IPPools: an address of a CIDRPool belongs to a node, and a pod may come up on another one")
	}
	c.common(p, cidr, obj.Spec.Exclusions, obj.Spec.Routes, obj.Spec.DefaultGateway, obj.Spec.GatewayIndex != nil, "gatewayIndex")
	if cidr.IsValid() && (bits < max(cidr.Bits(), 1) || bits > cidr.Addr().BitLen()) {
		c.invalid(spec.Child("perNodeNetworkPrefix"), bits, "must be at least the prefix length of cidr and at most the length of an address")
	}
	if len(c.errs) > 0 {
		return nil, c.errs
	}

	first := netip.PrefixFrom(cidr.Addr(), bits)
	step := new(big.Int).Lsh(one, uint(cidr.Addr().BitLen()-bits))
	p.grid = grid{first: cidr.Addr(), last: netipx.PrefixLastIP(cidr), step: step}
	p.unusable = p.excluded.Ranges()
	p.perNode = c.indexes(spec.Child("perNodeExclusions"), obj.Spec.PerNodeExclusions, step, false)
	if i := obj.Spec.GatewayIndex; i != nil && !layout.gateway(netipx.RangeOfPrefix(first)).IsValid() {
		c.invalid(spec.Child("gatewayIndex"), *i, "is outside of the host addresses of a node's prefix")
	}
	p.static = c.staticAllocations(spec.Child("staticAllocations"), obj.Spec.StaticAllocations, cidr, p)
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	return p, nil
}

func (c *checker) staticAllocations(path *field.Path, entries []v1alpha1.CIDRPoolStaticAllocation, cidr netip.Prefix, p *Pool) []Assignment {
	var out []Assignment
	nodes, prefixes := map[string]bool{}, map[netip.Prefix]bool{}
	for i, e := range entries {
		at := path.Index(i)
		prefix := c.network(at.Child("prefix"), e.Prefix)
		gateway := c.optionalAddr(at.Child("gateway"), e.Gateway)
		if !prefix.IsValid() {
			continue
		}
		r := netipx.RangeOfPrefix(prefix)
		switch {
		case !cidr.Contains(prefix.Addr()):
			c.invalid(at.Child("prefix"), e.Prefix, "is not part of the pool's cidr "+cidr.String())
		case !p.grid.has(r):
			c.invalid(at.Child("prefix"), e.Prefix, "prefix length must be spec.perNodeNetworkPrefix")
		case prefixes[prefix]:
			c.errs = append(c.errs, field.Duplicate(at.Child("prefix"), e.Prefix))
		}
		if gateway.IsValid() && !prefix.Contains(gateway) {
			c.invalid(at.Child("gateway"), e.Gateway, "is outside of the prefix "+e.Prefix)
		}
		c.gatewayHost(at.Child("gateway"), e.Gateway, gateway, prefix)
		if e.NodeName != "" && nodes[e.NodeName] {
			c.errs = append(c.errs, field.Duplicate(at.Child("nodeName"), e.NodeName))
		}
		nodes[e.NodeName], prefixes[prefix] = true, true
		if !gateway.IsValid() {
			gateway = p.layout.gateway(r)
		}
		out = append(out, Assignment{Node: e.NodeName, Range: r, Gateway: gateway})
	}
	return out
}

// cidrBlocks reads the prefixes in a CIDRPool's status. An entry that
// is not a prefix is left out.
func cidrBlocks(in []v1alpha1.CIDRPoolAllocation) []Assignment {
	out := make([]Assignment, 0, len(in))
	for _, e := range in {
		prefix, err := netip.ParsePrefix(e.Prefix)
		if err != nil || prefix.Addr().Is4In6() {
			continue
		}
		gateway, _ := ParseAddr(e.Gateway) // zero where there is none
		out = append(out, Assignment{Node: e.NodeName, Range: netipx.RangeOfPrefix(prefix), Gateway: gateway})
	}
	return out
}

// cidrAllocations writes prefixes as a CIDRPool's status has them; never
// nil, since the API requires the field.
func cidrAllocations(in []Assignment) []v1alpha1.CIDRPoolAllocation {
	out := make([]v1alpha1.CIDRPoolAllocation, 0, len(in))
	for _, a := range in {
		out = append(out, cidrAllocation(a))
	}
	return out
}

func cidrAllocation(a Assignment) v1alpha1.CIDRPoolAllocation {
	out := v1alpha1.CIDRPoolAllocation{NodeName: a.Node}
	if prefix, ok := a.Range.Prefix(); ok {
		out.Prefix = prefix.String()
	}
	if a.Gateway.IsValid() {
		out.Gateway = a.Gateway.String()
	}
	return out
}
