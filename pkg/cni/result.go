// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/crd-ipam/crd-ipam/pkg/claim"
)

// route is a route of a result, in a comparable form.
type route struct {
	dst netip.Prefix
	via netip.Addr
}

// result returns the CNI result for the claims. If the address is the gateway itself, the
// result has no gateway and no route.
func result(claims []claim.Claim) *types100.Result {
	out := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	var routes []route
	for _, c := range claims {
		ip := &types100.IPConfig{Address: ipNet(netip.PrefixFrom(c.Address, c.Block.Subnet.Bits()))}
		if gw := c.Block.Gateway; gw.IsValid() && gw != c.Address {
			ip.Gateway = gw.AsSlice()
			for _, dst := range c.Block.Routes {
				routes = append(routes, route{dst: dst, via: gw})
			}
		}
		out.IPs = append(out.IPs, ip)
	}
	slices.SortFunc(routes, func(a, b route) int {
		if c := a.dst.Compare(b.dst); c != 0 {
			return c
		}
		return a.via.Compare(b.via)
	})
	for _, r := range slices.Compact(routes) {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(r.dst), GW: r.via.AsSlice()})
	}
	return out
}

// ipNet keeps the host bits of p, which a CNI address includes.
func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
