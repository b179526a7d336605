// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// After a loss of the record, as when the CRDs were deleted or etcd was set back, the
// nodes write their allocations again, and a node that starts nothing does so late. Until
// then its addresses must not lie in another node's block. So this controller
//
//  1. gives the nodes the blocks that it remembers of a pool of the name, if that is
//     another one or an earlier state of it;
//  2. gives no blocks of a new pool for a while (Options.LossGrace), if it remembers
//     nothing and allocations in the namespace were written again just now.

// formerBlocks are the blocks of pools as they were written last. They outlive the pool,
// and are lost with a restart.
type formerBlocks struct {
	table[v1alpha1.PoolReference, former]
}

type former struct {
	uid     types.UID
	version uint64
	blocks  []pool.Assignment
}

// remember notes the blocks of a pool. One that has lost its blocks and has no others
// yet, for example because its specification is invalid, leaves the former ones.
func (f *formerBlocks) remember(obj *pool.Object) {
	blocks := obj.Blocks()
	if len(blocks) > 0 || !f.lost(obj) {
		f.set(obj.Ref, former{obj.Meta.UID, v1alpha1.VersionNumber(obj.Meta.ResourceVersion), blocks})
	}
}

// lost reports whether a pool is another one than was remembered, or an earlier state of
// it.
func (f *formerBlocks) lost(obj *pool.Object) bool {
	before, found := f.get(obj.Ref)
	return found && (before.uid != obj.Meta.UID || before.version > v1alpha1.VersionNumber(obj.Meta.ResourceVersion))
}

// recall returns the blocks of a pool, and those remembered that it has lost. Which of
// them fit the specification is up to the caller.
func (f *formerBlocks) recall(obj *pool.Object) []pool.Assignment {
	have := obj.Blocks()
	if !f.lost(obj) {
		return have
	}
	out := slices.Clone(have)
	for _, b := range f.of(obj.Ref).blocks {
		if !slices.ContainsFunc(have, func(o pool.Assignment) bool { return o.Node == b.Node }) {
			out = append(out, b)
		}
	}
	return out
}

// tooEarly returns how long to wait before a pool without blocks is given any, because
// the record was lost and the nodes are still writing it again. 0 is not to wait.
func tooEarly(meta *metav1.ObjectMeta, blocks []pool.Assignment, allocations func() []*v1alpha1.IPAllocation, now time.Time, grace time.Duration) time.Duration {
	wait := meta.CreationTimestamp.Add(grace).Sub(now)
	if wait <= 0 || len(blocks) > 0 {
		return 0
	}
	for _, a := range allocations() {
		if a.Spec.Restored && now.Sub(a.CreationTimestamp.Time) < grace {
			return wait
		}
	}
	return 0
}

// waiting is the outcome of a pool for which it is too early.
func waiting(until time.Time) outcome {
	return outcome{
		assigned: []pool.Assignment{},
		ready: notReady(v1alpha1.ReasonRecordLost, fmt.Sprintf("allocations were lost, and the nodes are writing them again: "+
			"blocks are given at %s, when it is known who holds what", until.UTC().Format(time.RFC3339))),
	}
}
