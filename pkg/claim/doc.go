// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim is the protocol: it claims addresses for containers and releases them.
//
// An address is claimed by creating its IPAllocation and released by deleting it
// (pkg/ledger). The API server lets one create of a name succeed, and that alone decides
// who has the address. What this node believes (pkg/hint) only saves requests.
//
//	Allocate  view of the pool ─▶ candidate ─▶ Claiming ─▶ create ─▶ Claimed
//	Release   what the attachment holds ─▶ Releasing ─▶ delete ─▶ Released
//
//	allocate.go  all pools of a request, or none
//	view.go      the pool as this node sees it
//	search.go    which address
//	create.go    claim it; does its holder yield?
//	release.go   release now; CHECK and GC
//	pending.go   release later
//	adopt.go     claim what another IPAM has given
//	deadlines.go how long things may take
package claim
