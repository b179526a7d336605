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
			m.gateway = first + r.Intn(last-first+1)
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

// modelHeld is an address that a node holds.
type modelHeld struct {
	node      string
	addr      int
	requested bool
}

// count returns how many addresses a node holds in a block, those that were not
// requested and those that were.
func (m model) count(b modelBlock, held []modelHeld) (dynamic, requested int) {
	for _, h := range held {
		switch {
		case h.node != b.node || h.addr < b.first || h.addr > b.last:
		case h.requested && !m.cidr:
			requested++
		default:
			dynamic++
		}
	}
	return dynamic, requested
}

func (m model) fixed(node string) bool {
	return node != "" && slices.ContainsFunc(m.statics, func(s modelBlock) bool { return s.node == node })
}

// fits walks over the static allocations and the blocks.
func (m model) fits(b modelBlock) bool {
	if m.fixed(b.node) {
		return slices.Contains(m.statics, b)
	}
	return m.isBlock(b) && !m.wasted(b) && !slices.ContainsFunc(m.statics, b.overlaps)
}

// best puts the blocks in which their nodes hold the most first.
func (m model) best(blocks []modelBlock, held []modelHeld) []modelBlock {
	score := func(b modelBlock) int {
		dynamic, requested := m.count(b, held)
		return 1000*dynamic + requested
	}
	var out []modelBlock
	for _, b := range blocks {
		if n := score(b); n > 0 {
			i := slices.IndexFunc(out, func(o modelBlock) bool { return score(o) < n })
			if i < 0 {
				i = len(out)
			}
			out = slices.Insert(out, i, b)
		}
	}
	return out
}

func (m model) carve(current []modelBlock, nodes []string, held []modelHeld) (out []modelBlock, unserved []string) {
	owned, served := map[int]bool{}, map[string]bool{}
	give := func(b modelBlock) bool {
		for i := b.first; i <= b.last; i++ {
			if owned[i] {
				return false
			}
		}
		for i := b.first; i <= b.last; i++ {
			owned[i] = true
		}
		served[b.node] = served[b.node] || m.fits(b)
		out = append(out, b)
		return true
	}
	selected := func(node string) bool { return slices.Contains(nodes, node) }

	for _, b := range m.best(current, held) {
		give(b)
	}
	for _, s := range m.statics {
		if selected(s.node) {
			give(s)
		}
		for i := s.first; i <= s.last; i++ {
			owned[i] = true
		}
	}
	for _, b := range current {
		if selected(b.node) && !served[b.node] && m.fits(b) {
			give(b)
		}
	}
	lost := !slices.ContainsFunc(current, func(b modelBlock) bool {
		return slices.Contains(out, b) || slices.Contains(m.statics, b)
	})
	more := m.recover(nodes, held, lost, served, give)
	nodes = slices.Sorted(slices.Values(nodes))
	for _, node := range nodes {
		for _, b := range m.blocks() {
			if !served[node] && !m.fixed(node) && !m.wasted(b) {
				give(modelBlock{node, b.first, b.last})
			}
		}
	}
	var waiting []string
	for _, node := range nodes {
		if !served[node] && !m.fixed(node) {
			waiting = append(waiting, node)
		}
	}
	// The weakest of what was given beyond go to those that wait, by name.
	taken := more[max(0, len(more)-len(waiting)):]
	slices.SortFunc(taken, func(a, b modelBlock) int { return a.first - b.first })
	for i, b := range taken {
		served[waiting[i]] = true
		out[slices.Index(out, b)].node = waiting[i]
	}
	for _, node := range nodes {
		if !served[node] {
			unserved = append(unserved, node)
		}
	}
	slices.SortFunc(out, func(a, b modelBlock) int { return a.first - b.first })
	return out, unserved
}

// recover gives nodes the blocks that contain what they hold, and returns those
// beyond a node's first.
func (m model) recover(nodes []string, held []modelHeld, lost bool, served map[string]bool, give func(modelBlock) bool) (more []modelBlock) {
	var all []modelBlock
	for _, node := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		for _, b := range m.blocks() {
			if b.node = node; !m.wasted(b) {
				all = append(all, b)
			}
		}
	}
	all = m.best(all, held)
	first := func(b modelBlock) bool {
		return slices.Contains(nodes, b.node) && !served[b.node] && !m.fixed(b.node)
	}
	for pass := range 3 {
		for _, b := range all {
			dynamic, _ := m.count(b, held)
			gone := !slices.Contains(nodes, b.node) && !slices.ContainsFunc(more, func(o modelBlock) bool { return o.node == b.node })
			switch {
			case pass == 0 && dynamic > 0 && first(b), pass == 2 && first(b):
				give(b)
			case (pass == 1 || pass == 0 && gone) && dynamic > 0 && lost:
				if give(b) {
					more = append(more, b)
				}
			}
		}
	}
	return more
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

func (m model) held(in []modelHeld) []Held {
	var out []Held
	for _, h := range in {
		out = append(out, Held{Node: h.node, Addr: m.addr(h.addr), Requested: h.requested})
	}
	return out
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

// hold lets nodes take addresses of their blocks, request some anywhere, and give
// some back. What is held once is held by nobody else.
func (m model) hold(r *rand.Rand, blocks []modelBlock, held []modelHeld) []modelHeld {
	held = slices.DeleteFunc(held, func(modelHeld) bool { return r.Intn(3) == 0 })
	take := func(h modelHeld) {
		if !slices.ContainsFunc(held, func(o modelHeld) bool { return o.addr == h.addr }) {
			held = append(held, h)
		}
	}
	for _, b := range blocks {
		for range r.Intn(3) {
			take(modelHeld{b.node, b.first + r.Intn(b.last-b.first+1), false})
		}
		if r.Intn(4) == 0 {
			at := r.Intn(64)
			if m.cidr {
				at = b.first + r.Intn(b.last-b.first+1)
			}
			take(modelHeld{b.node, at, true})
		}
	}
	return held
}

// TestCarveAgainstModel carves a pool again and again while nodes come and go, hold
// addresses and give them back, the specification is edited under them, and the
// status is lost, in part or altogether.
func TestCarveAgainstModel(t *testing.T) {
	const randSeed = 20261123
	t.Logf("seed %d", randSeed)
	r := rand.New(rand.NewSource(randSeed))
	all := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	for round := range 3000 {
		m := randomModel(r)
		var current []modelBlock
		var held []modelHeld
		for step := range 8 {
			if step > 0 && r.Intn(3) == 0 { // an edit
				if e := randomModel(r); e.v6 == m.v6 && e.cidr == m.cidr {
					m = e
				}
			}
			switch r.Intn(8) {
			case 0:
				current = nil
			case 1:
				current = slices.DeleteFunc(current, func(modelBlock) bool { return r.Intn(2) == 0 })
			}
			nodes := some(r, all)
			r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })

			got, unserved := m.pool(t).Carve(m.assignments(current), nodes, m.held(held))
			want, wantUnserved := m.carve(current, nodes, held)
			for i := range got {
				if !m.cidr && m.gateway >= 0 && got[i].Gateway != m.addr(m.gateway) {
					t.Errorf("gateway %s, want %s", got[i].Gateway, m.addr(m.gateway))
				}
				got[i].Gateway = netip.Addr{}
			}
			if !slices.Equal(got, m.assignments(want)) || !slices.Equal(unserved, wantUnserved) {
				t.Errorf("got %v, unserved %v\nwant %v, unserved %v", got, unserved, m.assignments(want), wantUnserved)
			}
			m.checkInvariants(t, current, nodes, held, want, unserved)
			if t.Failed() {
				t.Fatalf("round %d.%d: %+v\ncurrent %v\nnodes %v, holding %v\ngot %v", round, step, m, current, nodes, held, got)
			}
			current, held = want, m.hold(r, want, held)
		}
	}
}

// checkInvariants checks what must hold whatever the rules are. The blocks in
// current come from an earlier carving, so they do not overlap.
func (m model) checkInvariants(t *testing.T, current []modelBlock, nodes []string, held []modelHeld, got []modelBlock, unserved []string) {
	fitting := map[string]bool{}
	for i, b := range got {
		fitting[b.node] = fitting[b.node] || m.fits(b)
		if i > 0 && got[i-1].last >= b.first {
			t.Errorf("%v and %v overlap or are not in order", got[i-1], b)
		}
		dynamic, requested := m.count(b, held)
		if !slices.Contains(nodes, b.node) && dynamic+requested == 0 {
			t.Errorf("%v is of a node that is not selected and holds nothing of it", b)
		}
	}
	for _, node := range nodes {
		if fitting[node] == slices.Contains(unserved, node) {
			t.Errorf("node %s: has a block that fits %v, unserved are %v", node, fitting[node], unserved)
		}
	}
	for _, b := range current {
		if dynamic, requested := m.count(b, held); dynamic+requested > 0 && !slices.Contains(got, b) {
			t.Errorf("held block %v has gone", b)
		}
	}
	for _, node := range unserved {
		for _, b := range m.blocks() {
			if b.node = node; m.fits(b) && !slices.ContainsFunc(got, b.overlaps) {
				t.Errorf("node %s is unserved, yet %v is free", node, b)
			}
		}
	}
	m.checkHeld(t, current, nodes, held, got)
}

// checkHeld checks that what nobody requested lies in a block of its node, if there
// is one that nobody else has a better right to: by what it holds there, or since it
// would have none. Where the status was lost in part only, that is not promised to a
// node which still has a block.
func (m model) checkHeld(t *testing.T, current []modelBlock, nodes []string, held []modelHeld, got []modelBlock) {
	free := slices.ContainsFunc(m.blocks(), func(b modelBlock) bool {
		return !m.wasted(b) && !slices.ContainsFunc(m.statics, b.overlaps) && !slices.ContainsFunc(got, b.overlaps)
	})
	for _, h := range held {
		if len(current) > 0 || h.requested && !m.cidr || slices.ContainsFunc(got, func(b modelBlock) bool {
			return b.node == h.node && b.first <= h.addr && h.addr <= b.last
		}) {
			continue
		}
		for _, b := range m.blocks() {
			if h.addr < b.first || h.addr > b.last || m.wasted(b) || slices.ContainsFunc(m.statics, b.overlaps) {
				continue
			}
			b.node = h.node
			mine, _ := m.count(b, held)
			if !slices.ContainsFunc(got, func(o modelBlock) bool {
				theirs, _ := m.count(o, held)
				return o.overlaps(b) && (theirs >= mine || !free && slices.Contains(nodes, o.node))
			}) {
				t.Errorf("%v is held outside of a block of its node, and nobody has a better right to %v", h, b)
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
			block := p.block(m.assignment(b))
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
