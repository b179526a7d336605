// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// segmentsText is "node=from-to size kinds" of each, with a letter for each address of at
// most 20: f is free, u is in no block, x is excluded, g is a gateway.
func segmentsText(in []Segment) string {
	var out []string
	for _, s := range in {
		kinds := ""
		for a := s.Range.From(); len(kinds) < 20 && s.Range.Contains(a); a = a.Next() {
			kinds += string("fuxg"[s.Kind(a)])
		}
		node := s.Node
		if s.Earlier {
			node += "(earlier)"
		}
		out = append(out, fmt.Sprintf("%s=%s %d %s", node, s.Range, s.Size(), kinds))
	}
	return strings.Join(out, "; ")
}

func TestSegments(t *testing.T) {
	small := func(edit ...func(*v1alpha1.IPPoolSpec)) v1alpha1.IPPoolSpec {
		s := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28", PerNodeBlockSize: 4}
		for _, e := range edit {
			e(&s)
		}
		return s
	}
	gateway := func(s *v1alpha1.IPPoolSpec) { s.Gateway = "10.0.0.1" }
	overflow := func(s *v1alpha1.IPPoolSpec) { s.Overflow = v1alpha1.OverflowSubnet }
	shared := func(s *v1alpha1.IPPoolSpec) { s.PerNodeBlockSize = 0 }
	for _, tc := range []struct {
		name   string
		spec   v1alpha1.IPPoolSpec
		blocks string
		want   string
	}{
		{"no blocks yet", small(), "", "=10.0.0.1-10.0.0.14 14 uuuuuuuuuuuuuu"},
		{"a block in the middle", small(gateway), "a=10.0.0.5-10.0.0.8", "=10.0.0.1-10.0.0.4 3 guuu; a=10.0.0.5-10.0.0.8 4 ffff; =10.0.0.9-10.0.0.14 6 uuuuuu"},
		{"blocks that touch, and the end", small(excluding("10.0.0.2-10.0.0.3")), "b=10.0.0.5-10.0.0.8 a=10.0.0.1-10.0.0.4", "a=10.0.0.1-10.0.0.4 2 fxxf; b=10.0.0.5-10.0.0.8 4 ffff; =10.0.0.9-10.0.0.14 6 uuuuuu"},
		{"nodes that overflow take from all", small(overflow), "a=10.0.0.1-10.0.0.4", "a=10.0.0.1-10.0.0.4 4 ffff; =10.0.0.5-10.0.0.14 10 ffffffffff"},
		{"no node has a block", small(shared, gateway), "", "=10.0.0.0-10.0.0.15 13 xgfffffffffffffx"},
		{"outside of the subnet", small(), "a=10.9.0.1-10.9.0.4", "=10.0.0.1-10.0.0.14 14 uuuuuuuuuuuuuu; a(earlier)=10.9.0.1-10.9.0.4 0 xxxx"},
		{"blocks that overlap", small(), "a=10.0.0.1-10.0.0.8 b=10.0.0.5-10.0.0.8", "a(earlier)=10.0.0.1-10.0.0.8 8 ffffffff; b=10.0.0.5-10.0.0.8 4 ffff; =10.0.0.9-10.0.0.14 6 uuuuuu"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := segmentsText(ipPool(t, tc.spec).Segments(ipBlocks(ipStatus(tc.blocks)))); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// Segments cover a pool without a hole, and each block is one of them.
func TestSegmentsCover(t *testing.T) {
	p := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "fd00::/112", PerNodeBlockSize: 100})
	blocks, _ := p.Carve(nil, []string{"a", "b", "c"}, nil)
	next := netip.MustParseAddr("fd00::1")
	nodes := 0
	for _, s := range p.Segments(blocks) {
		if s.Range.From() != next {
			t.Errorf("%s does not begin at %s", s.Range, next)
		}
		if next = s.Range.To().Next(); s.Node != "" {
			nodes++
		}
	}
	if next != netip.MustParseAddr("fd00::1:0") || nodes != 3 {
		t.Errorf("the last address is %s, %d blocks", next.Prev(), nodes)
	}
}

// A CIDRPool has nothing to give between its prefixes.
func TestSegmentsOfPrefixes(t *testing.T) {
	gateway := int32(1)
	obj := &v1alpha1.CIDRPool{Spec: v1alpha1.CIDRPoolSpec{CIDR: "10.0.0.0/28", PerNodeNetworkPrefix: 30, GatewayIndex: &gateway}}
	obj.Name = "p"
	p, errs := ObjectOf(obj).Parse()
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	blocks, _ := p.Carve(nil, []string{"a"}, nil)
	want := "a=10.0.0.0-10.0.0.3 1 xgfx; =10.0.0.4-10.0.0.15 12 uuuuuuuuuuuu"
	if got := segmentsText(p.Segments(blocks)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
