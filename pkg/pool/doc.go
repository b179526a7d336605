// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pool is the arithmetic of pools: which node has which addresses, and
// which of them may be handed out. It does no I/O and knows no client.
//
//	IPPool, CIDRPool ── FromIPPool, FromCIDRPool ──▶ Pool
//	Pool + nodes     ── Carve ──▶ []Assignment     (the controller)
//	Pool + one of it ── Block ──▶ Block            (the plugin)
//	Block            ── Candidates, Match ──▶ addresses
//
// Both kinds of pool are one thing here: a subnet cut at equal steps. They
// differ in how big a step is and in which prefix length an address carries, and
// only FromIPPool and FromCIDRPool know about that.
package pool
