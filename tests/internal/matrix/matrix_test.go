// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package matrix

import (
	"slices"
	"testing"
)

// Each pair of values is in some cell.
func TestPairs(t *testing.T) {
	var rows [][]string
	for _, c := range Cells {
		for _, n := range c.Networks {
			rows = append(rows, []string{c.Kubernetes, c.Containerd, c.Multus, n.Family, n.CNIVersion})
		}
	}
	values := [][]string{
		{"1.30.14", "1.31.4", "1.34.12", "1.37.2"}, {Containerd2, ContainerdDebian}, {Thin, Thick},
		{IPv4, IPv6, Dual}, {"0.3.1", "0.4.0", "1.0.0", "1.1.0"},
	}
	for i := range values {
		for j := range i {
			for _, a := range values[i] {
				for _, b := range values[j] {
					if !slices.ContainsFunc(rows, func(row []string) bool { return row[i] == a && row[j] == b }) {
						t.Errorf("no cell has %s with %s", b, a)
					}
				}
			}
		}
	}
}
