// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller does what is nobody's in particular: it gives each node its
// block of every pool, says in the pool's status how that went, and takes back
// addresses that no pod holds any more.
//
//	IPPool, CIDRPool ─┐
//	Node ─────────────┼─▶ pools (PoolReference) ─▶ reconcilePool ─▶ status
//	IPAllocation gone ┘
//
//	IPAllocation ─┐
//	Pod gone ─────┼─▶ examinations (IPAllocation) ─▶ examine ─▶ delete
//	Node's health ┘        │  ▲
//	                       ▼  │
//	             unplaced (Node) ─▶ locate: are the pods there?
//
// One replica at a time does this (Lead). Everything is decided from informer
// caches and settled by the API server: a status is applied over the resource
// version that it was computed from, and an allocation is deleted only after a
// live look at its pod.
package controller
