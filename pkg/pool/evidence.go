// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Held is an address that a node holds.
type Held struct {
	Node string // empty where no container holds the address: it is reserved, kept, or rests
	Addr netip.Addr
	// Requested is true for an address that was asked for by name. In an IPPool it
	// may lie anywhere in the subnet, and says little about its node's block.
	Requested bool
	// Sticky is true for an address that a workload keeps: it is one of the whole subnet,
	// and says nothing about its node's block.
	Sticky bool
	// Elsewhere is true if the address was taken from another pool, which the domain still
	// has.
	Elsewhere bool
	// Rests is true if nobody holds the address: it was released, and its cooldown is not
	// over. It is a reason for no block.
	Rests bool
}

// ofBlock reports whether the address may be one of its node's block.
func (h Held) ofBlock() bool { return h.Node != "" && !h.Sticky }

// NotResting returns the addresses that somebody holds.
func NotResting(held []Held) []Held {
	if !slices.ContainsFunc(held, func(h Held) bool { return h.Rests }) {
		return held
	}
	return slices.DeleteFunc(slices.Clone(held), func(h Held) bool { return h.Rests })
}

// evidence is a block and how many addresses its node holds in it.
type evidence struct {
	Assignment

	dynamic, requested int
}

// count adds an address that the node holds in the block. In a CIDRPool a node's
// addresses are all in its own prefix, whether requested or not.
func (e *evidence) count(h Held, l layout) {
	if h.Requested && l.anywhere() {
		e.requested++
	} else {
		e.dynamic++
	}
}

// compare puts the better evidence first: more addresses that were not requested,
// then more of those that were.
func (e evidence) compare(o evidence) int {
	return cmp.Or(cmp.Compare(o.dynamic, e.dynamic), cmp.Compare(o.requested, e.requested))
}

// evidence returns those of blocks in which their nodes hold addresses, the best
// evidence first, then in the order of blocks.
func (p *Pool) evidence(blocks []Assignment, held []Held) []evidence {
	if len(blocks) == 0 || len(held) == 0 {
		return nil
	}
	found := make([]evidence, len(blocks))
	byNode := make([]int, len(blocks))
	for i := range blocks {
		found[i].Assignment, byNode[i] = blocks[i], i
	}
	slices.SortStableFunc(byNode, func(i, j int) int { return strings.Compare(blocks[i].Node, blocks[j].Node) })
	for _, h := range held {
		if !h.ofBlock() {
			continue
		}
		at, _ := slices.BinarySearchFunc(byNode, h.Node, func(i int, node string) int { return strings.Compare(blocks[i].Node, node) })
		for _, i := range byNode[at:] {
			if blocks[i].Node != h.Node {
				break
			}
			if blocks[i].Range.Contains(h.Addr) {
				found[i].count(h, p.layout)
			}
		}
	}
	found = slices.DeleteFunc(found, func(e evidence) bool { return e.dynamic+e.requested == 0 })
	slices.SortStableFunc(found, evidence.compare)
	return found
}
