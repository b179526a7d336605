// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package claim takes addresses and gives them back.
//
// An address is claimed by creating its IPAllocation and given back by deleting
// it; the API server lets one create of a name win, and nothing else decides.
// Beside that stands the hint, a directory on the node: which addresses this
// node believes it holds, where it stopped last, what it knows of its pools, and
// which releases it still owes. The hint saves requests. Without it everything
// is right, only slower.
//
//	Allocate  blocks ─▶ candidates ─▶ Hold in the hint ─▶ create ─▶ Set in the hint
//	Release   Find in the hint ─▶ Owe in the hint ─▶ delete ─▶ Paid in the hint
//
// The order in each line is what makes a crash harmless: an address is in the
// hint before it can be claimed, and a release is in the hint before it is
// carried out. So the hint always holds at least what the node holds.
package claim
