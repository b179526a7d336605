// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim is the protocol: it claims addresses for containers and releases them.
//
// An address is claimed by creating its IPAllocation and released by deleting it, or by a patch
// if something keeps it (pkg/ledger). The API server lets one create of a name succeed, and that alone decides
// who has the address. What this node believes (pkg/hint) only saves requests.
//
//	Allocate  view of the pool ─▶ candidate ─▶ Claiming ─▶ create ─▶ Claimed
//	Release   what the attachment holds ─▶ Releasing ─▶ delete ─▶ Released
//
// Words:
//
//	attachment  an interface of a container, which is what holds an address
//	site        a cluster, and the name that this node has in it: each has a hint of its own
//	view        the pool as this node sees it: its block, and the version that it was read from
//	space       where candidates come from: the node's block, and each range that it overflows to
//	epoch       which pool of a name this is: another one after it was deleted, or after the
//	            operator has said that the record was set back; what the hint has of an earlier
//	            one is looked for, and written again if it is lost
//
// Files:
//
//	allocate.go  all pools of a request, or none
//	view.go      the pools as this node sees them
//	labels.go    pools by labels of the node
//	search.go    which address: in the node's block, and
//	shared.go    in space that nodes share
//	create.go    claim it
//	yields.go    does its holder yield?
//	sticky.go    addresses that a StatefulSet or an IPAMClaim keeps
//	keeper.go    what keeps the address for a pod
//	release.go   release now; CHECK and GC
//	pending.go   release later
//	loss.go      write again what the record has lost
//	adopt.go     claim what another IPAM has given
//	claimer.go   what a node holds, by a list
//	deadlines.go how long things may take
package claim
