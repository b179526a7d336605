// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// memory is what the controller remembers of a pool from one reconciliation to the
// next. It is lost with a restart, and nothing depends on it but how often the API
// server is written to and an event is repeated.
type memory struct {
	// summary is what the metrics tell.
	summary summary
	// kept is true if something is kept only as long as it is held.
	kept bool
	// written are the resource versions that the last reconciliation has made.
	written []string
	// blocksAt and restAt are the resource versions in which its blocks, and the rest of its
	// status, are what was last written: until it is known whether they were stored.
	blocksAt, restAt string
	// events are what was last told in events.
	events lastEvents
}

// summary is what is counted of a pool when it is reconciled.
type summary struct {
	ready    metav1.Condition
	overlaps int         // other pools
	unserved int         // nodes without a block, for lack of room
	blocks   *blockCount // nil if the specification is invalid
	held     int64       // allocations
	resting  int64       // others, that rest after their release
	topNodes []v1alpha1.NodeUse
	outside  int // of these, outside of their nodes' blocks, and not requested
	foreign  int // of these, outside of the subnet
}

// blockCount is what is counted of the blocks of a pool.
type blockCount struct {
	nodes    int   // that have a block
	full     int   // of these, without a free address in it or elsewhere
	capacity int64 // addresses that all nodes may hand out, bounded
}

// lastEvents are what was last told about a pool in events.
type lastEvents struct {
	uid      types.UID // of the pool; "" if nothing was told
	ready    metav1.Condition
	unserved []string // nodes, by name
	optOut   string
	notices  map[string]string    // the event of each, by type of condition
	nodes    map[string]time.Time // when a node's news were last the case, by reason/node
}

// memories are those of all pools. The workers that reconcile pools write them; metrics and
// the events of watches read them.
type memories = table[v1alpha1.PoolReference, memory]
