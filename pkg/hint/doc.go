// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hint is what a node believes: which addresses it holds, which releases are
// pending, and what it has seen of its pools. It is a directory on the node's disk.
//
// A hint saves requests and decides nothing (Lampson, "Hints for Computer System
// Design", 1983): it may be wrong, late or gone, and the API server decides. So what calls
// of the plugin use of it returns no errors. If the disk fails, the hint forgets that it is complete
// and says so once in the log, and the next call that needs to know asks the API
// server. What a caller must know is returned as a bool: whether a release was noted,
// and whether its note is gone.
//
// The order of writes makes a crash harmless at every step:
//
//	ADD  Claiming   ─▶ create ─▶ Claimed, Elsewhere or NotClaimed
//	DEL  Releasing  ─▶ delete ─▶ Released or NotReleased
//
// An address is entered before it is claimed, and a release before it is carried out.
// So a complete hint has at least what the node holds.
package hint
