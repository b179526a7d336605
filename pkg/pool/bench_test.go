// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"testing"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// pinned is what an ADD and the controller do over and over, with the number of
// allocations that it may make at most.
func pinned(tb testing.TB) []struct {
	name   string
	allocs float64
	run    func()
} {
	huge := ipPool(tb, v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 1_000_000_000, Gateway: "fd00::1"})
	assigned := Assignment{Node: "a", Range: netipx.MustParseIPRange("fd00::1-fd00::3b9a:ca00")}
	block := huge.block(assigned)
	blocks := []*Block{block}
	requested := Want{Addresses: []netip.Addr{addr("fd00::77")}}
	nodes := nodeNames(5000)
	grid := ipPool(tb, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/8", PerNodeBlockSize: 100, Gateway: "10.0.0.1"})
	full, _ := grid.Carve(nil, nodes, nobody)
	status := ipAllocations(full)
	return []struct {
		name   string
		allocs float64
		run    func()
	}{
		{"first candidate of a block of a billion", 0, func() {
			for range block.Candidates(netip.Addr{}) {
				break
			}
		}},
		{"block of a node", 10, func() { huge.block(assigned) }},
		{"match nothing requested", 1, func() { _, _ = Match(blocks, Want{}) }},
		{"match a requested address", 1, func() { _, _ = Match(blocks, requested) }},
		{"carve for 5,000 new nodes", 100_100, func() { grid.Carve(nil, nodes, nobody) }},
		{"carve for one new node of 5,000", 115_100, func() { grid.Carve(full[1:], nodes, nobody) }},
		{"read a status of 5,000 blocks", 1, func() { ipBlocks(status) }},
		{"write a status of 5,000 blocks", 10_001, func() { ipAllocations(full) }},
	}
}

func TestAllocationsArePinned(t *testing.T) {
	for _, p := range pinned(t) {
		if got := testing.AllocsPerRun(5, p.run); got > p.allocs {
			t.Errorf("%s: %v allocations, want at most %v", p.name, got, p.allocs)
		}
	}
}

func BenchmarkPinned(b *testing.B) {
	for _, p := range pinned(b) {
		b.Run(p.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.run()
			}
		})
	}
}
