// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pool is the arithmetic of pools: which node has which addresses, and
// which of them may be handed out. It does no I/O and knows no client.
//
//	object of the API ── ObjectOf, Parse ──▶ Pool
//	Pool + nodes      ── Carve ──▶ []Assignment     (the controller)
//	Pool + one block  ── BlockOf ──▶ Block          (the plugin)
//	Block             ── Candidates, Match ──▶ addresses
//
// A pool of any kind is a subnet that is cut into equal steps. The kinds differ in
// how big a step is, which prefix length an address carries, and how
// status.allocations writes a block. The table in kinds.go has one row for each kind,
// a file for each of them says the rest (ippool.go, cidrpool.go), and no other
// package names a kind.
package pool
