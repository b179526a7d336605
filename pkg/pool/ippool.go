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

// sharedSubnet is the layout of an IPPool: one subnet, one gateway for all.
type sharedSubnet struct {
	subnet netip.Prefix
	gw     netip.Addr
}

func (l sharedSubnet) gateway(netipx.IPRange) netip.Addr { return l.gw }

func (l sharedSubnet) view(r netipx.IPRange) (netip.Prefix, netipx.IPRange) { return l.subnet, r }

func (l sharedSubnet) anywhere() bool { return true }

// ipObject reads an IPPool.
func ipObject(obj any) *Object {
	p, ok := obj.(*v1alpha1.IPPool)
	if !ok {
		return nil
	}
	o := &Object{
		Ref:      v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: p.Name},
		Meta:     &p.ObjectMeta,
		Status:   &p.Status.PoolStatus,
		Spec:     p.Spec,
		Disabled: p.Spec.Disabled,

		Sticky:           len(p.Spec.Sticky) > 0,
		StickyWhenScaled: p.Spec.StickyWhenScaled,

		Domain:      domainOf(p.Name, p.Spec.PoolAccess),
		Subnet:      p.Spec.Subnet,
		Gateway:     p.Spec.Gateway,
		parse:       func() (*Pool, field.ErrorList) { return fromIPPool(p) },
		blocks:      sync.OnceValue(func() []Assignment { return ipBlocks(p.Status.Allocations) }),
		allocations: func(blocks []Assignment) any { return ipAllocations(blocks) },
		allocation:  func(block Assignment) any { return ipAllocation(block) },
	}
	if p.Status.Allocations != nil {
		o.Allocations = p.Status.Allocations
	}
	return o
}

// fromIPPool checks and parses an IPPool. The rules are nv-ipam's; each error
// names the field and the value.
func fromIPPool(obj *v1alpha1.IPPool) (*Pool, field.ErrorList) {
	c := &checker{}
	spec := field.NewPath("spec")
	c.poolName(obj.Name)

	subnet := c.prefix(spec.Child("subnet"), obj.Spec.Subnet)
	size, shared := spec.Child("perNodeBlockSize"), obj.Spec.PerNodeBlockSize == 0
	if obj.Spec.PerNodeBlockSize < 0 {
		c.invalid(size, obj.Spec.PerNodeBlockSize, "must be at least 1, or not be set")
	}
	gateway := c.optionalAddr(spec.Child("gateway"), obj.Spec.Gateway)
	c.unicast(spec.Child("subnet"), obj.Spec.Subnet, subnet)
	if gateway.IsValid() && subnet.IsValid() {
		if !subnet.Contains(gateway) {
			c.invalid(spec.Child("gateway"), obj.Spec.Gateway, "is not part of the subnet")
		}
		c.gatewayHost(spec.Child("gateway"), obj.Spec.Gateway, gateway, subnet)
	}
	p := &Pool{
		Ref:      v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: obj.Name},
		Domain:   domainOf(obj.Name, obj.Spec.PoolAccess),
		selector: c.nodeSelector(spec.Child("nodeSelector"), obj.Spec.NodeSelector),
		terms:    obj.Spec.NodeSelector,
		Shared:   shared,
		Overflow: obj.Spec.Overflow == v1alpha1.OverflowSubnet,
		layout:   sharedSubnet{subnet: subnet, gw: gateway},
		access:   c.access(obj.Spec.PoolAccess),
	}
	p.access.Manual = obj.Spec.Assignment == v1alpha1.AssignmentManual
	oneOf(c, spec.Child("assignment"), obj.Spec.Assignment, v1alpha1.AssignmentAuto, v1alpha1.AssignmentManual)
	oneOf(c, spec.Child("overflow"), obj.Spec.Overflow, v1alpha1.OverflowSubnet)
	c.common(p, subnet, obj.Spec.Exclusions, obj.Spec.Routes, obj.Spec.DefaultGateway, gateway.IsValid(), "gateway")
	p.excluded = c.outsideOf(spec.Child("ranges"), obj.Spec.Ranges, p.excluded, subnet)
	p.perNode = c.indexes(spec.Child("perNodeExclusions"), obj.Spec.PerNodeExclusions, big.NewInt(int64(obj.Spec.PerNodeBlockSize)), shared)
	if shared && obj.Spec.Overflow != "" {
		c.invalid(spec.Child("overflow"), obj.Spec.Overflow, "cannot be set if spec.perNodeBlockSize is not set: every node uses the whole subnet")
	}
	if obj.Spec.Overflow != "" && len(obj.Spec.PerNodeExclusions) > 0 {
		c.invalid(spec.Child("overflow"), obj.Spec.Overflow, "cannot be set together with spec.perNodeExclusions: a node that goes on in another node's block would need that one's")
	}
	if len(obj.Spec.Sticky) > 0 && len(obj.Spec.PerNodeExclusions) > 0 {
		c.invalid(spec.Child("sticky"), obj.Spec.Sticky, "cannot be set together with spec.perNodeExclusions: an address that a pod keeps lies in whoever's block, and would need that one's")
	}
	if len(c.errs) > 0 {
		return nil, c.errs
	}

	usable := hosts(subnet)
	if shared {
		p.grid = grid{first: usable.From(), last: usable.To(), step: new(big.Int).Add(distance(usable.From(), usable.To()), one)}
		return p, nil
	}
	p.grid = grid{first: usable.From(), last: usable.To(), step: big.NewInt(int64(obj.Spec.PerNodeBlockSize))}
	if _, ok := p.grid.at(new(big.Int)); !ok {
		c.invalid(size, obj.Spec.PerNodeBlockSize, "is larger than the number of addresses in the subnet")
		return nil, c.errs
	}
	p.unusable = p.excluded.Ranges()
	if gateway.IsValid() && obj.Spec.PerNodeBlockSize == 1 {
		p.unusable = union(p.excluded, gateway).Ranges()
	}
	return p, nil
}

// ipBlocks reads the blocks in an IPPool's status. An entry that is not
// a range of addresses is left out: it says nothing that could be kept.
func ipBlocks(in []v1alpha1.Allocation) []Assignment {
	out := make([]Assignment, 0, len(in))
	for _, e := range in {
		from, errFrom := ParseAddr(e.StartIP)
		to, errTo := ParseAddr(e.EndIP)
		r := netipx.IPRangeFrom(from, to)
		if errFrom == nil && errTo == nil && r.IsValid() {
			out = append(out, Assignment{Node: e.NodeName, Range: r})
		}
	}
	return out
}

// ipAllocations writes blocks as an IPPool's status has them; never nil,
// since the API requires the field.
func ipAllocations(in []Assignment) []v1alpha1.Allocation {
	out := make([]v1alpha1.Allocation, len(in))
	for i, a := range in {
		out[i] = ipAllocation(a)
	}
	return out
}

func ipAllocation(a Assignment) v1alpha1.Allocation {
	return v1alpha1.Allocation{NodeName: a.Node, StartIP: a.Range.From().String(), EndIP: a.Range.To().String()}
}
