// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// census is what is counted of a pool when it is reconciled.
type census struct {
	ready    metav1.Condition
	overlaps int    // other pools
	unserved int    // nodes that there was no room for
	blocks   []size // nil where the specification is invalid
	held     int64  // allocations
}

// size is how many addresses a node may hand out.
type size struct {
	node   string
	usable int64
}

// sizes measures assigned blocks; never nil.
func sizes(p *pool.Pool, assigned []pool.Assignment) []size {
	out := make([]size, len(assigned))
	for i, a := range assigned {
		out[i] = size{a.Node, p.Block(a).Size()}
	}
	return out
}

// capacity is the sum of all blocks' addresses, at most pool.MaxSize.
func (c *census) capacity() (sum int64) {
	for _, b := range c.blocks {
		sum = min(sum+b.usable, pool.MaxSize)
	}
	return sum
}

// full counts the blocks of which no address is left, where nodes hold so many.
func (c *census) full(held map[string]int64) (n int) {
	for _, b := range c.blocks {
		if held[b.node] >= b.usable {
			n++
		}
	}
	return n
}
