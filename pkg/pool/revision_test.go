// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go4.org/netipx"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// A block that comes, goes or changes is seen by its node, by few others, and by all that
// look at everybody's blocks.
func TestRevision(t *testing.T) {
	const nodes = 1000
	var blocks []Assignment
	from := netip.MustParseAddr("10.0.0.0")
	for i := range nodes {
		blocks = append(blocks, Assignment{Node: fmt.Sprintf("node-%05d", i), Range: netipx.IPRangeFrom(from, from.Next())})
		from = from.Next().Next()
	}
	before := BlocksManager(blocks)
	if len(before) != 128 || !strings.HasPrefix(before, v1alpha1.BlocksManagerPrefix) {
		t.Fatalf("%q has %d characters: the API allows 128", before, len(before))
	}
	const at = 500
	node := blocks[at].Node
	moved, other, gateway := slices.Clone(blocks), slices.Clone(blocks), slices.Clone(blocks)
	moved[at].Range = netipx.IPRangeFrom(from, from)
	other[at].Node = "another"
	gateway[at].Gateway = from
	for name, after := range map[string][]Assignment{
		"gone": slices.Delete(slices.Clone(blocks), at, at+1), "moved": moved, "given to another": other, "another gateway": gateway,
		"one more": append(slices.Clone(blocks), Assignment{Node: node, Range: netipx.IPRangeFrom(from, from)}),
	} {
		manager := BlocksManager(after)
		if Revision(manager, node, false) == Revision(before, node, false) {
			t.Errorf("%s: not seen by its node", name)
		}
		if Revision(manager, "node-00000", true) == Revision(before, "node-00000", true) {
			t.Errorf("%s: not seen by a node that looks at all blocks", name)
		}
		seen := 0
		for _, b := range blocks {
			if Revision(manager, b.Node, false) != Revision(before, b.Node, false) {
				seen++
			}
		}
		if seen > nodes/10 {
			t.Errorf("%s: seen by %d of %d nodes", name, seen, nodes)
		}
	}
	if again := BlocksManager(slices.Clone(blocks)); again != before {
		t.Errorf("the same blocks: %s and %s", before, again)
	}
}

// Whoever else may have written the blocks.
func TestRevisionOfOthers(t *testing.T) {
	for manager, want := range map[string]string{
		"nv-ipam": "", "kubectl-edit": "", v1alpha1.BlocksManagerPrefix + "0123456789abcdef": v1alpha1.BlocksManagerPrefix + "0123456789abcdef",
	} {
		if got := Revision(manager, "a", false); got != want {
			t.Errorf("%s: %q, want %q", manager, got, want)
		}
	}
}

func BenchmarkBlocksManager(b *testing.B) {
	var blocks []Assignment
	from := netip.MustParseAddr("10.0.0.0")
	for i := range 5000 {
		blocks = append(blocks, Assignment{Node: fmt.Sprintf("node-%05d", i), Range: netipx.IPRangeFrom(from, from)})
		from = from.Next()
	}
	for b.Loop() {
		BlocksManager(blocks)
	}
}
