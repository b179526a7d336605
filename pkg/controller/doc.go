// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller runs the cluster-wide loops: it assigns blocks of every pool to
// the nodes, publishes the pool's status, and reclaims leaked addresses.
//
//	pool ─────────────┐
//	node ─────────────┼─▶ queues.pools ─▶ blockReconciler ─▶ status, events
//	allocation gone ──┘
//
//	allocation ───┐
//	pod gone ─────┼─▶ queues.allocations ─▶ leakReconciler ─▶ delete
//	node's health ┘        │  ▲
//	                       ▼  │
//	           queues.nodes ─▶ locator: are the pods there?
//
// Events of the watches put work into the queues (triggers). The parts know the caches
// and not each other: blocks in blocks.go, status.go, events.go, notices.go and
// overlap.go; leaks in leaks.go, evidence.go, places.go and observations.go.
//
// One replica at a time does this (Lead). Everything is decided from informer
// caches and settled by the API server: a status is written over the resource
// version that it was computed from, and an allocation is deleted only after the API
// server has confirmed that its pod is gone.
package controller
