// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// shared returns the space of a pool without blocks as a node sees it.
func shared(t testing.TB, node string, spec v1alpha1.IPPoolSpec) *Block {
	t.Helper()
	b, ok := ipPool(t, spec).BlockOf(nil, node)
	if !ok || !b.Shared {
		t.Fatalf("block %+v, %v", b, ok)
	}
	return b
}

func TestPermute(t *testing.T) {
	for n := uint64(1); n <= 300; n++ {
		seen := make([]bool, n)
		for x := range n {
			y := permute(x, n, n*7)
			if y >= n || seen[y] {
				t.Fatalf("n %d: %d comes twice, or is too large", n, y)
			}
			if seen[y] = true; invert(y, n, n*7) != x {
				t.Fatalf("n %d: %d goes to %d, and that to %d", n, x, y, invert(y, n, n*7))
			}
		}
	}
	for _, n := range []uint64{1<<58 - 1, 1 << 58, 1<<58 + 1, maxSize} {
		for range 100 {
			x := rand.Uint64() % n
			if y := permute(x, n, 1); y >= n || invert(y, n, 1) != x {
				t.Errorf("n %d: %d goes to %d, and that to %d", n, x, y, invert(y, n, 1))
			}
		}
	}
}

// TestSharedCandidatesAgainstModel compares the candidates of a space that nodes share with
// a walk over all of its addresses.
func TestSharedCandidatesAgainstModel(t *testing.T) {
	const randSeed = 19690720
	r := rand.New(rand.NewSource(randSeed))
	for round := range 1000 {
		size := 1 << r.Intn(12)
		base := addr("10.0.0.0")
		if r.Intn(2) == 0 {
			base = addr("fd00::")
		}
		b := &Block{Shared: true, Seed: r.Uint64(), FromEnd: r.Intn(3) == 0}
		usable := make([]bool, size)
		for i := range usable {
			usable[i] = true
		}
		for range r.Intn(4) {
			for i := r.Intn(size); i < size && r.Intn(30) > 0; i++ {
				usable[i] = false
			}
		}
		var set netipx.IPSetBuilder
		var want []netip.Addr
		for i, a := 0, base; i < size; i, a = i+1, a.Next() {
			if usable[i] {
				set.Add(a)
				want = append(want, a)
			}
			b.Range = netipx.IPRangeFrom(base, a)
		}
		ranges, _ := set.IPSet()
		b.Usable = ranges.Ranges()

		first := slices.Collect(b.Candidates(netip.Addr{}))
		if sorted := slices.SortedFunc(slices.Values(first), netip.Addr.Compare); !slices.Equal(sorted, want) {
			t.Fatalf("round %d, %v: candidates %v\nwant %v in any order", round, b.Usable, sorted, want)
		}
		if len(want) == 0 {
			if a := b.RandomAddress(); a.IsValid() {
				t.Fatalf("round %d: a random address of nothing is %s", round, a)
			}
			continue
		}
		// From any of them on, the same ones in the same order.
		for range 3 {
			at := r.Intn(len(first))
			got := slices.Collect(b.Candidates(first[at]))
			if !slices.Equal(got, slices.Concat(first[at+1:], first[:at+1])) {
				t.Fatalf("round %d, %v, after %s:\n got %v\nwant %v and so on", round, b.Usable, first[at], got, first[at+1:])
			}
		}
		// From an address that is not usable, or none of the space, all of them.
		last := base
		for range r.Intn(size + 3) {
			last = last.Next()
		}
		if got := slices.SortedFunc(b.Candidates(last), netip.Addr.Compare); !slices.Equal(got, want) {
			t.Fatalf("round %d, %v, after %s: %v", round, b.Usable, last, got)
		}
		if a := b.RandomAddress(); !b.Contains(a) {
			t.Fatalf("round %d: random address %s is not usable", round, a)
		}
		// Behind the end of a run begins another run.
		end := b.EndOfRun(first[0])
		if i := slices.Index(first, end); i < 0 || i >= runLength || len(first) > runLength && i < runLength-1 && first[i] != want[len(want)-1] {
			t.Fatalf("round %d: the run of %s ends with %s, the candidate %d", round, first[0], end, i)
		}
		if b.FromEnd && len(want) > 2*256 && slices.ContainsFunc(first[:240], func(a netip.Addr) bool { return slices.Index(want, a) < len(want)-256 }) {
			t.Fatalf("round %d: does not begin with the last 256 of %d addresses: %v", round, len(want), first[:240])
		}
	}
}

// A walk over a /64 would not end in a lifetime.
func TestSharedCandidatesOfLargeSpaces(t *testing.T) {
	for _, subnet := range []string{"10.0.0.0/8", "fd00::/64", "fd00::/48", "fd00::/8"} {
		first := netip.MustParsePrefix(subnet).Addr()
		b := shared(t, "a", v1alpha1.IPPoolSpec{Subnet: subnet, Gateway: first.Next().String(), Exclusions: exclude(first.Next().Next().String() + "-" + first.Next().Next().String())})
		const many = 2000
		var got []netip.Addr
		seen := map[netip.Addr]bool{}
		for a := range b.Candidates(netip.Addr{}) {
			if seen[a] || !b.Contains(a) {
				t.Fatalf("%s: %s comes twice, or is not usable", subnet, a)
			}
			seen[a] = true
			if got = append(got, a); len(got) == many {
				break
			}
		}
		i := 0
		for a := range b.Candidates(got[many/2]) {
			if i++; many/2+i >= many {
				break
			} else if a != got[many/2+i] {
				t.Fatalf("%s: after %s comes %s, want %s", subnet, got[many/2], a, got[many/2+i])
			}
		}
		next := netip.Addr{}
		for a := range shared(t, "b", v1alpha1.IPPoolSpec{Subnet: subnet}).Candidates(netip.Addr{}) {
			next = a
			break
		}
		if seen[next] {
			t.Errorf("%s: another node begins with %s, too", subnet, next)
		}
	}
}

func TestOverflow(t *testing.T) {
	spec := tens(blockSize(10), via("10.0.0.5"))
	spec.Overflow = v1alpha1.OverflowSubnet
	spec.Exclusions = exclude("10.0.0.100-10.0.0.199")
	p := ipPool(t, spec)
	blocks := ipBlocks(ipStatus("a=10.0.0.1-10.0.0.10 b=10.0.0.21-10.0.0.30"))
	b, ok := p.BlockOf(blocks, "a")
	if !ok || len(b.Overflow) != 2 {
		t.Fatalf("block %+v", b)
	}
	free, whole := b.Overflow[0], b.Overflow[1]
	if got := rangesText(free.Usable); got != "10.0.0.11-10.0.0.20 10.0.0.31-10.0.0.99 10.0.0.200-10.0.0.254" || !free.FromEnd {
		t.Errorf("nobody's space is %s, from its end: %v", got, free.FromEnd)
	}
	if got := rangesText(whole.Usable); got != "10.0.0.1-10.0.0.4 10.0.0.6-10.0.0.99 10.0.0.200-10.0.0.254" || whole.FromEnd {
		t.Errorf("the whole subnet is %s", got)
	}
	if free.Pool != b.Pool || free.Domain != b.Domain || whole.Subnet != b.Subnet || whole.Gateway != b.Gateway || !free.Shared || !whole.Shared || free.Seed == 0 {
		t.Errorf("free %+v, whole %+v", free, whole)
	}
	var all []Assignment
	for i := range 25 {
		r, _ := p.grid.at(p.grid.position(p.grid.first).SetInt64(int64(i)))
		all = append(all, Assignment{Node: string(rune('a' + i)), Range: r})
	}
	if b, _ := p.BlockOf(all, "a"); len(b.Overflow) != 2 || rangesText(b.Overflow[0].Usable) != "10.0.0.251-10.0.0.254" {
		t.Errorf("overflow %+v", b.Overflow)
	}
	many := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 2, Overflow: v1alpha1.OverflowSubnet})
	blocks = nil
	for i := range 1000 {
		r, _ := many.grid.at(many.grid.position(many.grid.first).SetInt64(int64(2 * i)))
		blocks = append(blocks, Assignment{Node: string(rune('a' + i)), Range: r})
	}
	b, _ = many.BlockOf(blocks, "a")
	if n := len(b.Overflow[0].Usable); n != maxFreeRanges || b.Overflow[0].Usable[n-1].To() != addr("10.0.255.254") {
		t.Errorf("%d ranges are kept on each node's disk: %v", n, b.Overflow[0].Usable)
	}
}
