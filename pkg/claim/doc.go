// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim takes addresses and gives them back.
//
// An address is claimed by creating its IPAllocation and given back by deleting it
// (pkg/ledger); the API server lets one create of a name win, and nothing else
// decides. What this node believes (pkg/hint) only saves requests.
//
//	Allocate  view of the pool ─▶ candidates ─▶ Claiming ─▶ create ─▶ Claimed
//	Release   what the attachment holds ─▶ Releasing ─▶ delete ─▶ Released
//
// A file for each step: allocate.go and search.go (which address), create.go (is it
// mine, does its holder yield), release.go and pending.go (now, or later), view.go
// (the pool as this node sees it).
package claim
