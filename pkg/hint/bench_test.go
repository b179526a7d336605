// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// pinned is what calls do over and over, with the number of allocations that it
// may make at most.
func pinned(tb testing.TB) []struct {
	name   string
	allocs float64
	run    func()
} {
	h := newHint(tb)
	attached := func(i int) Attachment {
		return Attachment{ContainerID: fmt.Sprintf("%064x", i), Interface: "net1"}
	}
	a := addr1
	const full = 250
	for i := range full {
		h.Claimed(Entry{Attachment: attached(i), Domain: "p", Address: a, UID: "9d9a3f0e-2a5c-4f0e-8a53-0d3f0c6f6a11"})
		a = a.Next()
	}
	next := Entry{Attachment: attached(full), Domain: "p", Address: a}
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}
	h.SetView(ref, "1", &pool.Block{Pool: ref, Domain: ref.Name, Subnet: netip.MustParsePrefix("10.0.0.0/16")})
	name4, name6 := v1alpha1.AllocationName("p", addr1), v1alpha1.AllocationName("p", addr6)
	return []struct {
		name   string
		allocs float64
		run    func()
	}{
		{"name of an IPv4 address", 2, func() { v1alpha1.AllocationName("p", addr1) }},
		{"name of an IPv6 address", 3, func() { v1alpha1.AllocationName("p", addr6) }},
		{"parse the name of an IPv4 address", 4, func() { _, _, _ = v1alpha1.ParseAllocationName(name4) }},
		{"parse the name of an IPv6 address", 5, func() { _, _, _ = v1alpha1.ParseAllocationName(name6) }},
		{"enter an address and drop it", 33, func() {
			h.Claiming(next)
			h.NotClaimed(next)
		}},
		{"enter an address that is taken", 8, func() { h.Claiming(heldBy(next.Attachment, addr1, "")) }},
		{"find one among 250", 790, func() { _, _ = h.Holding(attached(7)) }},
		{"load the view of a pool", 22, func() { h.View(ref) }},
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
