// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// checker collects what is wrong with a specification.
type checker struct{ errs field.ErrorList }

func (c *checker) invalid(path *field.Path, value any, detail string) {
	c.errs = append(c.errs, field.Invalid(path, value, detail))
}

// ValidName checks the name of a pool. It stands for a CNI network's where the
// configuration names no pool, and so may be what that may be.
func ValidName(name string) error {
	if err := utils.ValidateNetworkName(name); err != nil {
		return fmt.Errorf("%q must be a valid CNI network name: a letter or digit, then letters, digits, '-', '_' and '.'", name)
	}
	return nil
}

func (c *checker) poolName(name string) {
	if ValidName(name) != nil {
		c.invalid(field.NewPath("metadata", "name"), name, "must be a valid CNI network name")
	}
	if len(name) > v1alpha1.MaxPoolName {
		c.invalid(field.NewPath("metadata", "name"), name, fmt.Sprintf("must have at most %d characters, since an allocation's name contains it", v1alpha1.MaxPoolName))
	}
}

// notUnicast are addresses that no host can use.
var notUnicast = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/32"),  // unspecified
	netip.MustParsePrefix("224.0.0.0/4"), // multicast
	netip.MustParsePrefix("240.0.0.0/4"), // class E, and the limited broadcast address
	netip.MustParsePrefix("::/128"),      // unspecified
	netip.MustParsePrefix("ff00::/8"),    // multicast
}

// unicast refuses a subnet with addresses that no host can use.
func (c *checker) unicast(path *field.Path, text string, subnet netip.Prefix) {
	for _, p := range notUnicast {
		if subnet.IsValid() && subnet.Overlaps(p) {
			c.invalid(path, text, "overlaps with "+p.String()+", which has no addresses for hosts")
			return
		}
	}
}

// gatewayHost refuses a gateway that is the network or the broadcast address of an
// IPv4 subnet. The first address of an IPv6 subnet is its routers' anycast
// address: it may be a gateway.
func (c *checker) gatewayHost(path *field.Path, text string, gateway netip.Addr, subnet netip.Prefix) {
	if !gateway.Is4() || !subnet.Addr().Is4() || pointToPoint(subnet) {
		return
	}
	switch gateway {
	case subnet.Addr():
		c.invalid(path, text, "is the network address of "+subnet.String())
	case netipx.PrefixLastIP(subnet):
		c.invalid(path, text, "is the broadcast address of "+subnet.String())
	}
}

// prefix parses a subnet and clears its host bits.
func (c *checker) prefix(path *field.Path, text string) netip.Prefix {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		c.invalid(path, text, "is not a valid subnet in CIDR notation, as 192.168.0.0/16")
		return netip.Prefix{}
	}
	return p.Masked()
}

// network is prefix for where host bits are an error.
func (c *checker) network(path *field.Path, text string) netip.Prefix {
	p := c.prefix(path, text)
	if p.IsValid() && netip.MustParsePrefix(text) != p {
		c.invalid(path, text, "network prefix has host bits set, should be "+p.String())
		return netip.Prefix{}
	}
	return p
}

func (c *checker) addr(path *field.Path, text string) netip.Addr {
	a, err := ParseAddr(text)
	if err != nil {
		c.invalid(path, text, "is not a valid IP address")
	}
	return a
}

func (c *checker) optionalAddr(path *field.Path, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	return c.addr(path, text)
}

// common checks and parses what both kinds have.
func (c *checker) common(p *Pool, subnet netip.Prefix, exclusions []v1alpha1.ExcludeRange, routes []v1alpha1.Route, defaultGateway, hasGateway bool, gatewayField string) {
	spec := field.NewPath("spec")
	p.Subnet = subnet
	p.excluded = c.exclusions(spec.Child("exclusions"), exclusions, subnet)
	if defaultGateway && !hasGateway {
		c.invalid(spec.Child("defaultGateway"), true, "cannot be true if spec."+gatewayField+" is not set")
	}
	if len(routes) > 0 && !hasGateway {
		c.invalid(spec.Child("routes"), routes, "cannot be set if spec."+gatewayField+" is not set")
	}
	p.routes = c.routes(spec.Child("routes"), routes, subnet, defaultGateway)
}

func (c *checker) exclusions(path *field.Path, ranges []v1alpha1.ExcludeRange, subnet netip.Prefix) *netipx.IPSet {
	var b netipx.IPSetBuilder
	for i, r := range ranges {
		at := path.Index(i)
		before := len(c.errs)
		from, to := c.addr(at.Child("startIP"), r.StartIP), c.addr(at.Child("endIP"), r.EndIP)
		if len(c.errs) > before || !subnet.IsValid() {
			continue
		}
		if !subnet.Contains(from) {
			c.invalid(at.Child("startIP"), r.StartIP, "is not part of the subnet "+subnet.String())
		}
		if !subnet.Contains(to) {
			c.invalid(at.Child("endIP"), r.EndIP, "is not part of the subnet "+subnet.String())
		}
		if to.Less(from) {
			c.invalid(at, r.StartIP+" - "+r.EndIP, "endIP must not be less than startIP")
			continue
		}
		b.AddRange(netipx.IPRangeFrom(from, to))
	}
	set, _ := b.IPSet() // fails on invalid ranges only, and there are none
	return set
}

// outsideOf adds to excluded what is not in ranges, if there are any.
func (c *checker) outsideOf(path *field.Path, texts []string, excluded *netipx.IPSet, subnet netip.Prefix) *netipx.IPSet {
	if len(texts) == 0 || !subnet.IsValid() {
		return excluded
	}
	c.atMost(path, len(texts))
	var out netipx.IPSetBuilder
	out.AddPrefix(subnet)
	for _, r := range c.ranges(path, texts, subnet) {
		out.RemoveRange(r)
	}
	out.AddSet(excluded)
	set, _ := out.IPSet() // fails on invalid ranges only, and there are none
	return set
}

// ranges parses addresses and ranges of a subnet.
func (c *checker) ranges(path *field.Path, texts []string, subnet netip.Prefix) (out []netipx.IPRange) {
	for i, text := range texts {
		first, last, isRange := strings.Cut(text, "-")
		if !isRange {
			last = first
		}
		from, errFrom := netip.ParseAddr(first)
		to, errTo := netip.ParseAddr(last)
		switch r := netipx.IPRangeFrom(from, to); {
		case errFrom != nil || errTo != nil || from.Is4In6() || to.Is4In6() || from.Zone()+to.Zone() != "":
			c.invalid(path.Index(i), text, "is not an address or a range of addresses, as 10.0.0.10-10.0.0.99")
		case !subnet.Contains(from) || !subnet.Contains(to):
			c.invalid(path.Index(i), text, "is not part of the subnet "+subnet.String())
		case !r.IsValid():
			c.invalid(path.Index(i), text, "the last address must not be less than the first")
		default:
			out = append(out, r)
		}
	}
	return out
}

// indexes parses positions in a block of that size.
func (c *checker) indexes(path *field.Path, ranges []v1alpha1.ExcludeIndexRange, size *big.Int, shared bool) []indexRange {
	if shared && len(ranges) > 0 {
		c.invalid(path, ranges, "cannot be set if spec.perNodeBlockSize is not set: there are no blocks")
		return nil
	}
	var out []indexRange
	for i, r := range ranges {
		at := path.Index(i)
		switch {
		case r.StartIndex < 0:
			c.invalid(at.Child("startIndex"), r.StartIndex, "must not be negative")
		case r.EndIndex < r.StartIndex:
			c.invalid(at.Child("endIndex"), r.EndIndex, "must not be less than startIndex")
		case big.NewInt(int64(r.EndIndex)).Cmp(size) >= 0:
			c.invalid(at.Child("endIndex"), r.EndIndex, "is outside of a node's block of "+size.String()+" addresses")
		default:
			out = append(out, indexRange{from: int64(r.StartIndex), to: int64(r.EndIndex)})
		}
	}
	return out
}

// routes returns the pool's routes with the default route where it is asked
// for, sorted and without duplicates.
func (c *checker) routes(path *field.Path, routes []v1alpha1.Route, subnet netip.Prefix, defaultGateway bool) []netip.Prefix {
	var out []netip.Prefix
	for i, r := range routes {
		at := path.Index(i).Child("dst")
		dst := c.prefix(at, r.Dst)
		if !dst.IsValid() || !subnet.IsValid() {
			continue
		}
		if dst.Addr().Is4() != subnet.Addr().Is4() {
			c.invalid(at, r.Dst, "is not of the address family of the subnet "+subnet.String())
		}
		if defaultGateway && dst.Bits() == 0 {
			c.invalid(at, r.Dst, "a default route cannot be set together with spec.defaultGateway")
		}
		out = append(out, dst)
	}
	if defaultGateway && subnet.IsValid() {
		unspecified := netip.IPv6Unspecified()
		if subnet.Addr().Is4() {
			unspecified = netip.IPv4Unspecified()
		}
		out = append(out, netip.PrefixFrom(unspecified, 0))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// ParseAddr parses an address to its canonical form: without a zone, which it
// refuses, and with an IPv4 address in IPv6 notation as IPv4.
func ParseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, err
	}
	if a.Zone() != "" {
		return netip.Addr{}, &RequestError{"address " + text + " has a zone, which a pool cannot hand out"}
	}
	return a.Unmap(), nil
}

func union(set *netipx.IPSet, more ...netip.Addr) *netipx.IPSet {
	var b netipx.IPSetBuilder
	b.AddSet(set)
	for _, a := range more {
		b.Add(a)
	}
	out, _ := b.IPSet() // fails on invalid addresses only, and there are none
	return out
}
