// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// model is the naive counterpart of a Pool in a subnet of at most 64 addresses:
// it knows addresses by number and decides by walking over all of them.
type model struct {
	v6       bool
	cidr     bool // a CIDRPool, else an IPPool
	size     int  // addresses in the subnet, a power of two
	step     int  // addresses in a block
	excluded []bool
	perNode  []bool
	gateway  int // of an IPPool; -1 when there is none
	statics  []modelBlock
}

// modelBlock are the addresses from first to last.
type modelBlock struct {
	node        string
	first, last int
}

func (b modelBlock) overlaps(o modelBlock) bool { return b.first <= o.last && o.first <= b.last }

func randomModel(r *rand.Rand) model {
	m := model{v6: r.Intn(2) == 0, cidr: r.Intn(2) == 0, size: 1 << r.Intn(7), gateway: -1}
	if m.cidr {
		m.step = m.size >> r.Intn(5)
		m.step = max(m.step, 1)
	} else {
		first, last := m.hosts(0, m.size)
		m.step = 1 + r.Intn(min(last-first+1, 9))
		if r.Intn(2) == 0 {
			m.gateway = r.Intn(m.size)
		}
	}
	m.excluded, m.perNode = make([]bool, m.size), make([]bool, m.step)
	for range r.Intn(4) {
		from := r.Intn(m.size)
		for i := from; i <= min(from+r.Intn(1+m.size/2), m.size-1); i++ {
			m.excluded[i] = true
		}
	}
	for range r.Intn(3) * r.Intn(2) {
		m.perNode[r.Intn(m.step)] = true
	}
	if m.cidr {
		for i := range r.Intn(4) {
			b := modelBlock{first: m.step * r.Intn(m.size/m.step)}
			b.last = b.first + m.step - 1
			if r.Intn(3) > 0 {
				b.node = string(rune('a' + i))
			}
			if !slices.ContainsFunc(m.statics, b.overlaps) {
				m.statics = append(m.statics, b)
			}
		}
	}
	return m
}

// hosts returns the first and the last host among n addresses from start.
func (m model) hosts(start, n int) (first, last int) {
	first, last = start, start+n-1
	if n <= 2 {
		return first, last
	}
	if !m.v6 {
		last--
	}
	return first + 1, last
}

// blocks are all that the subnet is cut into.
func (m model) blocks() []modelBlock {
	first, last := 0, m.size-1
	if !m.cidr {
		first, last = m.hosts(0, m.size)
	}
	var out []modelBlock
	for i := first; i+m.step-1 <= last; i += m.step {
		out = append(out, modelBlock{first: i, last: i + m.step - 1})
	}
	return out
}

func (m model) isBlock(b modelBlock) bool {
	b.node = ""
	return slices.Contains(m.blocks(), b)
}

// wasted walks over the addresses of a block. What counts of a CIDRPool's
// prefix is all but the broadcast address.
func (m model) wasted(b modelBlock) bool {
	last := b.last
	if m.cidr {
		_, last = m.hosts(b.first, m.step)
	}
	for i := b.first; i <= last; i++ {
		if !m.excluded[i] && !m.perNode[i-b.first] && (m.cidr || m.step > 1 || i != m.gateway) {
			return false
		}
	}
	return true
}

func (m model) carve(current []modelBlock, nodes, holds []string) (out []modelBlock, unserved []string) {
	owned := map[int]bool{}
	served := map[string]bool{}
	give := func(b modelBlock) bool {
		for i := b.first; i <= b.last; i++ {
			if owned[i] || served[b.node] {
				return false
			}
		}
		for i := b.first; i <= b.last; i++ {
			owned[i] = true
		}
		served[b.node] = true
		out = append(out, b)
		return true
	}
	fixed := func(node string) bool {
		return slices.ContainsFunc(m.statics, func(s modelBlock) bool { return s.node == node })
	}
	for _, b := range current {
		if slices.Contains(holds, b.node) {
			give(b)
		}
	}
	for _, s := range m.statics {
		if slices.Contains(nodes, s.node) {
			give(s)
		}
		for i := s.first; i <= s.last; i++ {
			owned[i] = true
		}
	}
	for _, b := range current {
		if slices.Contains(nodes, b.node) && !fixed(b.node) && m.isBlock(b) && !m.wasted(b) {
			give(b)
		}
	}
	for _, node := range slices.Sorted(slices.Values(nodes)) {
		done := served[node]
		for _, b := range m.blocks() {
			if done || fixed(node) {
				break
			}
			done = !m.wasted(b) && give(modelBlock{node, b.first, b.last})
		}
		if !done {
			unserved = append(unserved, node)
		}
	}
	slices.SortFunc(out, func(a, b modelBlock) int { return a.first - b.first })
	return out, unserved
}

// The same pool for the code under test.

func (m model) addr(i int) netip.Addr {
	if m.v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i))
}

func (m model) prefix(n int) netip.Prefix {
	bits := m.addr(0).BitLen()
	for ; n > 1; n /= 2 {
		bits--
	}
	return netip.PrefixFrom(m.addr(0), bits)
}

func (m model) assignment(b modelBlock) Assignment {
	return Assignment{Node: b.node, Range: netipx.IPRangeFrom(m.addr(b.first), m.addr(b.last))}
}

func (m model) assignments(in []modelBlock) []Assignment {
	var out []Assignment
	for _, b := range in {
		out = append(out, m.assignment(b))
	}
	return out
}

func (m model) pool(t *testing.T) *Pool {
	var excluded []v1alpha1.ExcludeRange
	for i, x := range m.excluded {
		if x {
			excluded = append(excluded, v1alpha1.ExcludeRange{StartIP: m.addr(i).String(), EndIP: m.addr(i).String()})
		}
	}
	var perNode []v1alpha1.ExcludeIndexRange
	for i, x := range m.perNode {
		if x {
			perNode = append(perNode, v1alpha1.ExcludeIndexRange{StartIndex: int32(i), EndIndex: int32(i)})
		}
	}
	if !m.cidr {
		spec := v1alpha1.IPPoolSpec{Subnet: m.prefix(m.size).String(), PerNodeBlockSize: m.step, Exclusions: excluded, PerNodeExclusions: perNode}
		if m.gateway >= 0 {
			spec.Gateway = m.addr(m.gateway).String()
		}
		return ipPool(t, spec)
	}
	spec := v1alpha1.CIDRPoolSpec{CIDR: m.prefix(m.size).String(), PerNodeNetworkPrefix: int32(m.prefix(m.step).Bits()), Exclusions: excluded, PerNodeExclusions: perNode}
	for _, s := range m.statics {
		prefix := netip.PrefixFrom(m.addr(s.first), m.prefix(m.step).Bits())
		spec.StaticAllocations = append(spec.StaticAllocations, v1alpha1.CIDRPoolStaticAllocation{NodeName: s.node, Prefix: prefix.String()})
	}
	return cidrPool(t, spec)
}

func some(r *rand.Rand, of []string) []string {
	var out []string
	for _, s := range of {
		if r.Intn(2) == 0 {
			out = append(out, s)
		}
	}
	return out
}

// TestCarveAgainstModel carves a pool again and again while nodes come and go,
// hold addresses or not, and the specification is edited under them.
func TestCarveAgainstModel(t *testing.T) {
	const randSeed = 20261123
	t.Logf("seed %d", randSeed)
	r := rand.New(rand.NewSource(randSeed))
	all := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	for round := range 3000 {
		m := randomModel(r)
		var current []modelBlock
		for step := range 5 {
			if step > 0 && r.Intn(2) == 0 { // an edit, in a subnet that is not smaller
				if e := randomModel(r); e.v6 == m.v6 && e.cidr == m.cidr && e.size >= m.size {
					m = e
				}
			}
			nodes, holds := some(r, all), some(r, all)
			r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })

			got, unserved := m.pool(t).Carve(m.assignments(current), nodes, func(n string) bool { return slices.Contains(holds, n) })
			want, wantUnserved := m.carve(current, nodes, holds)
			for i := range got {
				if !m.cidr && m.gateway >= 0 && got[i].Gateway != m.addr(m.gateway) {
					t.Errorf("round %d.%d: gateway %s, want %s", round, step, got[i].Gateway, m.addr(m.gateway))
				}
				got[i].Gateway = netip.Addr{}
			}
			if !slices.Equal(got, m.assignments(want)) || !slices.Equal(unserved, wantUnserved) {
				t.Fatalf("round %d.%d: %+v\ncurrent %v\nnodes %v, holding %v\n got %v, unserved %v\nwant %v, unserved %v",
					round, step, m, current, nodes, holds, got, unserved, m.assignments(want), wantUnserved)
			}
			m.checkInvariants(t, current, nodes, holds, got, unserved)
			if t.Failed() {
				t.Fatalf("round %d.%d: %+v\ncurrent %v\nnodes %v, holding %v\ngot %v", round, step, m, current, nodes, holds, got)
			}
			current = want
		}
	}
}

// checkInvariants checks what must hold whatever the rules are. The blocks in
// current come from an earlier carving, so they do not overlap.
func (m model) checkInvariants(t *testing.T, current []modelBlock, nodes, holds []string, got []Assignment, unserved []string) {
	of := map[string]netipx.IPRange{}
	for i, a := range got {
		if _, twice := of[a.Node]; twice {
			t.Errorf("%s has two blocks", a.Node)
		}
		of[a.Node] = a.Range
		if i > 0 && !got[i-1].Range.To().Less(a.Range.From()) {
			t.Errorf("%s and %s overlap or are not in order", got[i-1].Range, a.Range)
		}
	}
	for _, node := range nodes {
		if _, served := of[node]; served == slices.Contains(unserved, node) {
			t.Errorf("node %s: served %v, in %v", node, served, unserved)
		}
	}
	for _, b := range current {
		if slices.Contains(holds, b.node) && of[b.node] != m.assignment(b).Range {
			t.Errorf("held block of %s moved to %s", b.node, of[b.node])
		}
	}
	for _, node := range unserved {
		if slices.ContainsFunc(m.statics, func(s modelBlock) bool { return s.node == node }) {
			continue // waits for its own prefix
		}
		for _, b := range m.blocks() {
			r := m.assignment(b).Range
			free := !slices.ContainsFunc(got, func(a Assignment) bool { return a.Range.Overlaps(r) })
			if free && !slices.ContainsFunc(m.statics, b.overlaps) && !m.wasted(b) {
				t.Errorf("node %s is unserved, yet %s is free", node, r)
			}
		}
	}
}

// TestBlockAgainstModel compares what a block has to hand out with a walk over
// all of its addresses.
func TestBlockAgainstModel(t *testing.T) {
	const randSeed = 19690720
	t.Logf("seed %d", randSeed)
	r := rand.New(rand.NewSource(randSeed))
	for round := range 3000 {
		m := randomModel(r)
		p := m.pool(t)
		for _, b := range m.blocks() {
			var want []netip.Addr
			first, last := b.first, b.last
			if m.cidr {
				first, last = m.hosts(b.first, m.step)
			}
			for i := first; i <= last; i++ {
				if !m.excluded[i] && !m.perNode[i-b.first] && i != m.gateway {
					want = append(want, m.addr(i))
				}
			}
			block := p.Block(m.assignment(b))
			if got := slices.Collect(block.Candidates(netip.Addr{})); !slices.Equal(got, want) {
				t.Fatalf("round %d, block %+v of %+v:\n got %v\nwant %v", round, b, m, got, want)
			}
			// From any address on, the same ones in another order.
			at := r.Intn(m.size)
			i, _ := slices.BinarySearchFunc(want, m.addr(at).Next(), netip.Addr.Compare)
			if at < first || at > last {
				i = 0
			}
			if got := slices.Collect(block.Candidates(m.addr(at))); !slices.Equal(got, slices.Concat(want[i:], want[:i])) {
				t.Fatalf("round %d, block %+v of %+v, after %s:\n got %v\nwant %v", round, b, m, m.addr(at), got, slices.Concat(want[i:], want[:i]))
			}
		}
	}
}
