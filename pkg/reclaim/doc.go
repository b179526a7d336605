// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package reclaim decides whether an address is leaked: from evidence about its
// pod, its node and the pod's other sandboxes to a verdict. It asks nobody and
// changes nothing; pkg/controller collects the evidence and acts on the verdict.
package reclaim
