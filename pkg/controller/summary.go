// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// summary is what is counted of a pool when it is reconciled.
type summary struct {
	ready    metav1.Condition
	overlaps int         // other pools
	unserved int         // nodes that there was no room for
	blocks   *blockCount // nil where the specification is invalid
	held     int64       // allocations
	outside  int         // of these, outside of their nodes' blocks, and nobody requested them
	foreign  int         // of these, outside of the subnet
}

// blockCount is what is counted of the blocks of a pool.
type blockCount struct {
	nodes    int   // that have a block
	full     int   // of these, without a free address in it
	capacity int64 // addresses that all nodes may hand out, at most pool.MaxSize
}

func countBlocks(all []pool.BlockUse) *blockCount {
	n := &blockCount{}
	for _, b := range all {
		n.nodes++
		n.capacity = min(n.capacity+b.Size, pool.MaxSize)
		if isFull(b) {
			n.full++
		}
	}
	return n
}

// isFull reports whether a block has no free address. One that has none to hand out
// at all, since its pool's addresses are requested or asked for by index, is not.
func isFull(b pool.BlockUse) bool { return b.Size > 0 && b.Held >= b.Size }
