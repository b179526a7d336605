// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inspect answers an operator's questions: who has an address, what is full,
// what leaks, what is wrong, why a pod does not start, what an edit of a pool would do.
//
// It reads the API server with the rights of whoever asks, and writes only in Release and
// Reserve. It prints nothing and returns data: cmd/kubectl-ipam shows it. What is leaked is
// decided in pkg/reclaim, what a pool gives to whom in pkg/pool.
//
// Cluster asks the API server at each question. Copy follows it, and answers from memory
// for pkg/web.
//
// All that it returns can be written as JSON; docs/kubectl-ipam.md has the schema of what
// the commands write.
package inspect
