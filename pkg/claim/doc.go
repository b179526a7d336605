// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim is the protocol: it claims addresses for containers and releases them.
//
// An address is claimed by creating its IPAllocation and released by deleting it, or by a patch
// if something keeps it (pkg/ledger). The API server lets one create of a name succeed, and that
// alone decides who has the address. What this node believes (pkg/hint) only saves requests.
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
//	window      256 addresses of a space that nodes share, listed at once (v1alpha1.WindowOf)
//	run         addresses in a row of such a space, which a node tries one after the other
//	candidate   an address that the search may try next, if the hint has no entry of it
//	domain      what an address is unique in: pools of one domain may overlap
//	record      all allocations, as the API server has them; hint.Record is what this node has of
//	            one of them, to write it again
//	epoch       which object of that name the pool is: its UID, and what the operator's
//	            annotation says. If it changes, allocations may have been lost (loss.go)
//	note        in the hint: a release that is pending
//	elsewhere   in the hint: an address that others were seen to hold, or that an owner keeps
//	foreign     given by nv-ipam on this node, and not adopted yet
//
// The states of an allocation are at v1alpha1.IPAllocation. Of one it is said that it
//
//	is kept     with an owner or a cooldown: it outlives its container, and is released and not
//	            deleted (IsKept). While an owner keeps it and no container has it, no other pod
//	            gets it
//	rests       released without an owner, until its cooldown is over
//	is sticky   kept by a StatefulSet or an IPAMClaim, for an identity
//
// A search that finds nothing returns the zero Entry and no error; the caller looks on elsewhere.
//
// Files:
//
//	allocate.go  all pools of a request, or none
//	view.go      the pools as this node sees them
//	labels.go    pools by labels of the node
//	search.go    which address, in the node's block
//	shared.go    which address, in space that nodes share
//	create.go    claim it
//	yields.go    does the allocation that has it yield?
//	sticky.go    addresses that a StatefulSet or an IPAMClaim keeps
//	keeper.go    what keeps the address for a pod
//	release.go   release now; CHECK and GC
//	pending.go   release later
//	loss.go      write again what the record has lost
//	adopt.go     claim what another IPAM has given
//	claimer.go   what a node holds, by a list
//	deadlines.go how long things may take
package claim
