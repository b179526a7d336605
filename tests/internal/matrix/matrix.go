// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package matrix has the combinations in which the end-to-end tests are tried:
// tests/matrix runs them, and tests/e2e has what runs in each.
package matrix

import "strings"

// Cell is a cluster, and the networks that its pods have, one after the other.
type Cell struct {
	// Kubernetes is a version that hack/parts.sh knows.
	Kubernetes string
	// Containerd and Multus are parts of hack/parts.sh.
	Containerd string
	Multus     string
	Networks   []Network
}

// Network is what differs between NetworkAttachmentDefinitions.
type Network struct {
	Family     string
	CNIVersion string
}

// Values of a cell and of its networks.
const (
	Containerd2      = "containerd"
	ContainerdDebian = "containerd-debian"
	Thin             = "multus"
	Thick            = "multus-thick"
	IPv4             = "IPv4"
	IPv6             = "IPv6"
	Dual             = "dual"
)

// Cells have each pair of values of two of the five at least once: all combinations would be
// 192.
var Cells = []Cell{
	{"1.30.14", Containerd2, Thin, []Network{{Dual, "0.3.1"}, {IPv6, "0.4.0"}}},
	{"1.30.14", ContainerdDebian, Thick, []Network{{IPv6, "1.0.0"}, {IPv4, "1.1.0"}}},
	{"1.31.4", Containerd2, Thick, []Network{{IPv4, "0.4.0"}, {Dual, "1.0.0"}}},
	{"1.31.4", ContainerdDebian, Thin, []Network{{Dual, "1.1.0"}, {IPv6, "0.3.1"}}},
	{"1.34.12", Containerd2, Thin, []Network{{Dual, "1.0.0"}, {IPv6, "1.1.0"}}},
	{"1.34.12", ContainerdDebian, Thick, []Network{{IPv4, "0.3.1"}, {Dual, "0.4.0"}}},
	{"1.37.2", Containerd2, Thick, []Network{{Dual, "1.1.0"}, {IPv6, "0.3.1"}}},
	{"1.37.2", ContainerdDebian, Thin, []Network{{IPv6, "0.4.0"}, {IPv4, "1.0.0"}}},
}

// Name of a network, as a subtest has it and a namespace may.
func (n Network) Name() string {
	return strings.ToLower(n.Family) + "-" + strings.ReplaceAll(n.CNIVersion, ".", "-")
}
