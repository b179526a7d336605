// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// Carve says which node has which block.
//
//	current  the blocks as they are
//	nodes    the nodes that the pool's selector matches, in any order
//	held     the addresses of this pool that nodes hold
//
// The rules, in their order:
//
//  1. A node keeps each block in which it holds addresses, whatever else has
//     changed: a block is not moved or given away under a live pod. Of two such
//     blocks that overlap, the one with more addresses that nobody requested
//     counts, then the one with more requested ones, then the first in current.
//  2. A static allocation gives its node its prefix, and keeps it from others.
//  3. Any other node that is still selected, and has no block that fits
//     by then, keeps the first that does.
//  4. If current lacks the block of a node that holds addresses (a status that was
//     lost), the node is given the block of the pool that contains most of them.
//     The order is that of rule 1, then the node's name. If nothing is left of
//     current, also nodes that are not selected are, and nodes are given all blocks
//     that contain what they hold.
//  5. Every other node, by name, is given the first block that is free and has
//     an address that is not excluded. If there is none, what rule 4 gave a node
//     beyond its first block, or one that is not selected, is free as well.
//
// A node that keeps a block of an earlier specification is so given one of the
// new one as well, if there is room.
//
// A pool without blocks has none, whatever is held.
//
// It returns the blocks sorted by address, and the nodes without a block that
// fits, sorted by name.
func (p *Pool) Carve(current []Assignment, nodes []string, held []Held) (blocks []Assignment, unserved []string) {
	if p.Shared {
		return nil, nil
	}
	c := p.carving(nodes)
	for _, e := range p.evidence(current, held) { // rule 1
		c.give(e.Assignment, c.fits(e.Assignment))
	}
	lost := len(c.blocks) == 0
	for _, s := range p.static { // rule 2
		if s.Node != "" && c.selected(s.Node) {
			c.give(s, true)
		}
	}
	for _, s := range p.static {
		c.taken.add(s.Range)
	}
	for _, a := range current { // rule 3
		if s, ok := c.fixed[a.Node]; ok && s.Range == a.Range {
			lost = false
		} else if c.selected(a.Node) && !c.served[a.Node] && c.fits(a) && c.give(a, true) {
			lost = false
		}
	}
	more := c.recover(held, lost) // rule 4
	unserved = c.serve(more)      // rule 5
	slices.SortFunc(c.blocks, func(a, b Assignment) int { return a.Range.From().Compare(b.Range.From()) })
	return c.blocks, unserved
}

// carving is the state of one Carve.
type carving struct {
	pool     *Pool
	nodes    []string // selected ones, sorted
	fits     func(Assignment) bool
	fixed    map[string]Assignment // static allocations by node
	blocks   []Assignment
	served   map[string]bool // nodes with a block that fits
	taken    occupied
	position *big.Int // no block before it is free
}

func (p *Pool) carving(nodes []string) *carving {
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	n := len(nodes)
	c := &carving{
		pool: p, nodes: nodes, fits: p.fitting(), fixed: map[string]Assignment{}, position: new(big.Int),
		served: make(map[string]bool, n), blocks: make([]Assignment, 0, n),
	}
	for _, s := range p.static {
		if s.Node != "" {
			c.fixed[s.Node] = s
		}
	}
	return c
}

// recover is rule 4. It returns what it gave beyond a first block of selected nodes,
// the best evidence first.
func (c *carving) recover(held []Held, lost bool) (more []netipx.IPRange) {
	claims := c.claims(held, lost)
	first := func(e evidence) bool { return c.selected(e.Node) && !c.served[e.Node] && !c.hasFixed(e.Node) }
	gone := map[string]bool{} // nodes that are not selected and have one
	for _, e := range claims {
		switch {
		case e.dynamic == 0:
		case first(e):
			c.give(e.Assignment, true)
		case lost && !c.selected(e.Node) && !gone[e.Node] && c.give(e.Assignment, false):
			gone[e.Node] = true
			more = append(more, e.Range)
		}
	}
	for _, e := range claims {
		if lost && e.dynamic > 0 && c.give(e.Assignment, false) {
			more = append(more, e.Range)
		}
	}
	for _, e := range claims { // by requested addresses alone
		if first(e) {
			c.give(e.Assignment, true)
		}
	}
	return more
}

// claims are the blocks of the pool that contain what nodes hold, the best evidence
// first: of those nodes that rule 4 is for, or of all where the status was lost.
func (c *carving) claims(held []Held, lost bool) []evidence {
	var all []evidence
	known := map[Assignment]int{}
	for _, h := range held {
		if !h.ofBlock() || !lost && (c.served[h.Node] || c.hasFixed(h.Node) || !c.selected(h.Node)) {
			continue
		}
		r, ok := c.pool.grid.containing(h.Addr)
		if !ok {
			continue
		}
		a := Assignment{Node: h.Node, Range: r}
		i, found := known[a]
		if !found {
			i, known[a] = len(all), len(all)
			all = append(all, evidence{Assignment: a})
		}
		all[i].count(h, c.pool.layout)
	}
	all = slices.DeleteFunc(all, func(e evidence) bool { return c.pool.wasted(e.Range) })
	slices.SortFunc(all, func(a, b evidence) int {
		return cmp.Or(a.compare(b), strings.Compare(a.Node, b.Node), a.Range.From().Compare(b.Range.From()))
	})
	return all
}

// serve is rule 5. It takes back as much of more, from its end, as it needs.
func (c *carving) serve(more []netipx.IPRange) (unserved []string) {
	unserved = c.byName(c.nodes)
	for len(more) > 0 {
		waiting := slices.DeleteFunc(slices.Clone(unserved), c.hasFixed)
		if len(waiting) == 0 {
			break
		}
		keep := max(0, len(more)-len(waiting))
		for _, r := range more[keep:] {
			c.taken.remove(r)
			c.blocks = slices.DeleteFunc(c.blocks, func(a Assignment) bool { return a.Range == r })
		}
		more, c.position = more[:keep], new(big.Int)
		unserved = c.byName(unserved)
	}
	return unserved
}

// byName gives free blocks to those of nodes that have none, and returns the rest.
func (c *carving) byName(nodes []string) (unserved []string) {
	for _, node := range nodes {
		if c.served[node] {
			continue
		}
		r, ok := netipx.IPRange{}, false
		if !c.hasFixed(node) {
			r, ok = c.next()
		}
		if !ok {
			unserved = append(unserved, node)
			continue
		}
		c.give(Assignment{Node: node, Range: r}, true)
	}
	return unserved
}

// give assigns a block, unless a part of it is taken.
func (c *carving) give(a Assignment, fits bool) bool {
	if !c.taken.add(a.Range) {
		return false
	}
	a.Gateway = c.gateway(a)
	c.blocks = append(c.blocks, a)
	if fits {
		c.served[a.Node] = true
	}
	return true
}

func (c *carving) selected(node string) bool {
	_, ok := slices.BinarySearch(c.nodes, node)
	return ok
}

func (c *carving) hasFixed(node string) bool { _, ok := c.fixed[node]; return ok }

// gateway returns the gateway of a block as the specification has it now. A
// block that is none of the pool's any more was cut from an earlier one, and so
// was its gateway.
func (c *carving) gateway(a Assignment) netip.Addr {
	if s, ok := c.fixed[a.Node]; ok && s.Range == a.Range {
		return s.Gateway
	}
	if a.Gateway.IsValid() && !c.pool.grid.has(a.Range) {
		return a.Gateway
	}
	return c.pool.layout.gateway(a.Range)
}

// next returns the first free block that has an address to hand out. It jumps
// over what is taken or excluded, however large: an exclusion of a whole /64
// costs one step.
func (c *carving) next() (netipx.IPRange, bool) {
	g := c.pool.grid
	for {
		block, ok := g.at(c.position)
		if !ok {
			return netipx.IPRange{}, false
		}
		over, taken := c.taken.overlapping(block)
		if !taken {
			over, taken = c.pool.waste(block)
		}
		if !taken {
			return block, true
		}
		// The block that over ends in may still be free in part; this one is not.
		to := g.position(over.To())
		if to.Cmp(c.position) <= 0 {
			to.Add(c.position, one)
		}
		c.position = to
	}
}

// wasted reports whether a block has no address that is not excluded.
func (p *Pool) wasted(block netipx.IPRange) bool {
	_, yes := p.waste(block)
	return yes
}

// waste returns the last of the excluded ranges that together leave no address
// of a block, or false where they leave one. As in nv-ipam, the network address
// of a CIDRPool's prefix counts as an address here, its broadcast address not.
func (p *Pool) waste(block netipx.IPRange) (over netipx.IPRange, yes bool) {
	_, hosts := p.layout.view(block)
	// Per-node exclusions that leave nothing do so in every block to come.
	over, yes = netipx.IPRangeFrom(block.From(), p.grid.last), true
	for _, part := range p.open(netipx.IPRangeFrom(block.From(), hosts.To())) {
		if over, yes = p.unusable.containing(part); !yes {
			break
		}
	}
	return over, yes
}

// occupied are ranges like those of ranges, to which thousands are added in any order: in parts, so
// that one more moves no more than a part.
type occupied struct{ parts []ranges } // none of them empty

// maxPart is how many ranges a part of occupied has at most.
const maxPart = 256

// add inserts r, or reports false where a part of it is there already.
func (o *occupied) add(r netipx.IPRange) bool {
	if len(o.parts) == 0 {
		o.parts = []ranges{append(make(ranges, 0, maxPart), r)}
		return true
	}
	i := min(o.part(r.From()), len(o.parts)-1)
	part := &o.parts[i]
	if !part.add(r) {
		return false
	}
	if low := *part; len(low) == maxPart {
		high := append(make(ranges, 0, maxPart), low[maxPart/2:]...)
		*part = low[:maxPart/2]
		o.parts = slices.Insert(o.parts, i+1, high)
	}
	return true
}

// remove removes r, if all of it was added at once.
func (o *occupied) remove(r netipx.IPRange) {
	i := o.part(r.From())
	if i == len(o.parts) {
		return
	}
	o.parts[i] = slices.DeleteFunc(o.parts[i], func(t netipx.IPRange) bool { return t == r })
	if len(o.parts[i]) == 0 {
		o.parts = slices.Delete(o.parts, i, i+1)
	}
}

// overlapping returns the first range that has an address in common with r.
func (o *occupied) overlapping(r netipx.IPRange) (netipx.IPRange, bool) {
	if i := o.part(r.From()); i < len(o.parts) {
		return o.parts[i].overlapping(r)
	}
	return netipx.IPRange{}, false
}

// part returns the index of the part that has the first range that ends at a or later.
func (o *occupied) part(a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(o.parts, a, func(p ranges, a netip.Addr) int { return p[len(p)-1].To().Compare(a) })
	return i
}

// ranges are disjoint ranges of addresses in ascending order.
type ranges []netipx.IPRange

// add inserts r, or reports false where a part of it is there already.
func (s *ranges) add(r netipx.IPRange) bool {
	if _, ok := s.overlapping(r); ok {
		return false
	}
	*s = slices.Insert(*s, s.search(r.From()), r)
	return true
}

// overlapping returns the first range that has an address in common with r.
func (s ranges) overlapping(r netipx.IPRange) (netipx.IPRange, bool) {
	i := s.search(r.From())
	if i < len(s) && s[i].Overlaps(r) {
		return s[i], true
	}
	return netipx.IPRange{}, false
}

// containing returns the range that holds every address of r.
func (s ranges) containing(r netipx.IPRange) (netipx.IPRange, bool) {
	over, ok := s.overlapping(r)
	if !ok || !over.Contains(r.From()) || !over.Contains(r.To()) {
		return netipx.IPRange{}, false
	}
	return over, true
}

// search returns the index of the first range that ends at a or later.
func (s ranges) search(a netip.Addr) int {
	i, _ := slices.BinarySearchFunc(s, a, func(r netipx.IPRange, a netip.Addr) int { return r.To().Compare(a) })
	return i
}
