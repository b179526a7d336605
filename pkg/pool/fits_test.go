// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestFitting(t *testing.T) {
	for _, tc := range []struct {
		name string
		pool *Pool
		// current blocks, all of them held, and those that do not fit.
		current []Assignment
		want    string
	}{
		{"nothing has changed", ipPool(t, tens()), ipBlocks(ipStatus("a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20")), ""},
		{"block size", ipPool(t, tens(blockSize(8))), ipBlocks(ipStatus("a=10.0.0.1-10.0.0.8 b=10.0.0.11-10.0.0.20")), "b"},
		{"subnet", ipPool(t, tens()), ipBlocks(ipStatus("a=10.9.0.1-10.9.0.10 b=10.0.0.11-10.0.0.20")), "a"},
		{"wholly excluded", ipPool(t, tens(excluding("10.0.0.1-10.0.0.10"))), ipBlocks(ipStatus("a=10.0.0.1-10.0.0.10")), "a"},
		{"partly excluded", ipPool(t, tens(excluding("10.0.0.1-10.0.0.9"))), ipBlocks(ipStatus("a=10.0.0.1-10.0.0.10")), ""},
		{"static for the node", statically(t, "a=10.0.9.0/24"), cidrBlocks(cidrStatus("a=10.0.9.0/24 b=10.0.0.0/24")), ""},
		{"static elsewhere", statically(t, "a=10.0.9.0/24"), cidrBlocks(cidrStatus("a=10.0.0.0/24")), "a"},
		{"static of another", statically(t, "a=10.0.9.0/24"), cidrBlocks(cidrStatus("b=10.0.9.0/24")), "b"},
		{"static of nobody", statically(t, "=10.0.9.0/24"), cidrBlocks(cidrStatus("b=10.0.9.0/24")), "b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var held []Held
			for _, a := range tc.current {
				held = append(held, Held{Node: a.Node, Addr: a.Range.From()})
			}
			blocks, _ := tc.pool.Carve(tc.current, nil, held)
			got := ""
			for _, a := range slices.DeleteFunc(slices.Clone(blocks), tc.pool.fitting()) {
				got += a.Node
			}
			if got != tc.want {
				t.Errorf("misfits %q, want %q", got, tc.want)
			}
			if len(blocks) != len(tc.current) {
				t.Errorf("%d of %d blocks were kept", len(blocks), len(tc.current))
			}
		})
	}
}

func statically(t *testing.T, text string) *Pool {
	return cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, StaticAllocations: statics(text)})
}
