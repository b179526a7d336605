// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestMatch(t *testing.T) {
	anySubnet(t)
	v4 := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "192.168.0.0/16", PerNodeBlockSize: 100, Gateway: "192.168.0.1", Exclusions: exclude("192.168.0.0-192.168.0.10")}).
		block(Assignment{Node: "b", Range: netipx.MustParseIPRange("192.168.0.101-192.168.0.200")})
	first := ipPool(t, seed()).block(Assignment{Node: "a", Range: netipx.MustParseIPRange("192.168.0.1-192.168.0.100")})
	inOther := *first
	inOther.Domain = "other"
	other := &inOther
	small := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "192.168.0.0/24", PerNodeBlockSize: 10}).block(Assignment{Node: "b", Range: netipx.MustParseIPRange("192.168.0.11-192.168.0.20")})
	asked := *small
	asked.Manual = true
	manual := &asked
	v6 := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 100, Gateway: "fd00::1"}).
		block(Assignment{Node: "b", Range: netipx.MustParseIPRange("fd00::65-fd00::c8")})
	bare := ipPool(t, tens()).block(Assignment{Node: "b", Range: netipx.MustParseIPRange("10.0.0.11-10.0.0.20")})
	edited := ipPool(t, tens()).block(Assignment{Node: "b", Range: netipx.MustParseIPRange("10.0.0.250-10.0.1.5")})
	rail := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(1), PerNodeExclusions: positions("0-9")}).
		block(cidrBlocks(cidrStatus("b=10.60.3.0/24@10.60.3.1"))[0])
	link := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "10.61.0.0/16", PerNodeNetworkPrefix: 31, GatewayIndex: index(0)}).
		block(cidrBlocks(cidrStatus("b=10.61.0.2/31@10.61.0.2"))[0])
	end := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "255.255.255.254/31", PerNodeBlockSize: 2}).
		block(Assignment{Node: "b", Range: netipx.MustParseIPRange("255.255.255.254-255.255.255.255")})

	addresses := func(text string) Want {
		var w Want
		for _, f := range strings.Fields(text) {
			a, err := ParseAddr(f)
			if err != nil {
				t.Fatal(err)
			}
			w.Addresses = append(w.Addresses, a)
		}
		return w
	}
	at := func(i int) Want { return Want{Index: &i} }
	gateway := Want{DefaultGateway: true}
	const (
		noPool  = "not all requested static IPs can be allocated from the ranges available on the node, ip %s has no matching Pool"
		outside = `requested IP index "%s" is outside of the given chunk`
		isGw    = `requested IP index "%s" is the actual gateway, use allocate_default_gateway feature instead`
	)
	tests := []struct {
		name   string
		blocks []*Block
		want   Want
		got    string // addresses; "any" for one that is free
		err    string
	}{
		// 1. Requested addresses.
		{name: "nothing requested", blocks: []*Block{v4, v6}, got: "any any"},
		{name: "no pools, nothing requested", got: ""},
		{name: "in the node's block", blocks: []*Block{v4}, want: addresses("192.168.0.150"), got: "192.168.0.150"},
		{name: "in another node's block", blocks: []*Block{v4}, want: addresses("192.168.77.7"), got: "192.168.77.7"},
		{name: "excluded", blocks: []*Block{v4}, want: addresses("192.168.0.5"), got: "192.168.0.5"},
		{name: "the gateway", blocks: []*Block{v4}, want: addresses("192.168.0.1"), got: "192.168.0.1"},
		{name: "the network address", blocks: []*Block{v4}, want: addresses("192.168.0.0"), err: `requested IP 192.168.0.0 is the network or broadcast address of 192.168.0.0/16 (pool "pool1", poolType "ippool"), which no interface can have`},
		{name: "the broadcast address", blocks: []*Block{v4}, want: addresses("192.168.255.255"), err: "requested IP 192.168.255.255 is the network or broadcast address of 192.168.0.0/16"},
		{name: "the network address of an IPv6 subnet", blocks: []*Block{v6}, want: addresses("fd00::"), err: "requested IP fd00:: is the network or broadcast address of fd00::/48"},
		{name: "IPv4 in IPv6 notation", blocks: []*Block{v4}, want: addresses("::ffff:192.168.0.150"), got: "192.168.0.150"},
		{name: "dual stack", blocks: []*Block{v4, v6}, want: addresses("192.168.0.5 fd00::5"), got: "192.168.0.5 fd00::5"},
		{name: "dual stack, the other way round", blocks: []*Block{v4, v6}, want: addresses("fd00::5 192.168.0.5"), got: "192.168.0.5 fd00::5"},
		{name: "dual stack, one requested", blocks: []*Block{v4, v6}, want: addresses("fd00::5"), got: "any fd00::5"},
		{name: "requested twice", blocks: []*Block{v4}, want: addresses("192.168.0.5 192.168.0.5"), got: "192.168.0.5"},
		{name: "one address, two pools of one subnet", blocks: []*Block{v4, other}, want: addresses("192.168.0.5"), got: "192.168.0.5 192.168.0.5"},
		{name: "one address, two pools of one domain", blocks: []*Block{v4, first}, want: addresses("192.168.0.5"), got: "192.168.0.5 any"},
		{name: "two addresses, two pools of one domain", blocks: []*Block{v4, first}, want: addresses("192.168.0.5 192.168.0.6"), got: "192.168.0.5 192.168.0.6"},
		{name: "the second of two pools of one domain has one of them only", blocks: []*Block{v4, small}, want: addresses("192.168.0.5 192.168.9.9"), got: "192.168.9.9 192.168.0.5"},
		{name: "the first of two pools of one domain has one of them only", blocks: []*Block{small, v4}, want: addresses("192.168.0.5 192.168.9.9"), got: "192.168.0.5 192.168.9.9"},
		{name: "one of two pools of one domain gives only what is asked for", blocks: []*Block{v4, manual}, want: addresses("192.168.0.5"), got: "any 192.168.0.5"},
		{name: "the gateway of two pools of one domain", blocks: []*Block{v4, first}, want: gateway, err: `pools "pool1" and "pool1" are of domain "pool1", and both would hand out 192.168.0.1: name one of them`},
		{name: "in no pool", blocks: []*Block{v4}, want: addresses("10.10.10.10"), err: strings.Replace(noPool, "%s", "10.10.10.10", 1)},
		{name: "in no pool, and what there is", blocks: []*Block{v4, v6}, want: addresses("10.10.10.10"), err: strings.Replace(noPool, "%s", "10.10.10.10", 1) + ": ippool pool1 has 192.168.0.0/16, ippool pool1 has fd00::/48"},
		{name: "one in no pool", blocks: []*Block{v4, v6}, want: addresses("192.168.0.5 fd01::5"), err: strings.Replace(noPool, "%s", "fd01::5", 1)},
		{name: "two in one pool: the first is taken", blocks: []*Block{v4}, want: addresses("192.168.0.5 192.168.0.6"), err: strings.Replace(noPool, "%s", "192.168.0.6", 1)},
		{name: "no pools", want: addresses("10.10.10.10"), err: strings.Replace(noPool, "%s", "10.10.10.10", 1)},
		{name: "CIDRPool, this node's prefix", blocks: []*Block{rail}, want: addresses("10.60.3.200"), got: "10.60.3.200"},
		{name: "CIDRPool, excluded position", blocks: []*Block{rail}, want: addresses("10.60.3.9"), got: "10.60.3.9"},
		{name: "CIDRPool, the gateway", blocks: []*Block{rail}, want: addresses("10.60.3.1"), got: "10.60.3.1"},
		{name: "CIDRPool, another node's prefix", blocks: []*Block{rail}, want: addresses("10.60.4.9"), err: strings.Replace(noPool, "%s", "10.60.4.9", 1)},

		// 2. The gateway itself.
		{name: "gateway", blocks: []*Block{v4}, want: gateway, got: "192.168.0.1"},
		{name: "gateways of two pools", blocks: []*Block{v4, v6}, want: gateway, got: "192.168.0.1 fd00::1"},
		{name: "gateway of the node's prefix", blocks: []*Block{rail}, want: gateway, got: "10.60.3.1"},
		{name: "no gateway", blocks: []*Block{bare}, want: gateway, err: `pool without gateway can't be used with allocate_default_gateway feature,pool "pool1", poolType "ippool"`},
		{name: "one pool without a gateway", blocks: []*Block{v4, bare}, want: gateway, err: `pool without gateway can't be used with allocate_default_gateway feature,pool "pool1", poolType "ippool"`},

		// 3. A position in the node's block.
		{name: "index 0", blocks: []*Block{v4}, want: at(0), got: "192.168.0.101"},
		{name: "index of the last address", blocks: []*Block{v4}, want: at(99), got: "192.168.0.200"},
		{name: "index after the last address", blocks: []*Block{v4}, want: at(100), err: strings.Replace(outside, "%s", "100", 1)},
		{name: "index far outside", blocks: []*Block{v4}, want: at(1 << 40), err: strings.Replace(outside, "%s", "1099511627776", 1)},
		{name: "negative index", blocks: []*Block{v4}, want: at(-1), err: strings.Replace(outside, "%s", "-1", 1)},
		{name: "negative index of the gateway", blocks: []*Block{v4}, want: at(-100), err: strings.Replace(outside, "%s", "-100", 1)},
		{name: "index of an excluded address", blocks: []*Block{first}, want: at(4), got: "192.168.0.5"},
		{name: "index of the gateway", blocks: []*Block{first}, want: at(0), err: strings.Replace(isGw, "%s", "0", 1)},
		{name: "index in two pools", blocks: []*Block{v4, v6}, want: at(1), got: "192.168.0.102 fd00::66"},
		{name: "index in two pools, outside of one", blocks: []*Block{v4, bare}, want: at(10), err: strings.Replace(outside, "%s", "10", 1)},
		{name: "CIDRPool: index 0 is the first host", blocks: []*Block{rail}, want: at(0), err: strings.Replace(isGw, "%s", "0", 1)},
		{name: "CIDRPool: index 1", blocks: []*Block{rail}, want: at(1), got: "10.60.3.2"},
		{name: "CIDRPool: index of the last host", blocks: []*Block{rail}, want: at(253), got: "10.60.3.254"},
		{name: "CIDRPool: index of the broadcast address", blocks: []*Block{rail}, want: at(254), err: strings.Replace(outside, "%s", "254", 1)},
		{name: "/31: index 0", blocks: []*Block{link}, want: at(0), err: strings.Replace(isGw, "%s", "0", 1)},
		{name: "/31: index 1", blocks: []*Block{link}, want: at(1), got: "10.61.0.3"},
		{name: "end of the IPv4 space", blocks: []*Block{end}, want: at(1), got: "255.255.255.255"},
		{name: "after the end of the IPv4 space", blocks: []*Block{end}, want: at(2), err: strings.Replace(outside, "%s", "2", 1)},
		{name: "index in a block that the subnet no longer has whole", blocks: []*Block{edited}, want: at(6), err: strings.Replace(outside, "%s", "6", 1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Match(tt.blocks, tt.want)
			if tt.err != "" {
				var refused *RequestError
				if !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), tt.err) {
					t.Fatalf("got error %v\nwant RequestError %s", err, tt.err)
				}
				if got != nil {
					t.Errorf("got %v with the error", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var text []string
			for _, a := range got {
				if a == (netip.Addr{}) {
					text = append(text, "any")
				} else {
					text = append(text, a.String())
				}
			}
			if s := strings.Join(text, " "); s != tt.got {
				t.Errorf("got %q, want %q", s, tt.got)
			}
		})
	}
}

func TestType(t *testing.T) {
	for kind, want := range map[v1alpha1.PoolKind]string{v1alpha1.PoolKindIPPool: "ippool", v1alpha1.PoolKindCIDRPool: "cidrpool"} {
		if got := Type(kind); got != want {
			t.Errorf("%s: got %s, want %s", kind, got, want)
		}
	}
}

func TestInvalid(t *testing.T) {
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "pool1"}
	if err := Invalid(ref, nil); err != nil {
		t.Errorf("nothing is wrong, got %v", err)
	}
	err := Invalid(ref, field.ErrorList{field.Invalid(field.NewPath("spec", "subnet"), "x", "is wrong")})
	var refused *RequestError
	if !errors.As(err, &refused) || err.Error() != `IPPool "pool1" is invalid: spec.subnet: Invalid value: "x": is wrong` {
		t.Errorf("got %v", err)
	}
}
