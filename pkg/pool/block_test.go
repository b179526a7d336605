// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func rangesOf(text string) []netipx.IPRange {
	var out []netipx.IPRange
	for _, f := range strings.Fields(text) {
		out = append(out, netipx.MustParseIPRange(f))
	}
	return out
}

func rangesText(rs []netipx.IPRange) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.String())
	}
	return strings.Join(out, " ")
}

func TestBlockIPPool(t *testing.T) {
	anySubnet(t)
	pool := tens
	tests := []struct {
		name   string
		spec   v1alpha1.IPPoolSpec
		block  string
		usable string
		subnet string
	}{
		{name: "all of it", spec: pool(), block: "10.0.0.1-10.0.0.10", usable: "10.0.0.1-10.0.0.10", subnet: "10.0.0.0/24"},
		{name: "seed pool, first block", spec: seed(), block: "192.168.0.1-192.168.0.100", usable: "192.168.0.11-192.168.0.100", subnet: "192.168.0.0/16"},
		{name: "seed pool, second block", spec: seed(), block: "192.168.0.101-192.168.0.200", usable: "192.168.0.101-192.168.0.200", subnet: "192.168.0.0/16"},
		{name: "gateway in the middle", spec: pool(via("10.0.0.5")), block: "10.0.0.1-10.0.0.10", usable: "10.0.0.1-10.0.0.4 10.0.0.6-10.0.0.10", subnet: "10.0.0.0/24"},
		{name: "gateway of another block", spec: pool(via("10.0.0.5")), block: "10.0.0.11-10.0.0.20", usable: "10.0.0.11-10.0.0.20", subnet: "10.0.0.0/24"},
		{name: "exclusions from outside, inside and to outside", spec: pool(excluding("10.0.0.1-10.0.0.11 10.0.0.15-10.0.0.16 10.0.0.20-10.0.0.30")), block: "10.0.0.11-10.0.0.20",
			usable: "10.0.0.12-10.0.0.14 10.0.0.17-10.0.0.19", subnet: "10.0.0.0/24"},
		{name: "exclusion larger than the block", spec: pool(excluding("10.0.0.1-10.0.0.200")), block: "10.0.0.11-10.0.0.20", usable: "", subnet: "10.0.0.0/24"},
		{name: "position 0 is the block's first address", spec: pool(eachExcluding("0-0 9-9")), block: "10.0.0.11-10.0.0.20", usable: "10.0.0.12-10.0.0.19", subnet: "10.0.0.0/24"},
		{name: "positions that overlap", spec: pool(eachExcluding("2-5 4-7")), block: "10.0.0.11-10.0.0.20", usable: "10.0.0.11-10.0.0.12 10.0.0.19-10.0.0.20", subnet: "10.0.0.0/24"},
		{name: "positions in a block that is shorter than they are", spec: pool(eachExcluding("2-3 8-9")), block: "10.0.0.1-10.0.0.3", usable: "10.0.0.1-10.0.0.2", subnet: "10.0.0.0/24"},
		{name: "positions beyond the end of the IPv4 space", spec: v1alpha1.IPPoolSpec{Subnet: "255.255.255.0/24", PerNodeBlockSize: 10, PerNodeExclusions: positions("2-9")},
			block: "255.255.255.250-255.255.255.253", usable: "255.255.255.250-255.255.255.251", subnet: "255.255.255.0/24"},
		{name: "positions all beyond the end of the IPv4 space", spec: v1alpha1.IPPoolSpec{Subnet: "255.255.255.0/24", PerNodeBlockSize: 10, PerNodeExclusions: positions("8-9")},
			block: "255.255.255.250-255.255.255.253", usable: "255.255.255.250-255.255.255.253", subnet: "255.255.255.0/24"},
		{name: "/31", spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/31", PerNodeBlockSize: 2, Gateway: "10.0.0.0"}, block: "10.0.0.0-10.0.0.1", usable: "10.0.0.1-10.0.0.1", subnet: "10.0.0.0/31"},
		{name: "IPv6", spec: v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 500, Gateway: "fd00::1"}, block: "fd00::1-fd00::1f4", usable: "fd00::2-fd00::1f4", subnet: "fd00::/48"},
		{name: "subnet edited, block reaches over its ends", spec: pool(), block: "9.255.255.250-10.0.0.5", usable: "10.0.0.1-10.0.0.5", subnet: "10.0.0.0/24"},
		{name: "subnet edited, block reaches over the broadcast address", spec: pool(), block: "10.0.0.250-10.0.1.5", usable: "10.0.0.250-10.0.0.254", subnet: "10.0.0.0/24"},
		{name: "subnet edited, block is elsewhere", spec: pool(), block: "10.9.0.1-10.9.0.10", usable: "", subnet: "10.0.0.0/24"},
		{name: "subnet edited, block is of another family", spec: pool(eachExcluding("0-1")), block: "fd00::1-fd00::a", usable: "", subnet: "10.0.0.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := netipx.MustParseIPRange(tt.block)
			b := ipPool(t, tt.spec).block(Assignment{Node: "a", Range: r})
			if got := rangesText(b.Usable); got != tt.usable {
				t.Errorf("usable: got %q, want %q", got, tt.usable)
			}
			if b.Range != r || b.Subnet.String() != tt.subnet {
				t.Errorf("got range %s in %s, want %s in %s", b.Range, b.Subnet, r, tt.subnet)
			}
			if want := tt.spec.Gateway; b.Gateway.IsValid() != (want != "") || want != "" && b.Gateway != addr(want) {
				t.Errorf("gateway: got %s, want %q", b.Gateway, want)
			}
			if want := (v1alpha1.PoolReference{Kind: "IPPool", Name: "pool1"}); b.Pool != want {
				t.Errorf("pool: got %v, want %v", b.Pool, want)
			}
		})
	}
}

func TestBlockCIDRPool(t *testing.T) {
	type spec = v1alpha1.CIDRPoolSpec
	rail := func(edit ...func(*spec)) spec {
		s := spec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(1)}
		for _, e := range edit {
			e(&s)
		}
		return s
	}
	tests := []struct {
		name                          string
		spec                          spec
		block                         string // with its gateway, as in the status
		subnet, hosts, usable, gwWant string
	}{
		{name: "all hosts but the gateway", spec: rail(), block: "10.0.1.0/24@10.0.1.1",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.2-10.0.1.254", gwWant: "10.0.1.1"},
		{name: "gateway of a static allocation", spec: rail(), block: "10.0.1.0/24@10.0.1.10",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.1-10.0.1.9 10.0.1.11-10.0.1.254", gwWant: "10.0.1.10"},
		{name: "gateway that the status does not tell", spec: rail(), block: "10.0.1.0/24",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.2-10.0.1.254", gwWant: "10.0.1.1"},
		{name: "without gateway", spec: rail(func(s *spec) { s.GatewayIndex = nil }), block: "10.0.1.0/24",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.1-10.0.1.254"},
		{name: "position 0 is the network address", spec: rail(func(s *spec) { s.PerNodeExclusions = positions("0-3 254-255") }), block: "10.0.1.0/24",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.4-10.0.1.253", gwWant: "10.0.1.1"},
		{name: "exclusion over the whole prefix and more", spec: rail(func(s *spec) { s.Exclusions = exclude("10.0.0.5-10.0.2.9") }), block: "10.0.1.0/24",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "", gwWant: "10.0.1.1"},
		{name: "/31", spec: spec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 31, GatewayIndex: index(0)}, block: "10.0.0.2/31",
			subnet: "10.0.0.2/31", hosts: "10.0.0.2-10.0.0.3", usable: "10.0.0.3-10.0.0.3", gwWant: "10.0.0.2"},
		{name: "/31, position 1", spec: spec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 31, PerNodeExclusions: positions("1-1")}, block: "10.0.0.2/31",
			subnet: "10.0.0.2/31", hosts: "10.0.0.2-10.0.0.3", usable: "10.0.0.2-10.0.0.2"},
		{name: "/31 at the start of the cidr", spec: spec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 31}, block: "10.0.0.0/31",
			subnet: "10.0.0.0/31", hosts: "10.0.0.0-10.0.0.1", usable: "10.0.0.0-10.0.0.1"},
		{name: "/31 at the end of the cidr", spec: spec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 31}, block: "10.0.0.254/31",
			subnet: "10.0.0.254/31", hosts: "10.0.0.254-10.0.0.255", usable: "10.0.0.254-10.0.0.255"},
		{name: "/32", spec: spec{CIDR: "10.0.0.0/24", PerNodeNetworkPrefix: 32}, block: "10.0.0.7/32",
			subnet: "10.0.0.7/32", hosts: "10.0.0.7-10.0.0.7", usable: "10.0.0.7-10.0.0.7"},
		{name: "IPv6 /64", spec: spec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 64, GatewayIndex: index(1)}, block: "fd00:0:0:1::/64",
			subnet: "fd00:0:0:1::/64", hosts: "fd00:0:0:1::1-fd00::1:ffff:ffff:ffff:ffff", usable: "fd00:0:0:1::2-fd00::1:ffff:ffff:ffff:ffff", gwWant: "fd00:0:0:1::1"},
		{name: "IPv6 /127", spec: spec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 127, GatewayIndex: index(0)}, block: "fd00::/127",
			subnet: "fd00::/127", hosts: "fd00::-fd00::1", usable: "fd00::1-fd00::1", gwWant: "fd00::"},
		{name: "perNodeNetworkPrefix edited from 26", spec: rail(), block: "10.0.1.64/26@10.0.1.65",
			subnet: "10.0.1.64/26", hosts: "10.0.1.65-10.0.1.126", usable: "10.0.1.66-10.0.1.126", gwWant: "10.0.1.65"},
		{name: "perNodeNetworkPrefix edited from 16", spec: rail(), block: "10.0.0.0/16@10.0.0.1",
			subnet: "10.0.0.0/16", hosts: "10.0.0.1-10.0.255.254", usable: "10.0.0.2-10.0.255.254", gwWant: "10.0.0.1"},
		{name: "cidr edited to a part of the prefix", spec: spec{CIDR: "10.0.1.0/25", PerNodeNetworkPrefix: 27}, block: "10.0.1.0/24",
			subnet: "10.0.1.0/24", hosts: "10.0.1.1-10.0.1.254", usable: "10.0.1.1-10.0.1.127"},
		{name: "cidr edited, prefix is elsewhere", spec: rail(), block: "10.9.0.0/24@10.9.0.1",
			subnet: "10.9.0.0/24", hosts: "10.9.0.1-10.9.0.254", usable: "", gwWant: "10.9.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := cidrPool(t, tt.spec).block(cidrBlocks(cidrStatus("a=" + tt.block))[0])
			if got := rangesText(b.Usable); got != tt.usable {
				t.Errorf("usable: got %q, want %q", got, tt.usable)
			}
			if b.Subnet.String() != tt.subnet || b.Range.String() != tt.hosts {
				t.Errorf("got %s in %s, want %s in %s", b.Range, b.Subnet, tt.hosts, tt.subnet)
			}
			if b.Gateway.IsValid() != (tt.gwWant != "") || tt.gwWant != "" && b.Gateway != addr(tt.gwWant) {
				t.Errorf("gateway: got %s, want %q", b.Gateway, tt.gwWant)
			}
		})
	}
}

// A range that is no prefix can only come from a mistake in the code around it.
func TestBlockCIDRPoolNoPrefix(t *testing.T) {
	b := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(1)}).
		block(Assignment{Node: "a", Range: netipx.MustParseIPRange("10.0.0.1-10.0.0.9")})
	if len(b.Usable) != 0 || b.Range.IsValid() || b.Gateway.IsValid() {
		t.Errorf("got %+v, want nothing to hand out", b)
	}
}

func TestCandidates(t *testing.T) {
	const last6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	tests := []struct {
		name   string
		block  string
		usable string // all of the block when empty
		last   string
		want   string
	}{
		{name: "none given yet", block: "10.0.0.1-10.0.0.4", want: ".1 .2 .3 .4"},
		{name: "after the first", block: "10.0.0.1-10.0.0.4", last: "10.0.0.1", want: ".2 .3 .4 .1"},
		{name: "after one in the middle", block: "10.0.0.1-10.0.0.4", last: "10.0.0.2", want: ".3 .4 .1 .2"},
		{name: "after the last", block: "10.0.0.1-10.0.0.4", last: "10.0.0.4", want: ".1 .2 .3 .4"},
		{name: "last is before the block", block: "10.0.0.1-10.0.0.4", last: "10.0.0.0", want: ".1 .2 .3 .4"},
		{name: "last is after the block", block: "10.0.0.1-10.0.0.4", last: "10.0.0.9", want: ".1 .2 .3 .4"},
		{name: "last is of another family", block: "10.0.0.1-10.0.0.4", last: "fd00::1", want: ".1 .2 .3 .4"},
		{name: "last is excluded now", block: "10.0.0.1-10.0.0.6", usable: "10.0.0.1-10.0.0.2 10.0.0.5-10.0.0.6", last: "10.0.0.4", want: ".5 .6 .1 .2"},
		{name: "last is excluded now, and all after it", block: "10.0.0.1-10.0.0.6", usable: "10.0.0.1-10.0.0.2", last: "10.0.0.4", want: ".1 .2"},
		{name: "last is excluded now, and all before it", block: "10.0.0.1-10.0.0.6", usable: "10.0.0.5-10.0.0.6", last: "10.0.0.3", want: ".5 .6"},
		{name: "three parts, from the one in the middle", block: "10.0.0.1-10.0.0.9", usable: "10.0.0.1-10.0.0.2 10.0.0.4-10.0.0.6 10.0.0.8-10.0.0.9", last: "10.0.0.5", want: ".6 .8 .9 .1 .2 .4 .5"},
		{name: "one address", block: "10.0.0.1-10.0.0.1", last: "10.0.0.1", want: ".1"},
		{name: "nothing usable", block: "10.0.0.1-10.0.0.4", usable: "-", last: "10.0.0.2", want: ""},
		{name: "end of the IPv4 space, none given yet", block: "255.255.255.254-255.255.255.255", want: "255.255.255.254 255.255.255.255"},
		{name: "end of the IPv4 space, before its last address", block: "255.255.255.254-255.255.255.255", last: "255.255.255.254", want: "255.255.255.255 255.255.255.254"},
		{name: "end of the IPv4 space, after its last address", block: "255.255.255.254-255.255.255.255", last: "255.255.255.255", want: "255.255.255.254 255.255.255.255"},
		{name: "end of the IPv6 space, after its last address", block: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-" + last6, last: last6, want: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe " + last6},
		{name: "end of the IPv6 space, before its last address", block: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-" + last6, last: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", want: last6 + " ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"},
		{name: "start of the IPv4 space", block: "0.0.0.0-0.0.0.1", last: "0.0.0.0", want: "0.0.0.1 0.0.0.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &Block{Range: netipx.MustParseIPRange(tt.block)}
			switch tt.usable {
			case "":
				b.Usable = []netipx.IPRange{b.Range}
			case "-":
			default:
				b.Usable = rangesOf(tt.usable)
			}
			var last netip.Addr
			if tt.last != "" {
				last = addr(tt.last)
			}
			var got []string
			for a := range b.Candidates(last) {
				got = append(got, strings.TrimPrefix(a.String(), "10.0.0"))
				if len(got) > 20 {
					t.Fatalf("does not end: %v", got)
				}
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

// A walk over a /48 would not end in a lifetime.
func TestCandidatesAreLazy(t *testing.T) {
	p := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 48, GatewayIndex: index(1),
		Exclusions: exclude("fd00::4-fd00:0:0:8000::")})
	b := p.block(cidrBlocks(cidrStatus("a=fd00::/48"))[0])
	for _, tt := range []struct{ last, want string }{
		{last: "fd00::1", want: "fd00::2 fd00::3 fd00:0:0:8000::1"},
		{last: "fd00::2", want: "fd00::3 fd00:0:0:8000::1 fd00:0:0:8000::2"},
		{last: "fd00:0:0:ffff:ffff:ffff:ffff:fffe", want: "fd00::ffff:ffff:ffff:ffff:ffff fd00::2 fd00::3"},
		{last: "fd00:0:0:ffff:ffff:ffff:ffff:ffff", want: "fd00::2 fd00::3 fd00:0:0:8000::1"},
	} {
		var got []string
		for a := range b.Candidates(addr(tt.last)) {
			if got = append(got, a.String()); len(got) == 3 {
				break
			}
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("after %s: got %s, want %s", tt.last, text, tt.want)
		}
	}
}

// Breaking off in the part after last must not start the part before it; range
// would panic on a second yield.
func TestCandidatesStop(t *testing.T) {
	b := &Block{Range: netipx.MustParseIPRange("10.0.0.1-10.0.0.6"), Usable: rangesOf("10.0.0.1-10.0.0.2 10.0.0.4-10.0.0.6")}
	for stop := 1; stop <= 5; stop++ {
		n := 0
		for range b.Candidates(addr("10.0.0.4")) {
			if n++; n == stop {
				break
			}
		}
		if n != stop {
			t.Errorf("got %d candidates, want %d", n, stop)
		}
	}
	for round := range 2 { // the sequence may be used again
		n := 0
		for range b.Candidates(netip.Addr{}) {
			n++
		}
		if n != 5 {
			t.Errorf("round %d: %d candidates, want 5", round, n)
		}
	}
}

func TestCandidatesAllocations(t *testing.T) {
	for _, text := range []string{"10.0.0.1-10.0.3.232", "fd00::1-fd00::3e8"} {
		b := &Block{Range: netipx.MustParseIPRange(text), Usable: rangesOf(text)}
		last := b.Range.From()
		allocs := testing.AllocsPerRun(10, func() {
			n := 0
			for a := range b.Candidates(last) {
				if a.IsValid() {
					n++
				}
			}
			if n != 1000 {
				t.Fatalf("%d candidates, want 1000", n)
			}
		})
		if allocs > 0 {
			t.Errorf("%s: %v allocations for 1000 candidates, want none", text, allocs)
		}
	}
}

func TestRandomAddress(t *testing.T) {
	for _, text := range []string{"10.0.0.1-10.0.0.4", "10.0.0.1-10.0.0.1", "0.0.0.0-255.255.255.255", "fd00::1-fd00::1:0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		b := &Block{Range: netipx.MustParseIPRange(text)}
		seen := map[netip.Addr]bool{}
		for range 200 {
			a := b.RandomAddress()
			if !b.Range.Contains(a) {
				t.Fatalf("%s: %s is not in it", text, a)
			}
			seen[a] = true
		}
		// One of four is missed in 200 with a chance of less than 1 in 10^24.
		want := 4
		if b.Range.From() == b.Range.To() {
			want = 1
		}
		if len(seen) < want {
			t.Errorf("%s: only %d addresses in 200 times", text, len(seen))
		}
	}
}

func TestBlockJSON(t *testing.T) {
	ip := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.0.5", DefaultGateway: true, Routes: []v1alpha1.Route{{Dst: "172.16.0.0/12"}}})
	bare := ipPool(t, tens(excluding("10.0.0.0-10.0.0.255")))
	rail := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 64, GatewayIndex: index(1)})
	first := Assignment{Node: "a", Range: netipx.MustParseIPRange("10.0.0.1-10.0.0.10")}
	tests := []struct {
		name  string
		block *Block
		want  string
	}{
		{"IPPool", ip.block(first), `{"pool":{"kind":"IPPool","name":"pool1"},"domain":"pool1","subnet":"10.0.0.0/24","range":"10.0.0.1-10.0.0.10","usable":["10.0.0.1-10.0.0.4","10.0.0.6-10.0.0.10"],"gateway":"10.0.0.5","routes":["0.0.0.0/0","172.16.0.0/12"]}`},
		{"CIDRPool", rail.block(cidrBlocks(cidrStatus("a=fd00::/64"))[0]), `{"pool":{"kind":"CIDRPool","name":"rail1"},"domain":"rail1","subnet":"fd00::/64","range":"fd00::1-fd00::ffff:ffff:ffff:ffff","usable":["fd00::2-fd00::ffff:ffff:ffff:ffff"],"gateway":"fd00::1"}`},
		{"nothing usable, no gateway", bare.block(first), `{"pool":{"kind":"IPPool","name":"pool1"},"domain":"pool1","subnet":"10.0.0.0/24","range":"10.0.0.1-10.0.0.10","usable":[]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, err := json.Marshal(tt.block)
			if err != nil || string(text) != tt.want {
				t.Errorf("got %s, %v\nwant %s", text, err, tt.want)
			}
			var back Block
			if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(&back, tt.block) {
				t.Errorf("got back %+v, %v\nwant %+v", back, err, *tt.block)
			}
		})
	}
}
